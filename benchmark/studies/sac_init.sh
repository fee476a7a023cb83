#!/usr/bin/env bash
# How SAC's weights begin on DM Control: orthogonal against PyTorch's default.
#
#   benchmark/studies/sac_init.sh --workers 4   any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/sac_init --out benchmark/results/sac_init
cd "$(dirname "$0")/../.." || exit
status=0

for init in default orthogonal; do
    benchmark/run.sh --script sac_continuous.py --env-ids dm_control/cartpole-swingup-v0 dm_control/walker-walk-v0 --seeds 1 2 3 \
        --name "sac_$init" --runs-dir runs/sac_init "$@" -- \
        --weights-init "$init" --gamma 0.99 --tau 0.005 \
        --total-timesteps 500000 --eval-interval 25000 --learning-starts 1000 || status=$?
    ((status < 128)) || exit "$status" # stopped by the user
done
exit "$status"
