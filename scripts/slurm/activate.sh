# Sourced with $root set: makes `python` the Python that has the packages.
if [ -n "${ACTIVATE:-}" ]; then
  set +u # scripts of modules and conda use variables that may be unset
  eval "$ACTIVATE" || { echo "ACTIVATE failed with status $?: $ACTIVATE" >&2; exit 2; }
  set -u
elif [ -f "${VENV:-$root/.venv}/bin/activate" ]; then
  source "${VENV:-$root/.venv}/bin/activate"
fi
