#!/usr/bin/env bash
# DDPG on PyBullet's hopper, where its evaluations swing by a thousand and more: with rates that fall
# to 0 by the end of the run, so that the last policy is no matter of chance.
#
#   benchmark/studies/ddpg_hopper.sh --workers 3       any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/ddpg_hopper --out benchmark/results/ddpg_hopper
cd "$(dirname "$0")/../.." || exit

exec benchmark/run.sh --script ddpg_continuous.py --env-ids HopperBulletEnv-v0 --seeds 1 2 3 \
    --name ddpg_anneal --runs-dir runs/ddpg_hopper "$@" -- --total-timesteps 1000000 \
    --anneal-learning-rate --eval-interval 25000 --eval-episodes 20
