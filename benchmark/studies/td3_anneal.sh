#!/usr/bin/env bash
# TD3 on PyBullet's hopper and half-cheetah with rates that fall to 0 by the end of the run, so that
# the last policy is no matter of chance: the defaults, and the paper's networks, batch and rates.
#
#   benchmark/studies/td3_anneal.sh --workers 3        any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/td3_anneal --out benchmark/results/td3_anneal
cd "$(dirname "$0")/../.." || exit
status=0

study() { # name of the setting, its environment, its length; then its flags
    local name=$1 env_id=$2 steps=$3
    shift 3
    benchmark/run.sh --script td3_continuous.py --env-ids "$env_id" --seeds 1 2 3 \
        --name "$name" --runs-dir runs/td3_anneal "${launcher[@]}" -- "$@" \
        --total-timesteps "$steps" --anneal-learning-rate --eval-episodes 20 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
}

launcher=("$@")
study td3_anneal_500k HopperBulletEnv-v0 500000 --eval-interval 25000
for env_id in HalfCheetahBulletEnv-v0 HopperBulletEnv-v0; do
    study td3_paper_bfloat16 "$env_id" 1000000 --eval-interval 50000 --bfloat16 \
        --actor-hidden-sizes 400 300 --critic-hidden-sizes 400 300 --batch-size 100 \
        --actor-learning-rate 1e-3 --critic-learning-rate 1e-3
done
exit "$status"
