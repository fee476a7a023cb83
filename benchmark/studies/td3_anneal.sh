#!/usr/bin/env bash
# TD3 on PyBullet's hopper and half-cheetah with rates that fall to 0 by the end of the run, so that
# the last policy is no matter of chance.
#
#   benchmark/studies/td3_anneal.sh --workers 3        any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/td3_anneal --out benchmark/results/td3_anneal
cd "$(dirname "$0")/../.." || exit

exec benchmark/run.sh --script td3_continuous.py --env-ids HopperBulletEnv-v0 \
    HalfCheetahBulletEnv-v0 --seeds 1 2 3 --name td3_anneal --runs-dir runs/td3_anneal "$@" -- \
    --total-timesteps 1000000 --anneal-learning-rate --eval-interval 25000 --eval-episodes 20
