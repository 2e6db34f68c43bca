# Sourced by the batch scripts: run_stage COMMAND FLAG... runs one of the four commands.
#
# Before its time limit the job gets USR1 (--signal in the batch scripts). The command then writes
# checkpoints and ends, and the job goes back into the queue. This happens at most MAX_REQUEUES times
# (default 50), because a step that is longer than the time limit would never end.
set -uo pipefail
root=${DA_FUSION_ROOT:-$SLURM_SUBMIT_DIR}
source "$root/scripts/slurm/activate.sh"
[ ! -d "$root/semantic_aug" ] || export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" # not installed

run_stage() {
  local name=$1 restarts=${SLURM_RESTART_COUNT:-0} asked="" repeating pid status again
  local job=$SLURM_JOB_ID
  # The last task of an array has the array's id, which would mean all tasks.
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  shift
  echo "job $job, run $((restarts + 1)) on $(hostname), $(date "+%Y-%m-%d %H:%M:%S")"
  # A launcher such as accelerate launch would die of USR1; our commands handle it themselves.
  (
    trap "" USR1
    exec ${LAUNCH:-python} -m semantic_aug "$name" "$@"
  ) &
  pid=$!
  trap 'asked=yes; trap "" USR1; pass_on "$pid" & repeating=$!' USR1
  wait "$pid"
  status=$?
  if [ -n "$asked" ]; then # USR1 may have interrupted the first wait
    wait "$pid"
    again=$?
    [ "$again" -eq 127 ] || status=$again # 127: it had ended already
    kill "$repeating" 2>/dev/null
    if [ "$status" -ne 0 ]; then
      if [ "$restarts" -ge "${MAX_REQUEUES:-50}" ]; then
        echo "this job has been requeued $restarts times: it needs a longer --time" >&2
      else
        echo "asked to end: goes back into the queue"
        scontrol requeue "$job"
      fi
    fi
  fi
  exit "$status"
}

# Signals a process and all its descendants until it ends: `scancel --full` does not reach a
# launcher's processes, which have their own sessions, and a starting command does not listen yet.
pass_on() {
  while kill -0 "$1"; do
    tell "$1"
    sleep 2
  done
} >/dev/null 2>&1

tell() {
  local child
  for child in $(pgrep -P "$1"); do
    tell "$child"
  done
  kill -USR1 "$1"
}
