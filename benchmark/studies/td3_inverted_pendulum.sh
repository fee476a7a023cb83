#!/usr/bin/env bash
# TD3's quick start, PyBullet's inverted pendulum, 10 minutes a run: in float32 and in bfloat16.
#
#   benchmark/studies/td3_inverted_pendulum.sh --workers 3   any flag of run.sh; --smoke for a trial
#   python benchmark/plot.py runs/td3_inverted_pendulum --out benchmark/results/td3_inverted_pendulum
cd "$(dirname "$0")/../.." || exit
status=0

for setting in td3:--no-bfloat16 td3_bfloat16:--bfloat16; do
    benchmark/run.sh --script td3_continuous.py --env-ids InvertedPendulumBulletEnv-v0 \
        --seeds 1 2 3 --name "${setting%:*}" --runs-dir runs/td3_inverted_pendulum "$@" -- \
        --total-timesteps 70000 --learning-starts 1000 --gamma 0.99 --eval-interval 5000 \
        "${setting#*:}" || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
