#!/usr/bin/env bash
# SAC's target update rate on DM Control.
#
#   benchmark/studies/sac_tau.sh --workers 4   any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/sac_tau --out benchmark/results/sac_tau
cd "$(dirname "$0")/../.." || exit
status=0

for tau in 0.001 0.005 0.01 0.02; do
    benchmark/run.sh --script sac_continuous.py --env-ids dm_control/cartpole-swingup-v0 dm_control/walker-walk-v0 --seeds 1 2 3 \
        --name "sac_tau$tau" --runs-dir runs/sac_tau "$@" -- \
        --tau "$tau" --gamma 0.99 \
        --total-timesteps 500000 --eval-interval 25000 --learning-starts 1000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
