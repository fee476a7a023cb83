#!/usr/bin/env bash
# DDPG's exploration where it decides everything (study S4, claim C21, and its figure of the noises
# on MountainCar): MountainCarContinuous-v0 rewards only the summit and charges for every move, so
# that an agent that has not been there learns to rest. 150k steps; three kinds of noise, and none.
#
#   benchmark/studies/ddpg_mountaincar.sh --workers 4  any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/ddpg_mountaincar --out benchmark/results/ddpg_mountaincar
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script ddpg_continuous.py \
    --env-ids MountainCarContinuous-v0 \
    --setting ddpg_gaussian "--noise-type gaussian --noise-std 0.1" \
    --setting ddpg_ou "--noise-type ou --noise-std 0.5" \
    --setting ddpg_parameter "--noise-type parameter --noise-std 0.5" \
    --setting ddpg_none "--noise-std 0" "$@" -- \
    --gamma 0.99 --learning-starts 1000 --actor-hidden-sizes 64 64 --critic-hidden-sizes 64 64 \
    --total-timesteps 150000 --eval-interval 5000 --eval-episodes 20
