#!/usr/bin/env bash
# SAC on PyBullet's hopper, with rates that fall to 0 by the end of the run: with noise that is new
# at every step, and with state-dependent exploration.
#
#   benchmark/studies/sac_hopper.sh --workers 3        any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/sac_hopper --out benchmark/results/sac_hopper
cd "$(dirname "$0")/../.." || exit
status=0

study() { # name of the setting; then its flags
    local name=$1
    shift
    benchmark/run.sh --script sac_continuous.py --env-ids HopperBulletEnv-v0 --seeds 1 2 3 \
        --name "$name" --runs-dir runs/sac_hopper "${launcher[@]}" -- "$@" \
        --total-timesteps 1000000 --anneal-learning-rate --bfloat16 --eval-interval 50000 \
        --eval-episodes 20 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
}

launcher=("$@")
study sac_bfloat16
study sac_sde_bfloat16 --use-sde --update-every 8
exit "$status"
