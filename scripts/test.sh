#!/usr/bin/env bash
# Makes a virtual environment from the project's files, lints, and runs the tests, offline and on
# the CPU. Arguments go to pytest: bash scripts/test.sh -m slow, bash scripts/test.sh -k records.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

make_environment requirements.txt tests/requirements.txt
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
export HF_HUB_OFFLINE=1
run() { "$venv/bin/python" -m pytest -m "not slow and not gpu and not slurm" "$@"; }
# pytest's rewriting of assertions explains failures, but takes 15 s: only failed tests run with it,
# a second time.
run -n auto --dist worksteal --assert=plain "$@" || {
  status=$?
  [ $status -ne 1 ] || run "$@" --last-failed --tb=long || true
  exit $status
}
