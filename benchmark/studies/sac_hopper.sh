#!/usr/bin/env bash
# SAC on PyBullet's hopper, with learning rates that fall to 0 by the end of the run. The results
# also hold one run with state-dependent exploration, which the script had until November 2026.
#
#   benchmark/studies/sac_hopper.sh --workers 3     any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/sac_hopper --out benchmark/results/sac_hopper
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script sac_continuous.py \
    --env-ids HopperBulletEnv-v0 --name sac_bfloat16 "$@" -- \
    --total-timesteps 1000000 --anneal-lr --bfloat16 --eval-interval 50000 --eval-episodes 20
