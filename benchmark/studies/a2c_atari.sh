#!/usr/bin/env bash
# Recurrent A2C on Pong and Breakout at 2M steps, which a CPU reaches; the published figures are
# after 10M.
#
#   benchmark/studies/a2c_atari.sh --workers 2      any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/a2c_atari --out benchmark/results/a2c_atari
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script a2c_lstm_atari.py \
    --env-ids ALE/Pong-v5 ALE/Breakout-v5 --name a2c "$@" -- \
    --total-timesteps 2000000 --eval-interval 100000
