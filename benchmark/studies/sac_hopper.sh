#!/usr/bin/env bash
# SAC on PyBullet's hopper with state-dependent exploration, which is what the best published results
# there use, and rates that fall to 0 by the end of the run.
#
#   benchmark/studies/sac_hopper.sh --workers 3        any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/sac_hopper --out benchmark/results/sac_hopper
cd "$(dirname "$0")/../.." || exit

exec benchmark/run.sh --script sac_continuous.py --env-ids HopperBulletEnv-v0 --seeds 1 2 3 \
    --name sac_sde_bfloat16 --runs-dir runs/sac_hopper "$@" -- --total-timesteps 1000000 --use-sde \
    --update-every 8 --anneal-learning-rate --bfloat16 --eval-interval 50000 --eval-episodes 20
