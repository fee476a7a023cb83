#!/usr/bin/env bash
# PPO on Pong and Breakout at 2M steps, which a CPU reaches; the published figures are after 10M.
#
#   benchmark/studies/ppo_atari.sh --workers 2      any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/ppo_atari --out benchmark/results/ppo_atari
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script ppo_atari.py \
    --env-ids ALE/Pong-v5 ALE/Breakout-v5 --name ppo "$@" -- \
    --total-timesteps 2000000 --eval-interval 250000
