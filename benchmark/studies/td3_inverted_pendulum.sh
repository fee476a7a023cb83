#!/usr/bin/env bash
# Study S1, claim C1: the inverted pendulum, 70k steps, 12 minutes a run; TD3 also in bfloat16, and
# DDPG. The defaults but for gamma, which is the study's 0.99; its other settings are not known.
#
#   benchmark/studies/td3_inverted_pendulum.sh --workers 3  any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/td3_inverted_pendulum --out benchmark/results/td3_inverted_pendulum
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script td3_continuous.py \
    --env-ids InvertedPendulumBulletEnv-v0 \
    --setting td3 "--no-bfloat16" --setting td3_bfloat16 "--bfloat16" \
    --setting ddpg "--script ddpg_continuous.py --no-bfloat16" "$@" -- \
    --total-timesteps 70000 --learning-starts 1000 --gamma 0.99 --eval-interval 5000
