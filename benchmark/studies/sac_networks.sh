#!/usr/bin/env bash
# The depth of SAC's networks on DM Control.
#
#   benchmark/studies/sac_networks.sh --workers 4   any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/sac_networks --out benchmark/results/sac_networks
cd "$(dirname "$0")/../.." || exit
status=0

for sizes in "256" "256 256" "256 256 256" "256 256 256 256"; do
    benchmark/run.sh --script sac_continuous.py --env-ids dm_control/cartpole-swingup-v0 dm_control/walker-walk-v0 --seeds 1 2 3 \
        --name "sac_depth$(wc -w <<<"$sizes")" --runs-dir runs/sac_networks "$@" -- \
        --actor-hidden-sizes $sizes --critic-hidden-sizes $sizes --gamma 0.99 --tau 0.005 \
        --total-timesteps 500000 --eval-interval 25000 --learning-starts 1000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
