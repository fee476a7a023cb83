#!/usr/bin/env bash
# MADDPG on MPE's simple_spread beside independent DDPG, whose critics see their own agent only. The
# paper's learning rates and batch, and four times as many updates.
#
#   benchmark/studies/maddpg_spread.sh --workers 2  any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/maddpg_spread --out benchmark/results/maddpg_spread
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script maddpg_smarts.py \
    --env-ids mpe2/simple_spread_v3 \
    --setting maddpg "--critic joint" --setting ddpg_independent "--critic own" "$@" -- \
    --num-envs 8 --update-interval 24 --learning-starts 5000 --noise-decay-steps 60000 \
    --actor-learning-rate 1e-2 --critic-learning-rate 1e-2 --total-timesteps 1000000 \
    --eval-interval 50000 --eval-episodes 100
