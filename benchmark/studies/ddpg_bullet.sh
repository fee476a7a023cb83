#!/usr/bin/env bash
# Study S1, claims C2 to C5, its table and figures of DDPG on four PyBullet robots: the study's
# settings (ddpg), TD3's in their place (ddpg_as_td3), buffers, widths, and noise that does not
# decay. 300k steps, reduced from up to 100k episodes. The deviations of the study's
# Ornstein-Uhlenbeck noise are not known: the paper's 0.2, which falls to 0.02 over half of the run.
#
#   benchmark/studies/ddpg_bullet.sh --workers 2    any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/ddpg_bullet --out benchmark/results/ddpg_bullet
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

hopper="--env-ids HopperBulletEnv-v0 --actor-learning-rate 3e-4 --critic-learning-rate 3e-4"
cheetah="--env-ids HalfCheetahBulletEnv-v0 --actor-learning-rate 1e-3 --critic-learning-rate 1e-3"
exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script ddpg_continuous.py \
    --setting ddpg "$hopper" \
    --setting ddpg "$cheetah --buffer-size 1000000 --critic-hidden-sizes 512 512" \
    --setting ddpg "--env-ids Walker2DBulletEnv-v0 --tau 0.001 --critic-hidden-sizes 512 512 \
        --actor-learning-rate 1e-4 --critic-learning-rate 1e-4" \
    --setting ddpg "--env-ids HumanoidBulletEnv-v0 --tau 0.001 --batch-size 1024 \
        --buffer-size 1000000 --actor-learning-rate 1e-5 --critic-learning-rate 1e-5" \
    --setting ddpg_as_td3 "--env-ids Walker2DBulletEnv-v0 \
        --actor-learning-rate 1e-3 --critic-learning-rate 1e-3" \
    --setting ddpg_as_td3 "--env-ids HumanoidBulletEnv-v0 \
        --actor-learning-rate 3e-4 --critic-learning-rate 3e-4" \
    --setting ddpg_buffer100k "$hopper --buffer-size 100000" \
    --setting ddpg_buffer1M "$hopper --buffer-size 1000000" \
    --setting ddpg_buffer100k "$cheetah --buffer-size 100000 --critic-hidden-sizes 512 512" \
    --setting ddpg_buffer200k "$cheetah --critic-hidden-sizes 512 512" \
    --setting ddpg_256_256 "$cheetah --buffer-size 1000000" \
    --setting ddpg_512_512 "$cheetah --buffer-size 1000000 --actor-hidden-sizes 512 512 \
        --critic-hidden-sizes 512 512" \
    --setting ddpg_constant_noise "$hopper --noise-decay-steps 0" "$@" -- \
    --gamma 0.99 --tau 0.005 --batch-size 256 --buffer-size 200000 --learning-starts 10000 \
    --noise-type ou --noise-std 0.2 --noise-std-min 0.02 --noise-decay-steps 150000 \
    --total-timesteps 300000 --eval-interval 10000
