#!/usr/bin/env bash
# Study S5, claim C27: one process that acts and learns by turns, beside one collector with one and
# with two asynchronous learners, which are three and four processes with the one that holds the
# networks. On simple_spread for 100k steps, on the crossing for 50k. With RAY_ADDRESS set, they run
# on that cluster.
#
#   benchmark/studies/maddpg_distributed.sh --workers 1  any flag of run.sh, such as --smoke
#   python benchmark/plot.py runs/maddpg_distributed --out benchmark/results/maddpg_distributed
study=$(readlink -f "$0") && cd "${study%/*}/../.." || exit

spread="--update-interval 24 --learning-starts 5000 --noise-decay-steps 60000 --eval-episodes 100 \
    --actor-learning-rate 1e-2 --critic-learning-rate 1e-2 --total-timesteps 100000 \
    --env-ids mpe2/simple_spread_v3"
crossing="--total-timesteps 50000 --learning-starts 8192 --eval-episodes 50 \
    --env-ids smarts/intersection-4lane-v0"
one="--script maddpg_ray.py --num-collectors 1 --num-learners 1"
two="--script maddpg_ray.py --num-collectors 1 --num-learners 2"
exec benchmark/run.sh --runs-dir "runs/$(basename "$study" .sh)" --script maddpg_smarts.py \
    --setting single_process "$spread" --setting single_process "$crossing" \
    --setting one_collector_one_learner "$one $spread" \
    --setting one_collector_one_learner "$one $crossing" \
    --setting one_collector_two_learners "$two $spread" \
    --setting one_collector_two_learners "$two $crossing" "$@" -- --eval-interval 50000
