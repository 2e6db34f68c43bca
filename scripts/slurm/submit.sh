#!/usr/bin/env bash
# Submits the four stages of an experiment; each stage waits for the success of the stage before:
#
#   scripts/slurm/submit.sh --dataset mvip --experiment_name thesis --num_trials 8 \
#       --examples_per_class 1 2 4 8 16 --array 16 -- --gpus-per-task=1 --partition=gpu --time=4:00:00
#   scripts/slurm/submit.sh @scripts/reproduce/coco.args --array 40 -- --gpus-per-task=1
#
# Flags after -- go to sbatch. --dry_run prints the sbatch lines, and --help says more. Variables:
# ACTIVATE holds shell commands that activate Python (default: the .venv of this folder),
# EXTRA_SBATCH holds more flags of sbatch, and LAUNCH the launcher of the commands (default: python).
# The same command again completes missing work.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/scripts/slurm/activate.sh"
python -c 'import torch' 2> /dev/null || {
  echo "submit.sh: Python has no torch: install into $root/.venv, or let ACTIVATE activate it" >&2
  exit 2
}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec python -m semantic_aug.chain submit "$@"
