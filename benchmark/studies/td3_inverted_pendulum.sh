#!/usr/bin/env bash
# TD3's quick start: PyBullet's inverted pendulum, 10 minutes a run.
#
#   benchmark/studies/td3_inverted_pendulum.sh --workers 3   any flag of run.sh; --smoke for a trial
#   python benchmark/plot.py runs/td3_inverted_pendulum --out benchmark/results/td3_inverted_pendulum
cd "$(dirname "$0")/../.." || exit

exec benchmark/run.sh --script td3_continuous.py --env-ids InvertedPendulumBulletEnv-v0 \
    --seeds 1 2 3 --name td3 --runs-dir runs/td3_inverted_pendulum "$@" -- \
    --total-timesteps 70000 --learning-starts 1000 --gamma 0.99 --eval-interval 5000
