#!/usr/bin/env bash
# One process that plays and learns by turns, beside one collector with one and with two
# asynchronous learners, which are three and four processes with the one that holds the networks:
# what asynchrony costs and brings. With RAY_ADDRESS set, they run on that cluster.
#
#   benchmark/studies/maddpg_distributed.sh --workers 1    any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/maddpg_distributed --out benchmark/results/maddpg_distributed
cd "$(dirname "$0")/../.." || exit
status=0

study() { # name of the setting; then its flags
    local name=$1
    shift
    benchmark/run.sh --script maddpg_smarts.py --env-ids mpe2/simple_spread_v3 \
        --seeds 1 2 3 --name "$name" --runs-dir runs/maddpg_distributed "${launcher[@]}" -- "$@" \
        --update-interval 24 --learning-starts 5000 --noise-decay-steps 60000 \
        --actor-learning-rate 1e-2 --critic-learning-rate 1e-2 --total-timesteps 100000 \
        --eval-interval 50000 --eval-episodes 100 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
}

launcher=("$@")
study single_process
study one_collector_one_learner --num-collectors 1 --num-learners 1
study one_collector_two_learners --num-collectors 1 --num-learners 2
exit "$status"
