#!/usr/bin/env bash
# Measurements that need a GPU, within six minutes, without a network: tests, generation, words, the
# classifier. One JSON line per row goes into $OUT/rows.jsonl as soon as it is measured.
#
#   WHEELS=folder bash benchmarks/on_gpu.sh                 # one GPU, into output/gpu
#   bash benchmarks/on_gpu.sh --device cpu --quick          # a short try of every row, with the sample
#
# The Python (PYTHON, default python3) needs torch 2.11 and transformers 5.17 or newer, accelerate,
# peft, safetensors, numpy, scipy, Pillow, pandas, matplotlib, tensorboard, tqdm; pytest and
# hypothesis for the tests. Nothing here needs this project's exact versions. If diffusers, kornia,
# kornia_rs and pycocotools are missing there, fetch them on a machine with a network, for the
# Python of the GPU's machine (here 3.12):
#
#   pip download --only-binary=:all: --no-deps --python-version 3.12 --dest wheels \
#     --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
#     diffusers==0.42.1 kornia==0.9.0 kornia_rs==0.2.0 pycocotools==2.0.11
#
# The tracked files of this project and these wheels are less than 64 MiB together.
set -euo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-output/gpu} HF_HUB_OFFLINE=1
python=${PYTHON:-python3}
mkdir -p "$OUT"
if [ -n "${WHEELS:-}" ]; then
  packages=$(mktemp -d)
  trap 'rm -rf "$packages"' EXIT
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
    --target "$packages" "$WHEELS"/*.whl
  export PYTHONPATH="$packages${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" benchmarks/on_gpu.py --out "$OUT" "$@"
