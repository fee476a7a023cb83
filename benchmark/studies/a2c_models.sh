#!/usr/bin/env bash
# A2C's three models: the difference of two frames, a stack of four frames, and an LSTM behind it;
# each with one game and an update every 768 steps.
#
#   benchmark/studies/a2c_models.sh --workers 4    any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/a2c_models --out benchmark/results/a2c_models
cd "$(dirname "$0")/../.." || exit
status=0

for model in linear cnn cnn-lstm; do
    benchmark/run.sh --script a2c_lstm_atari.py --env-ids ALE/Pong-v5 ALE/Breakout-v5 \
        --seeds 1 2 3 --name "a2c_$model" --runs-dir runs/a2c_models "$@" -- \
        --model "$model" \
        --num-envs 1 --chunk-size 768 --total-timesteps 10000000 --eval-interval 500000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
