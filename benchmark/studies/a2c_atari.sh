#!/usr/bin/env bash
# Recurrent A2C on Pong and Breakout at budgets that a CPU reaches; for the published
# figures, write 10000000 in place of 2000000 below, and take another --runs-dir.
#
#   benchmark/studies/a2c_atari.sh --workers 2         any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/a2c_atari --out benchmark/results/a2c_atari
cd "$(dirname "$0")/../.." || exit
status=0

for setting in Pong:2000000 Breakout:2000000; do
    benchmark/run.sh --script a2c_lstm_atari.py --env-ids "ALE/${setting%:*}-v5" --seeds 1 2 3 \
        --name a2c --runs-dir runs/a2c_atari "$@" -- \
        --total-timesteps "${setting#*:}" --eval-interval 100000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
