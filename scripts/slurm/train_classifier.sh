#!/usr/bin/env bash
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@60
# Trains and evaluates the classifiers of this task's trials.
# submit.sh submits this script; by hand, from this project's folder:
#   sbatch --array=0-15 --gpus-per-task=1 scripts/slurm/train_classifier.sh --dataset mvip --experiment_name thesis
source "${DA_FUSION_ROOT:-$SLURM_SUBMIT_DIR}/scripts/slurm/job.sh"
run_stage train-classifier "$@"
