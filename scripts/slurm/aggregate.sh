#!/usr/bin/env bash
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@60
# Merges the words of all trials, in seconds.
# submit.sh submits this script; by hand, from this project's folder:
#   sbatch scripts/slurm/aggregate.sh --experiment_name thesis
source "${DA_FUSION_ROOT:-$SLURM_SUBMIT_DIR}/scripts/slurm/job.sh"
run_stage aggregate "$@"
