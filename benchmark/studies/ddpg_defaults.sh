#!/usr/bin/env bash
# Study S4, claims C20, C21 and C23, its curves of DDPG's defaults on thirteen tasks, of three kinds
# of noise and of layer normalisation. Toys 100k steps, robots 300k, reduced from 1M. Parameter
# noise comes with layer normalisation, whose own part ddpg_layer_norm shows. The noises on
# MountainCar: ddpg_mountaincar.sh.
#
#   benchmark/studies/ddpg_defaults.sh --workers 2  any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/ddpg_defaults --out benchmark/results/ddpg_defaults
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

bullet="HopperBulletEnv-v0 HalfCheetahBulletEnv-v0 Walker2DBulletEnv-v0"
mujoco="Hopper-v5 HalfCheetah-v5 Walker2d-v5"
others="Ant-v5 Humanoid-v5 AntBulletEnv-v0 HumanoidBulletEnv-v0"
exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script ddpg_continuous.py \
    --setting ddpg "--env-ids Pendulum-v1 MountainCarContinuous-v0 LunarLanderContinuous-v3 \
        --total-timesteps 100000 --eval-interval 5000" \
    --setting ddpg "--env-ids $bullet $mujoco $others" \
    --setting ddpg_ou "--env-ids $bullet $mujoco --noise-type ou" \
    --setting ddpg_parameter "--env-ids $bullet $mujoco --noise-type parameter" \
    --setting ddpg_layer_norm "--layer-norm --env-ids HopperBulletEnv-v0 HalfCheetahBulletEnv-v0 \
        AntBulletEnv-v0 Hopper-v5 HalfCheetah-v5 Ant-v5" "$@" -- \
    --actor-learning-rate 1e-3 --critic-learning-rate 1e-3 --weights-init xavier \
    --bias-init zeros --learning-starts 5000 --tau 0.005 --gamma 0.99 --noise-std 0.2 \
    --actor-hidden-sizes 256 256 --critic-hidden-sizes 256 256 \
    --total-timesteps 300000 --eval-interval 10000
