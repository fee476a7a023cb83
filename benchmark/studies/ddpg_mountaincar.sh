#!/usr/bin/env bash
# DDPG's exploration where it decides everything: MountainCarContinuous-v0 rewards nothing but the
# summit, and takes a little for every move, so that an agent that has not been there learns to rest.
#
#   benchmark/studies/ddpg_mountaincar.sh --workers 4  any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/ddpg_mountaincar --out benchmark/results/ddpg_mountaincar
cd "$(dirname "$0")/../.." || exit
status=0

for setting in gaussian:0.1 ou:0.5 parameter:0.5 none:0; do
    noise=${setting%:*} std=${setting#*:}
    benchmark/run.sh --script ddpg_continuous.py --env-ids MountainCarContinuous-v0 --seeds 1 2 3 \
        --name "ddpg_$noise" --runs-dir runs/ddpg_mountaincar "$@" -- \
        --noise-type "$noise" --noise-std "$std" --gamma 0.99 --learning-starts 1000 \
        --actor-hidden-sizes 64 64 --critic-hidden-sizes 64 64 --total-timesteps 150000 \
        --eval-interval 5000 --eval-episodes 20 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
