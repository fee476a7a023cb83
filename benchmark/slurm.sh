#!/usr/bin/env bash
# One task of the array that `benchmark/run.sh --backend slurm` submits. Put your cluster's
# partition, account and limits here.
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
# Before the limit, and at preemption where the cluster says so, a run is told to save; an evaluation
# on SMARTS, which takes up to five minutes, ends first. What SLURM requeues goes on from there;
# else give run.sh's command again.
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
root=$1
shift
exec bash "$root/benchmark/run.sh" --only "$SLURM_ARRAY_TASK_ID" "$@"
