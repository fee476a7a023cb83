#!/usr/bin/env bash
# Runners for the race in the stadium: TD3 and SAC on four PyBullet robots, 300k steps, one seed.
#
#   benchmark/studies/stadium.sh --workers 4     any flag of run.sh, such as --smoke
#   python scenarios/stadium/race.py runs/stadium/HopperBulletEnv-v0__sac__1 runs/stadium/...
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --seeds 1 \
    --env-ids HopperBulletEnv-v0 Walker2DBulletEnv-v0 HalfCheetahBulletEnv-v0 AntBulletEnv-v0 \
    --setting td3 "--script td3_continuous.py" --setting sac "--script sac_continuous.py" "$@" -- \
    --total-timesteps 300000 --anneal-lr --bfloat16
