#!/usr/bin/env bash
# TD3 on PyBullet's hopper and half-cheetah with learning rates that fall to 0 by the end of the
# run, so that the last policy is not a matter of chance: the defaults, and the paper's networks,
# batch and learning rates.
#
#   benchmark/studies/td3_anneal.sh --workers 3     any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/td3_anneal --out benchmark/results/td3_anneal
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script td3_continuous.py \
    --setting td3_anneal_500k "--env-ids HopperBulletEnv-v0 --total-timesteps 500000 \
        --eval-interval 25000" \
    --setting td3_paper_bfloat16 "--env-ids HalfCheetahBulletEnv-v0 HopperBulletEnv-v0 --bfloat16 \
        --actor-hidden-sizes 400 300 --critic-hidden-sizes 400 300 --batch-size 100 \
        --actor-learning-rate 1e-3 --critic-learning-rate 1e-3" "$@" -- \
    --total-timesteps 1000000 --eval-interval 50000 --anneal-lr --eval-episodes 20
