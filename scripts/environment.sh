# Sourced by the other scripts: sets $venv, and make_environment makes the virtual environment from
# files of requirements. It downloads nothing again while these files do not change.
venv=${VENV:-.venv}

make_environment() {
  local python=${PYTHON:-python3} wanted file arguments=()
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$0: Python 3.11 or newer is needed; name one with PYTHON=python3.12" >&2
    exit 2
  }
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  wanted=$(cat "$@" | sha256sum)
  grep -qsF "$wanted" "$venv/installed" && return
  for file in "$@"; do arguments+=(-r "$file"); done
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${arguments[@]}" || {
    echo "$0: the packages could not be installed; see above, then run this again" >&2
    exit 2
  }
  echo "$wanted" >> "$venv/installed"
}
