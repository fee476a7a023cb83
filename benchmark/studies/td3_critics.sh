#!/usr/bin/env bash
# Study S4, claim C22, its figures of target smoothing and several critics: one, two and three
# critics, with and without smoothing, all with delay 1. PyBullet's hopper and half-cheetah, 200k
# steps, reduced from 300k. bias.py trains as td3_continuous.py does, and logs with each evaluation
# the mean value of its states and the mean discounted return from them, whose difference is the
# bias.
#
#   benchmark/studies/td3_critics.sh --workers 2    any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/td3_critics --out benchmark/results/td3_critics
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

smooth="--target-noise-std 0.2" plain="--target-noise-std 0"
exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script benchmark/bias.py \
    --env-ids HopperBulletEnv-v0 HalfCheetahBulletEnv-v0 \
    --setting td3_1 "--num-critics 1 $plain" --setting td3_1_smooth "--num-critics 1 $smooth" \
    --setting td3_2 "--num-critics 2 $plain" --setting td3_2_smooth "--num-critics 2 $smooth" \
    --setting td3_3 "--num-critics 3 $plain" --setting td3_3_smooth "--num-critics 3 $smooth" \
    "$@" -- --policy-delay 1 --actor-learning-rate 1e-3 --critic-learning-rate 1e-3 \
    --gamma 0.99 --noise-std 0.2 --learning-starts 5000 --total-timesteps 200000 \
    --eval-interval 10000
