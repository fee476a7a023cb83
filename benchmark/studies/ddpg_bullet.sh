#!/usr/bin/env bash
# DDPG on PyBullet: what learning rates from 1e-5 to 1e-3 and buffers from 100k to 1M do, one
# changed at a time, with an actor of 256 units a layer and a critic of 512.
#
#   benchmark/studies/ddpg_bullet.sh --workers 4       any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/ddpg_bullet --out benchmark/results/ddpg_bullet
cd "$(dirname "$0")/../.." || exit
status=0

for setting in 1e-5:200000 1e-4:200000 1e-3:200000 1e-4:100000 1e-4:1000000; do
    rate=${setting%:*} buffer=${setting#*:}
    benchmark/run.sh --script ddpg_continuous.py --seeds 1 2 3 --env-ids HopperBulletEnv-v0 \
        Walker2DBulletEnv-v0 HalfCheetahBulletEnv-v0 AntBulletEnv-v0 HumanoidBulletEnv-v0 \
        --name "ddpg_lr${rate}_buffer$((buffer / 1000))k" --runs-dir runs/ddpg_bullet "$@" -- \
        --actor-learning-rate "$rate" --critic-learning-rate "$rate" --buffer-size "$buffer" \
        --actor-hidden-sizes 256 256 --critic-hidden-sizes 512 512 --total-timesteps 1000000 \
        --learning-starts 10000 --eval-interval 25000 --save-interval 50000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
