#!/usr/bin/env bash
# SAC on DM Control: three small tasks, of which balance wants lower rates, and walker-walk for
# longer, in bfloat16.
#
#   benchmark/studies/sac_dmc.sh --workers 4           any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/sac_dmc --out benchmark/results/sac_dmc
cd "$(dirname "$0")/../.." || exit
status=0

study() { # name of the setting, length, interval of evaluations, rate, precision; environments
    local name=$1 steps=$2 interval=$3 rate=$4 precision=$5
    shift 5
    benchmark/run.sh --script sac_continuous.py --env-ids "$@" --seeds 1 2 3 \
        --name "$name" --runs-dir runs/sac_dmc "${launcher[@]}" -- \
        --total-timesteps "$steps" --eval-interval "$interval" --learning-starts 1000 \
        --gamma 0.99 --tau 0.005 --actor-learning-rate "$rate" --critic-learning-rate "$rate" \
        --alpha-learning-rate "$rate" --init-alpha 0.1 "$precision" || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
}

launcher=("$@")
study sac_lower_rates 100000 10000 3e-4 --no-bfloat16 dm_control/cartpole-balance-v0
study sac 100000 10000 1e-3 --no-bfloat16 dm_control/cartpole-swingup-v0 \
    dm_control/ball_in_cup-catch-v0
study sac_bfloat16 500000 25000 1e-3 --bfloat16 dm_control/walker-walk-v0
exit "$status"
