#!/usr/bin/env bash
# SAC's temperature on DM Control: fixed at four values, and learnt from four beginnings. Where an
# alpha is learnt it cannot begin at 0, whose logarithm is not a number: 0.001 stands for it.
#
#   benchmark/studies/sac_alpha.sh --workers 4         any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/sac_alpha --out benchmark/results/sac_alpha
cd "$(dirname "$0")/../.." || exit
status=0

study() { # name; then the flags of the temperature
    local name=$1
    shift
    benchmark/run.sh --script sac_continuous.py --seeds 1 2 3 \
        --env-ids dm_control/cartpole-swingup-v0 dm_control/walker-walk-v0 \
        --name "$name" --runs-dir runs/sac_alpha "${launcher[@]}" -- "$@" --gamma 0.99 \
        --tau 0.005 --total-timesteps 500000 --eval-interval 25000 --learning-starts 1000 ||
        status=$?
    ((status < 128)) || exit "$status" # stopped by the user
}

launcher=("$@")
for alpha in 0 0.02 0.04 0.08; do
    study "sac_fixed$alpha" --no-autotune --alpha "$alpha"
done
for alpha in 0.001 0.02 0.04 0.08; do
    study "sac_learnt$alpha" --init-alpha "$alpha"
done
exit "$status"
