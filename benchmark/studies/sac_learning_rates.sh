#!/usr/bin/env bash
# SAC's learning rates on DM Control.
#
#   benchmark/studies/sac_learning_rates.sh --workers 4   any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/sac_learning_rates --out benchmark/results/sac_learning_rates
cd "$(dirname "$0")/../.." || exit
status=0

for rate in 1e-4 3e-4 1e-3 3e-3; do
    benchmark/run.sh --script sac_continuous.py --env-ids dm_control/cartpole-swingup-v0 dm_control/walker-walk-v0 --seeds 1 2 3 \
        --name "sac_lr$rate" --runs-dir runs/sac_learning_rates "$@" -- \
        --actor-learning-rate "$rate" --critic-learning-rate "$rate" --gamma 0.99 --tau 0.005 \
        --total-timesteps 500000 --eval-interval 25000 --learning-starts 1000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
