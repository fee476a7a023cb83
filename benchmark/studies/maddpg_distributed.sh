#!/usr/bin/env bash
# One process that plays and learns by turns, beside one collector and two asynchronous learners,
# which is four processes with the one that holds the networks: what asynchrony costs and brings.
# With RAY_ADDRESS set, the collector and the learners run on that cluster.
#
#   benchmark/studies/maddpg_distributed.sh --workers 1    any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/maddpg_distributed --out benchmark/results/maddpg_distributed
cd "$(dirname "$0")/../.." || exit
status=0

study() { # name of the setting; then its flags
    local name=$1
    shift
    benchmark/run.sh --script maddpg_smarts.py --env-ids smarts/intersection-4lane-v0 \
        --seeds 1 2 3 --name "$name" --runs-dir runs/maddpg_distributed "${launcher[@]}" -- "$@" \
        --total-timesteps 100000 --eval-interval 50000 --eval-episodes 50 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
}

launcher=("$@")
study single_process
study one_collector_two_learners --num-collectors 1 --num-learners 2
exit "$status"
