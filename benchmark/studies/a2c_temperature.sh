#!/usr/bin/env bash
# What keeps A2C exploring: nothing, the entropy bonus, or a temperature that falls to 1 from 2 or 5
# over a thousand games.
#
#   benchmark/studies/a2c_temperature.sh --workers 4    any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/a2c_temperature --out benchmark/results/a2c_temperature
cd "$(dirname "$0")/../.." || exit
status=0

for setting in none:1:0 entropy:1:0.01 temperature2:2:0 temperature5:5:0; do
    IFS=: read -r name init entropy <<< "$setting"
    benchmark/run.sh --script a2c_lstm_atari.py --env-ids ALE/Pong-v5 ALE/Breakout-v5 \
        --seeds 1 2 3 --name "a2c_$name" --runs-dir runs/a2c_temperature "$@" -- \
        --temperature-init "$init" --temperature-decay-episodes 1000 --entropy-coef "$entropy" \
        --num-envs 1 --chunk-size 768 --total-timesteps 10000000 --eval-interval 500000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
