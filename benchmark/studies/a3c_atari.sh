#!/usr/bin/env bash
# Study S2, claim C12: A3C with 1, 4 and 16 asynchronous workers on Pong and Breakout, beside
# synchronous A2C with as many games. 1M steps; the study: about 40,000 games.
#
#   benchmark/studies/a3c_atari.sh --workers 1      any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/a3c_atari --out benchmark/results/a3c_atari
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script a3c_lstm_atari.py \
    --env-ids ALE/Pong-v5 ALE/Breakout-v5 \
    --setting a3c_1 "--num-workers 1" --setting a3c_4 "--num-workers 4" \
    --setting a3c_16 "--num-workers 16" \
    --setting a2c_1 "--script a2c_lstm_atari.py --num-envs 1" \
    --setting a2c_4 "--script a2c_lstm_atari.py --num-envs 4" \
    --setting a2c_16 "--script a2c_lstm_atari.py --num-envs 16" "$@" -- \
    --total-timesteps 1000000 --eval-interval 50000
