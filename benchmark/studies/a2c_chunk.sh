#!/usr/bin/env bash
# How many steps A2C's gradient reaches back, and how many it learns from at a time: a single agent
# with chunks of 256, 512 and 768 steps.
#
#   benchmark/studies/a2c_chunk.sh --workers 4    any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/a2c_chunk --out benchmark/results/a2c_chunk
cd "$(dirname "$0")/../.." || exit
status=0

for chunk in 256 512 768; do
    benchmark/run.sh --script a2c_lstm_atari.py --env-ids ALE/Pong-v5 ALE/Breakout-v5 \
        --seeds 1 2 3 --name "a2c_chunk$chunk" --runs-dir runs/a2c_chunk "$@" -- \
        --num-envs 1 --chunk-size "$chunk" \
        --total-timesteps 10000000 --eval-interval 500000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
