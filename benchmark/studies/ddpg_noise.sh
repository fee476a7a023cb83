#!/usr/bin/env bash
# DDPG's exploration: independent Gaussian noise, correlated Ornstein-Uhlenbeck noise, and noise on
# the actor's parameters, on a pendulum and a hopper (MountainCarContinuous-v0: ddpg_mountaincar.sh).
#
#   benchmark/studies/ddpg_noise.sh --workers 4        any flag of run.sh; --smoke for a quick trial
#   python benchmark/plot.py runs/ddpg_noise --out benchmark/results/ddpg_noise
cd "$(dirname "$0")/../.." || exit
status=0

study() { # length, interval of evaluations, environments; then every kind of noise
    local steps=$1 interval=$2 noise std
    shift 2
    # Deviations: Gaussian as in TD3's paper, OU as RL Zoo solves MountainCarContinuous-v0, the
    # distance between actions as in Plappert et al. 2018.
    for setting in gaussian:0.1 ou:0.5 parameter:0.2; do
        noise=${setting%:*} std=${setting#*:}
        benchmark/run.sh --script ddpg_continuous.py --env-ids "$@" --seeds 1 2 3 \
            --name "ddpg_$noise" --runs-dir runs/ddpg_noise "${launcher[@]}" -- \
            --noise-type "$noise" --noise-std "$std" --total-timesteps "$steps" \
            --learning-starts $((steps / 100)) --eval-interval "$interval" \
            --save-interval $((steps / 10)) || status=$?
        ((status < 128)) || exit "$status" # stopped by the user
    done
}

launcher=("$@")
study 100000 5000 Pendulum-v1
study 1000000 25000 HopperBulletEnv-v0
exit "$status"
