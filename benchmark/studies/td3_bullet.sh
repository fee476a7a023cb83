#!/usr/bin/env bash
# TD3 on PyBullet: what learning rates from 1e-5 to 1e-3 and buffers from 100k to 1M do, one
# changed at a time, with an actor of 256 units a layer and a critic of 512; and the defaults.
#
#   benchmark/studies/td3_bullet.sh --workers 4        any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/td3_bullet --out benchmark/results/td3_bullet
cd "$(dirname "$0")/../.." || exit
status=0

study() { # name of the setting; then its flags
    local name=$1
    shift
    benchmark/run.sh --script td3_continuous.py --seeds 1 2 3 --env-ids HopperBulletEnv-v0 \
        Walker2DBulletEnv-v0 HalfCheetahBulletEnv-v0 AntBulletEnv-v0 HumanoidBulletEnv-v0 \
        --name "$name" --runs-dir runs/td3_bullet "${launcher[@]}" -- "$@" \
        --total-timesteps 1000000 --learning-starts 10000 --eval-interval 25000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
}

launcher=("$@")
study td3_default
for setting in 1e-5:200000 1e-4:200000 1e-3:200000 1e-4:100000 1e-4:1000000; do
    rate=${setting%:*} buffer=${setting#*:}
    study "td3_lr${rate}_buffer$((buffer / 1000))k" \
        --actor-learning-rate "$rate" --critic-learning-rate "$rate" --buffer-size "$buffer" \
        --actor-hidden-sizes 256 256 --critic-hidden-sizes 512 512
done
exit "$status"
