#!/usr/bin/env bash
# SAC on DM Control: three small tasks, of which balance needs lower learning rates, and walker-walk
# for longer, in bfloat16. Every action is held for one step.
#
#   benchmark/studies/sac_dmc.sh --workers 4        any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/sac_dmc --out benchmark/results/sac_dmc
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script sac_continuous.py \
    --setting sac_lower_rates "--env-ids dm_control/cartpole-balance-v0 --no-bfloat16 \
        --actor-learning-rate 3e-4 --critic-learning-rate 3e-4 --alpha-learning-rate 3e-4" \
    --setting sac "--no-bfloat16 \
        --env-ids dm_control/cartpole-swingup-v0 dm_control/ball_in_cup-catch-v0" \
    --setting sac_bfloat16 "--env-ids dm_control/walker-walk-v0 --bfloat16 \
        --total-timesteps 500000 --eval-interval 25000" "$@" -- \
    --total-timesteps 100000 --eval-interval 10000 --learning-starts 1000 --gamma 0.99 --tau 0.005 \
    --actor-learning-rate 1e-3 --critic-learning-rate 1e-3 --alpha-learning-rate 1e-3 \
    --init-alpha 0.1
