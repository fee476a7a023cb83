#!/usr/bin/env bash
# Prioritised replay: uniform, proportional and by rank, in light and in dense traffic.
#
#   benchmark/studies/maddpg_per.sh --workers 4        any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/maddpg_per --out benchmark/results/maddpg_per
cd "$(dirname "$0")/../.." || exit
status=0

study() { # name of the setting; then its flags
    local name=$1
    shift
    benchmark/run.sh --script maddpg_smarts.py --env-ids smarts/intersection-4lane-v0 \
        --seeds 1 2 3 --name "$name" --runs-dir runs/maddpg_per "${launcher[@]}" -- "$@" \
        --total-timesteps 100000 --eval-interval 50000 --eval-episodes 50 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
}

launcher=("$@")
for traffic in light dense; do
    study "uniform_$traffic" --traffic "$traffic"
    for variant in proportional rank; do
        study "${variant}_$traffic" --traffic "$traffic" --prioritized-replay \
            --per-variant "$variant"
    done
done
exit "$status"
