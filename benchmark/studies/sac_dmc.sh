#!/usr/bin/env bash
# SAC on DM Control, one setting for three small tasks, and walker-walk for longer.
#
#   benchmark/studies/sac_dmc.sh --workers 4           any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/sac_dmc --out benchmark/results/sac_dmc
cd "$(dirname "$0")/../.." || exit
status=0

study() { # length, interval of evaluations, environments
    local steps=$1 interval=$2
    shift 2
    benchmark/run.sh --script sac_continuous.py --env-ids "$@" --seeds 1 2 3 \
        --name sac --runs-dir runs/sac_dmc "${launcher[@]}" -- \
        --total-timesteps "$steps" --eval-interval "$interval" --learning-starts 1000 \
        --gamma 0.99 --tau 0.005 --actor-learning-rate 1e-3 --critic-learning-rate 1e-3 \
        --alpha-learning-rate 1e-3 --init-alpha 0.1 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
}

launcher=("$@")
study 100000 10000 dm_control/cartpole-balance-v0 dm_control/cartpole-swingup-v0 \
    dm_control/ball_in_cup-catch-v0
study 500000 25000 dm_control/walker-walk-v0
exit "$status"
