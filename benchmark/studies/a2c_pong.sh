#!/usr/bin/env bash
# Study S2, claims C6 to C12 on Pong, its figures of models, temperature, learning rates, activation
# and workers, of chunks and of clipping (the study's sums over 768 steps as means): one changed at
# a time from a2c, which has the LSTM, one game, chunks of 768 steps, batch normalisation, weight
# decay 0.1 and a temperature that falls from 2 over 10,000 games, and over 500 in
# temperature_scaled, as 1M steps are about 1,000 games where the study had 40k. Three actions, as
# in the study. Asynchronous workers: a3c_atari.sh.
#
#   benchmark/studies/a2c_pong.sh --workers 2       any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/a2c_pong --out benchmark/results/a2c_pong
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script a2c_lstm_atari.py \
    --env-ids ALE/Pong-v5 --name a2c --setting a2c "" \
    --setting a2c_linear "--model linear --no-batch-norm" --setting a2c_cnn "--model cnn" \
    --setting a2c_stuck "--temperature-init 1" \
    --setting a2c_entropy "--temperature-init 1 --entropy-coef 0.01" \
    --setting a2c_temperature_scaled "--temperature-decay-episodes 500" \
    --setting a2c_rate1e-4 "--learning-rate 1e-4" \
    --setting a2c_rate1e-3_anneal "--anneal-lr" \
    --setting a2c_rate1e-4_anneal "--learning-rate 1e-4 --anneal-lr" \
    --setting a2c_silu "--activation silu" \
    --setting a2c_4_games "--num-envs 4 --chunk-size 192" \
    --setting a2c_16_games "--num-envs 16 --chunk-size 48" \
    --vary chunk-size 256 512 --vary max-grad-norm 1.3 6.5 inf \
    "$@" -- --actions NOOP RIGHT LEFT --num-envs 1 --chunk-size 768 \
    --batch-norm --weight-decay 0.1 --learning-rate 1e-3 \
    --no-anneal-lr --max-grad-norm 104 --entropy-coef 0 --temperature-init 2 \
    --temperature-decay-episodes 10000 --total-timesteps 1000000 --eval-interval 50000
