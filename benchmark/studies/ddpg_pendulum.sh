#!/usr/bin/env bash
# DDPG on Pendulum-v1, the smallest task that shows it learn: minutes.
#
#   benchmark/studies/ddpg_pendulum.sh --workers 3  any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/ddpg_pendulum --out benchmark/results/ddpg_pendulum
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script ddpg_continuous.py \
    --env-ids Pendulum-v1 --name ddpg "$@" -- \
    --total-timesteps 20000 --learning-starts 1000 --eval-interval 1000 --eval-episodes 20
