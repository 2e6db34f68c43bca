#!/usr/bin/env bash
# Make the whole sample: meshes, renders, few-shot photos, backbone, autoencoder, diffusion, sheets.
#
#   bash sample/build/all.sh            everything, into sample/ (hours on two cores; resumable)
#   bash sample/build/all.sh --quick    the same chain, tiny, into a temporary folder (two minutes)
#
# Large intermediate files go to $SAMPLE_CACHE (default: sample/build/cache). The same command resumes
# a killed run.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=sample/build
# Threads must wait without spinning: on a busy machine spinning makes everything much slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
for module in bd_warehouse build123d trimesh embreex diffusers; do
  if ! python -c "import importlib.util as u, sys; sys.exit(u.find_spec('$module') is None)"; then
    echo "all.sh: $module is missing; pip install -r $build/requirements.txt" >&2
    exit 2
  fi
done

if [ "${1:-}" = "--quick" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cache=$work/cache out=$work/sample sheets=$work/sheets quick=--quick
  count=240 backbone=12 autoencoder=12 diffusion=12 decoder=12 controlnet=4 masker=4
  bounds="--variants 1 --trials 1" sheet="--steps 4"
elif [ $# -gt 0 ]; then
  echo "all.sh: unknown argument '$1'; expected --quick or nothing" >&2
  exit 2
else
  cache=${SAMPLE_CACHE:-$build/cache} out=sample sheets=docs/sample quick=
  count=22000 backbone=2500 autoencoder=2000 diffusion=6000 decoder=3000 controlnet=4000 masker=4500 bounds= sheet=
fi

run() { echo "== $*"; python "$build/$1.py" "${@:2}" --cache "$cache"; }
run parts $quick
run make_data pretrain --count $count $quick
run make_data backbone --count $count $quick
run make_data mvip --out "$out" $quick
run train_backbone --steps $backbone --out "$out/backbone"
run train_autoencoder --steps $autoencoder --backbone "$out/backbone"
run train_diffusion --steps $diffusion --out "$out/model"
run train_autoencoder --decoder "$out/model" --steps $decoder --backbone "$out/backbone"
run train_controlnet --steps $controlnet --model "$out/model" --out "$out/controlnet"
run train_masker --steps $masker --out "$out/masker"
run individuals --out "$out/individuals.json" $quick
run edit_bounds --mvip "$out/mvip" --backbone "$out/backbone" $bounds $quick
run sheets --sample "$out" --out "$sheets" $sheet $quick
for file in "$out/model/model_index.json" "$out/controlnet/config.json" "$out/backbone/config.json" "$out/masker/config.json" "$sheets/strengths.webp"; do
  [ -s "$file" ] || { echo "all.sh: $file was not made" >&2; exit 1; }
done
echo "done: $out"
