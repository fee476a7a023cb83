#!/usr/bin/env bash
# DDPG on Pendulum-v1, the smallest task that shows it learn: minutes.
#
#   benchmark/studies/ddpg_pendulum.sh --workers 3     any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/ddpg_pendulum --out benchmark/results/ddpg_pendulum
cd "$(dirname "$0")/../.." || exit

exec benchmark/run.sh --script ddpg_continuous.py --env-ids Pendulum-v1 --seeds 1 2 3 --name ddpg \
    --runs-dir runs/ddpg_pendulum "$@" -- --total-timesteps 20000 --learning-starts 1000 \
    --eval-interval 1000 --eval-episodes 20
