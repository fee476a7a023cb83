#!/usr/bin/env bash
# A2C with 1, 4 and 16 games side by side; published asynchronous runs with as many workers are in
# benchmark/results/README.md.
#
#   benchmark/studies/a2c_workers.sh --workers 4    any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/a2c_workers --out benchmark/results/a2c_workers
cd "$(dirname "$0")/../.." || exit
status=0

for workers in 1 4 16; do
    benchmark/run.sh --script a2c_lstm_atari.py --env-ids ALE/Pong-v5 ALE/Breakout-v5 \
        --seeds 1 2 3 --name "a2c_workers$workers" --runs-dir runs/a2c_workers "$@" -- \
        --num-envs "$workers" \
        --total-timesteps 10000000 --eval-interval 500000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
