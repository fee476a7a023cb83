#!/usr/bin/env bash
# MADDPG, MADDPG with prioritised replay, and PPO with one policy for all, in light and in dense
# traffic. What they are to beat: python maddpg_smarts.py --evaluate keep-lane --eval-episodes 50
#
#   benchmark/studies/maddpg_ppo.sh --workers 4        any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/maddpg_ppo --out benchmark/results/maddpg_ppo
cd "$(dirname "$0")/../.." || exit
status=0

study() { # script, name of the setting; then its flags
    local script=$1 name=$2
    shift 2
    benchmark/run.sh --script "$script" --env-ids smarts/intersection-4lane-v0 --seeds 1 2 3 \
        --name "$name" --runs-dir runs/maddpg_ppo "${launcher[@]}" -- "$@" \
        --total-timesteps 100000 --eval-interval 50000 --eval-episodes 50 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
}

launcher=("$@")
for traffic in light dense; do
    study maddpg_smarts.py "maddpg_$traffic" --traffic "$traffic"
    study maddpg_smarts.py "maddpg_per_$traffic" --traffic "$traffic" --prioritized-replay
    study ppo_smarts.py "ppo_$traffic" --traffic "$traffic"
done
exit "$status"
