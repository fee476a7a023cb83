#!/usr/bin/env bash
# Study S3, claim C13: does a step take as long with a gamma of 0.99 as with 0.8? The other studies
# share the machine with other work, and cannot tell. 10k steps, one run after the other, on a
# machine that does nothing else.
#
#   benchmark/studies/sac_seconds.sh --workers 1    any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/sac_seconds --out benchmark/results/sac_seconds
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script sac_continuous.py \
    --env-ids dm_control/cartpole-balance-v0 dm_control/cartpole-swingup-v0 \
    --setting sac "--gamma 0.99" --setting sac_gamma0.8 "--gamma 0.8" "$@" -- \
    --learning-starts 1000 --total-timesteps 10000 --eval-interval 5000
