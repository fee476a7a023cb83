#!/usr/bin/env bash
# The longest gradient that A2C takes: 0.5, 5, 40, and any.
#
#   benchmark/studies/a2c_clip.sh --workers 4    any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/a2c_clip --out benchmark/results/a2c_clip
cd "$(dirname "$0")/../.." || exit
status=0

for length in 0.5 5 40 inf; do
    benchmark/run.sh --script a2c_lstm_atari.py --env-ids ALE/Pong-v5 ALE/Breakout-v5 \
        --seeds 1 2 3 --name "a2c_clip$length" --runs-dir runs/a2c_clip "$@" -- \
        --max-grad-norm "$length" \
        --num-envs 1 --chunk-size 768 --total-timesteps 10000000 --eval-interval 500000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
