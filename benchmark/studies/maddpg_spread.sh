#!/usr/bin/env bash
# MADDPG on MPE's simple_spread beside independent DDPG, which differs in its critics alone: each
# sees its own agent and no other. With the paper's learning rates and batch, and four times as many
# updates.
#
#   benchmark/studies/maddpg_spread.sh --workers 2     any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/maddpg_spread --out benchmark/results/maddpg_spread
cd "$(dirname "$0")/../.." || exit
status=0

for setting in maddpg:joint ddpg_independent:own; do
    benchmark/run.sh --script maddpg_smarts.py --env-ids mpe2/simple_spread_v3 --seeds 1 2 3 \
        --name "${setting%:*}" --runs-dir runs/maddpg_spread "$@" -- --critic "${setting#*:}" \
        --num-envs 8 --update-interval 24 --learning-starts 5000 --noise-decay-steps 60000 \
        --actor-learning-rate 1e-2 --critic-learning-rate 1e-2 --total-timesteps 1000000 \
        --eval-interval 50000 --eval-episodes 100 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
