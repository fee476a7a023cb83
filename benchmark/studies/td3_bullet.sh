#!/usr/bin/env bash
# Study S1, claims C2, C3 and C5, its table and figures of TD3 on four PyBullet robots: the study's
# settings (td3, td3_second), buffers, and noise that does not decay. 300k steps, reduced from up to
# 100k episodes; the noise is that of ddpg_bullet.sh.
#
#   benchmark/studies/td3_bullet.sh --workers 2     any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/td3_bullet --out benchmark/results/td3_bullet
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

rate() { echo "--actor-learning-rate $1 --critic-learning-rate $1"; }
exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script td3_continuous.py \
    --setting td3 "--env-ids HumanoidBulletEnv-v0 HopperBulletEnv-v0" \
    --setting td3 "--env-ids HalfCheetahBulletEnv-v0 --buffer-size 1000000" \
    --setting td3 "--env-ids Walker2DBulletEnv-v0 $(rate 1e-3)" \
    --setting td3_second "--env-ids HalfCheetahBulletEnv-v0 $(rate 1e-3)" \
    --setting td3_buffer100k "--env-ids HopperBulletEnv-v0 HalfCheetahBulletEnv-v0 \
        --buffer-size 100000" \
    --setting td3_buffer200k "--env-ids HalfCheetahBulletEnv-v0" \
    --setting td3_buffer1M "--env-ids HopperBulletEnv-v0 --buffer-size 1000000" \
    --setting td3_constant_noise "--env-ids HopperBulletEnv-v0 --noise-decay-steps 0" "$@" -- \
    --gamma 0.99 --tau 0.005 --batch-size 256 --buffer-size 200000 $(rate 3e-4) \
    --noise-type ou --noise-std 0.2 --noise-std-min 0.02 --noise-decay-steps 150000 \
    --learning-starts 10000 --total-timesteps 300000 --eval-interval 10000
