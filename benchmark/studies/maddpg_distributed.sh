#!/usr/bin/env bash
# One process that plays and learns by turns, beside one collector with one and with two
# asynchronous learners, which are three and four processes with the one that holds the networks:
# what asynchrony costs and brings. With RAY_ADDRESS set, they run on that cluster.
#
#   benchmark/studies/maddpg_distributed.sh --workers 1    any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/maddpg_distributed --out benchmark/results/maddpg_distributed
cd "$(dirname "$0")/../.." || exit
status=0

study() { # environment, name of the setting; then its flags
    local env_id=$1 name=$2
    shift 2
    benchmark/run.sh --script maddpg_smarts.py --env-ids "$env_id" --seeds 1 2 3 \
        --name "$name" --runs-dir runs/maddpg_distributed "${launcher[@]}" -- "$@" \
        --eval-interval 50000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
}

spread() { # its rates are ten and a hundred times those of the crossing
    study mpe2/simple_spread_v3 "$@" --update-interval 24 --learning-starts 5000 \
        --noise-decay-steps 60000 --actor-learning-rate 1e-2 --critic-learning-rate 1e-2 \
        --total-timesteps 100000 --eval-episodes 100
}

crossing() {
    study smarts/intersection-4lane-v0 "$@" --total-timesteps 50000 --eval-episodes 50
}

launcher=("$@")
for task in spread crossing; do
    "$task" single_process
    "$task" one_collector_one_learner --num-collectors 1 --num-learners 1
    "$task" one_collector_two_learners --num-collectors 1 --num-learners 2
done
exit "$status"
