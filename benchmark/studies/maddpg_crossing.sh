#!/usr/bin/env bash
# Study S5, claims C24 (PPO with shared weights), C25 (prioritised replay) and C26 (batch 64 against
# 1024) on the crossing, in light and dense traffic. 200k steps; the study's length is four hours of
# wall clock. The baseline: python maddpg_smarts.py --evaluate keep-lane --eval-episodes 50
#
#   benchmark/studies/maddpg_crossing.sh --workers 2  any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/maddpg_crossing --out benchmark/results/maddpg_crossing
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

light="--traffic light" dense="--traffic dense"
exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script maddpg_smarts.py \
    --env-ids smarts/intersection-4lane-v0 \
    --setting maddpg_light "$light" --setting maddpg_dense "$dense" \
    --setting ppo_light "--script ppo_smarts.py $light" \
    --setting ppo_dense "--script ppo_smarts.py $dense" \
    --setting maddpg_rank_light "--prioritized-replay --per-variant rank $light" \
    --setting maddpg_rank_dense "--prioritized-replay --per-variant rank $dense" \
    --setting maddpg_proportional_light "--prioritized-replay --per-variant proportional $light" \
    --setting maddpg_proportional_dense "--prioritized-replay --per-variant proportional $dense" \
    --setting maddpg_batch64_light "--batch-size 64 $light" \
    --setting maddpg_batch64_dense "--batch-size 64 $dense" "$@" -- \
    --total-timesteps 200000 --eval-interval 20000 --eval-episodes 50
