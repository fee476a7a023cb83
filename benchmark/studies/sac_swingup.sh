#!/usr/bin/env bash
# Study S3, claims C13 to C18 on cartpole-swingup, its figures of gamma, tau, the depth, the
# initialisation and the learning rates: one changed at a time from sac, which has gamma 0.99, tau
# 0.005, two layers and the rates 0.002 and 0.006. For C15 also temperatures: fixed, and learned
# from several initial values. 50k steps (the study: 100k), each action held for 2 of them (the
# study: 1), 3 episodes in each evaluation, and bfloat16, to save time.
#
#   benchmark/studies/sac_swingup.sh --workers 2    any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/sac_swingup --out benchmark/results/sac_swingup
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

wide="256 256"
exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script sac_continuous.py \
    --env-ids dm_control/cartpole-swingup-v0 --name sac --setting sac "" \
    --vary gamma 0.8 0.95 0.86 0.9 --vary tau 0.05 0.01 0.1 0.2 \
    --setting sac_depth1 "--actor-hidden-sizes 256 --critic-hidden-sizes 256" \
    --setting sac_depth3 "--actor-hidden-sizes $wide 256 --critic-hidden-sizes $wide 256" \
    --setting sac_depth4 "--actor-hidden-sizes $wide $wide --critic-hidden-sizes $wide $wide" \
    --setting sac_orthogonal "--weights-init orthogonal" \
    --setting sac_normal "--weights-init normal --bias-init zeros" \
    --setting sac_rates_half "--actor-learning-rate 0.001 --critic-learning-rate 0.003" \
    --setting sac_rates_double "--actor-learning-rate 0.004 --critic-learning-rate 0.012" \
    --setting sac_rates3e-4 "--actor-learning-rate 3e-4 --critic-learning-rate 3e-4" \
    --setting sac_rates1e-3 "--actor-learning-rate 1e-3 --critic-learning-rate 1e-3" \
    --vary init-alpha 0.001 0.01 0.07 0.074 0.08 \
    --setting sac_fixed0.01 "--no-autotune --init-alpha 1 --alpha 0.01" \
    --setting sac_fixed0.05 "--no-autotune --init-alpha 1 --alpha 0.05" \
    --setting sac_fixed0.074 "--no-autotune --init-alpha 1 --alpha 0.074" \
    "$@" -- --action-repeat 2 --bfloat16 --gamma 0.99 --tau 0.005 \
    --actor-hidden-sizes $wide --critic-hidden-sizes $wide \
    --actor-learning-rate 0.002 --critic-learning-rate 0.006 --init-alpha 0.05 \
    --learning-starts 1000 --total-timesteps 50000 --eval-interval 2500 --eval-episodes 3
