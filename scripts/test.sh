#!/usr/bin/env bash
# Makes a virtual environment from the project's files, lints, and runs the tests, offline and on
# the CPU. Arguments go to pytest: bash scripts/test.sh -m slow, bash scripts/test.sh -k records.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "test.sh: Python 3.11 or newer is needed; name one with PYTHON=python3.12" >&2
  exit 2
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# Nothing is fetched again while the lists of packages stay as they are.
wanted=$(cat requirements.txt tests/requirements.txt | sha256sum)
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -r requirements.txt -r tests/requirements.txt
  echo "$wanted" > "$venv/installed"
fi

"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
HF_HUB_OFFLINE=1 "$venv/bin/python" -m pytest -m "not slow and not gpu and not slurm" "$@"
