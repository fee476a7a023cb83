#!/usr/bin/env bash
# DDPG on PyBullet's hopper, where its evaluations swing by a thousand and more: with learning rates
# that fall to 0 by the end of the run, so that the last policy is not a matter of chance.
#
#   benchmark/studies/ddpg_hopper.sh --workers 3    any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/ddpg_hopper --out benchmark/results/ddpg_hopper
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script ddpg_continuous.py \
    --env-ids HopperBulletEnv-v0 --name ddpg_anneal "$@" -- \
    --total-timesteps 1000000 --anneal-lr --eval-interval 25000 --eval-episodes 20
