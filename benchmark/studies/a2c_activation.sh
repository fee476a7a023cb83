#!/usr/bin/env bash
# A2C's activation between the layers, ReLU or SiLU, with and without batch normalisation between
# the convolutions.
#
#   benchmark/studies/a2c_activation.sh --workers 4    any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/a2c_activation --out benchmark/results/a2c_activation
cd "$(dirname "$0")/../.." || exit
status=0

for setting in relu:no-batch-norm relu:batch-norm silu:no-batch-norm silu:batch-norm; do
    benchmark/run.sh --script a2c_lstm_atari.py --env-ids ALE/Pong-v5 ALE/Breakout-v5 \
        --seeds 1 2 3 --name "a2c_${setting/:/_}" --runs-dir runs/a2c_activation "$@" -- \
        --activation "${setting%:*}" "--${setting#*:}" \
        --num-envs 1 --chunk-size 768 --total-timesteps 10000000 --eval-interval 500000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
