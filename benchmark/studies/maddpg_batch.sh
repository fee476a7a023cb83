#!/usr/bin/env bash
# Batches of 64 and of 1024 transitions, with uniform and with prioritised replay.
#
#   benchmark/studies/maddpg_batch.sh --workers 4      any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/maddpg_batch --out benchmark/results/maddpg_batch
cd "$(dirname "$0")/../.." || exit
status=0

for batch in 64 1024; do
    for replay in uniform prioritized; do
        flag=--prioritized-replay
        [[ $replay == prioritized ]] || flag=--no-prioritized-replay
        benchmark/run.sh --script maddpg_smarts.py --env-ids smarts/intersection-4lane-v0 \
            --seeds 1 2 3 --name "${replay}_batch$batch" --runs-dir runs/maddpg_batch "$@" -- \
            "$flag" --batch-size "$batch" --total-timesteps 100000 --eval-interval 50000 \
            --eval-episodes 50 || status=$?
        ((status < 128)) || exit "$status" # stopped by the user
    done
done
exit "$status"
