#!/usr/bin/env bash
# SAC's discount on DM Control.
#
#   benchmark/studies/sac_gamma.sh --workers 4   any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/sac_gamma --out benchmark/results/sac_gamma
cd "$(dirname "$0")/../.." || exit
status=0

for gamma in 0.95 0.98 0.99 0.995; do
    benchmark/run.sh --script sac_continuous.py --env-ids dm_control/cartpole-swingup-v0 dm_control/walker-walk-v0 --seeds 1 2 3 \
        --name "sac_gamma$gamma" --runs-dir runs/sac_gamma "$@" -- \
        --gamma "$gamma" --tau 0.005 \
        --total-timesteps 500000 --eval-interval 25000 --learning-starts 1000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
