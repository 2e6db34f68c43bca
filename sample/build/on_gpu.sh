#!/usr/bin/env bash
# Make the generator (autoencoder, text encoder, UNet, ControlNet), backbones and masker in minutes
# on one GPU.
#
#   python sample/build/parts.py --cache CACHE --pack meshes.npz     # where the CAD packages are
#   bash sample/build/on_gpu.sh meshes.npz OUT                       # needs torch, diffusers, embreex
#
# Renders are made on all cores meanwhile. Every stage has a share of the time, ends in time, is
# tried twice, and leaves its result so far to the next stage. OUT gets first versions and later
# better versions: model.tar.NN, controlnet.tar.NN, backbone.tar.NN, catalogue.tar.NN and
# masker.tar.NN (pieces of 15 MiB: `cat model.tar.* | tar x -C sample`), generator.png, logs.txt.
# Environment variables change the end of stages, in seconds after the start, and the batch sizes.
set -u
if [ $# -ne 2 ] || [ ! -s "${1:-}" ]; then
  echo "on_gpu.sh: expected MESHES.npz (parts.py --pack makes it) and a folder for results" >&2
  exit 2
fi
meshes=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "$0")/../.."
build=sample/build
began=$(date +%s)
SECONDS=0
renders_end=${RENDERS_END:-98} autoencoder_end=${AUTOENCODER_END:-106} unet_end=${UNET_END:-372}
last_end=${LAST_END:-418} end=${END:-440}
renders=${RENDERS:-200000} first=${FIRST_RENDERS:-10000} renders_of_backbone=${RENDERS:-40000}
workers=${WORKERS:-$(($(nproc) > 3 ? $(nproc) - 2 : $(nproc)))}
autoencoder_batch=${AUTOENCODER_BATCH:-128} backbone_batch=${BACKBONE_BATCH:-256}
unet_batch=${UNET_BATCH:-1024} controlnet_batch=${CONTROLNET_BATCH:-512} unet_rate=${UNET_RATE:-1e-3}
masker_batch=${MASKER_BATCH:-64}
python=${PYTHON:-python3}
work=${WORK:-$(mktemp -d)}
cache=$work/cache sample=$work/sample early=$work/early logs=$work/logs
mkdir -p "$cache" "$sample" "$early" "$logs"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=true

say() { echo "[$SECONDS s] $*" | tee -a "$logs/stages.txt"; }
at() { echo $((began + $1)); }

# stage NAME END SCRIPT ARGUMENTS: twice at most, killed at END seconds after the start.
stage() {
  local name=$1 until=$2 script=$3 try left code
  shift 3
  for try in 1 2; do
    left=$((until - SECONDS))
    [ "$left" -ge 3 ] || break
    say "$name: begins"
    timeout -k 5 "$left" "$python" "$build/$script.py" --cache "$cache" "$@" \
      >>"$logs/$name.txt" 2>&1
    code=$?
    case $code in
      0) say "$name: done" && return 0 ;;
      124 | 137) say "$name: out of time" && return 1 ;;
      *) say "$name: failed (try $try): $(tail -n 1 "$logs/$name.txt" | cut -c 1-300)" ;;
    esac
  done
  return 1
}

# pack NAME FOLDER MARK: FOLDER/NAME into pieces in OUT, unless they are newer.
pack() {
  local name=$1 from=$2 mark=$3
  [ -s "$from/$name/$mark" ] || return 0
  [ "$from/$name" -nt "$work/$name.packed" ] || return 0
  touch "$work/$name.next"
  rm -rf "$work/$name.pieces"
  mkdir "$work/$name.pieces"
  tar -C "$from" -cf - "$name" | split -b 15M -d - "$work/$name.pieces/$name.tar." || return 0
  mv -f "$work/$name.pieces"/* "$out"/ && mv "$work/$name.next" "$work/$name.packed"
  say "$name: stored"
}

store() {
  tail -n +1 "$logs"/*.txt >"$work/logs.all" 2>/dev/null && cp "$work/logs.all" "$out/logs.txt"
  if [ -s "$sample/model/model_index.json" ]; then
    pack model "$sample" model_index.json
  else
    pack model "$early" model_index.json
  fi
  pack controlnet "$sample" config.json
  pack backbone "$sample" config.json
  pack catalogue "$sample" config.json
  pack masker "$sample" config.json
}

look() {
  stage look "$1" sheets --only generator --type png --sample "$sample" --out "$work/sheets" \
    --guidance 5 --steps 20
  cp "$work/sheets/generator.png" "$out"/ 2>/dev/null
}

(while sleep 5; do store; done) &
storing=$!
give_up() {
  say "given up: the rehearsal failed"
  for job in $(jobs -p); do
    pkill -P "$job"
    kill "$job" 2>/dev/null
  done
  tail -n 40 "$logs"/rehearsal.txt
  store
  exit 3
}
trap give_up USR1
trap 'kill $storing 2>/dev/null' EXIT

say "$("$python" -c 'import sys, torch, diffusers, transformers
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print("python", sys.version.split()[0], *(f"{m.__name__} {m.__version__}" for m in
      (torch, diffusers, transformers)), device)' 2>&1 | tail -n 1), $(nproc) cores" &
stage meshes 60 parts --unpack "$meshes"
# Rendering uses many processes, whose libraries must not start threads.
(export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
 stage renders $((renders_end + 20)) make_data pretrain --count "$renders" \
   --seconds $((renders_end - SECONDS)) --workers "$workers") &
rendering=$!
# Four steps of every stage, so that a mistake does not cost the whole run. REHEARSE= leaves this out.
[ -z "${REHEARSE-yes}" ] || (
  mkdir -p "$work/rehearsal"
  ln -s "$cache/meshes" "$work/rehearsal/meshes"
  timeout 120 "$python" "$build/rehearse.py" --cache "$work/rehearsal" \
    --autoencoder_batch "$autoencoder_batch" --unet_batch "$unet_batch" \
    --controlnet_batch "$controlnet_batch" --backbone_batch "$backbone_batch" \
    --masker_batch "$masker_batch" >"$logs/rehearsal.txt" 2>&1
  code=$?
  say "rehearsal: exit status $code (124: not finished in time, which does no harm)"
  [ $code -eq 0 ] || [ $code -eq 124 ] || kill -USR1 $$
) &
stage autoencoder $((autoencoder_end + 20)) train_autoencoder --batch_size "$autoencoder_batch" \
  --wait 80 --renders "$first" --deadline "$(at "$autoencoder_end")" &
autoencoder=$!
wait $rendering
say "renders: $(ls "$cache/pretrain" 2>/dev/null | grep -c '^[0-9]*\.npz$') files"

# At the same time as the UNet: the backbones of all conditions and of one bench (search.py's numbers
# choose between them), then the masker, which learns from the generator's renders.
(for renders in backbone catalogue; do
  (export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
   stage "$renders-renders" $((SECONDS + ${BACKBONE_RENDERS:-40} + 15)) make_data "$renders" \
     --count "$renders_of_backbone" --seconds "${BACKBONE_RENDERS:-40}" \
     --workers $(((workers + 1) / 2)))
  stage "$renders" $((SECONDS + ${BACKBONE_SECONDS:-25} + 30)) train_backbone --renders "$renders" \
    --batch_size "$backbone_batch" --seconds "${BACKBONE_SECONDS:-25}" --out "$sample/$renders"
done
stage masker $((SECONDS + ${MASKER_SECONDS:-40} + 30)) train_masker --batch_size "$masker_batch" \
  --seconds "${MASKER_SECONDS:-40}" --out "$sample/masker") &
backbones=$!

# The next two load their data while the autoencoder comes to its end.
stage unet $((unet_end + 20)) train_diffusion --batch_size "$unet_batch" --lr "$unet_rate" \
  --wait 120 --out "$sample/model" --early "$early/model" --deadline "$(at "$unet_end")" &
unet=$!
stage controlnet $((last_end + 10)) train_controlnet --batch_size "$controlnet_batch" \
  --wait $((last_end - SECONDS)) --workers $(((workers + 2) / 3)) --model "$sample/model" \
  --out "$sample/controlnet" --deadline "$(at "$last_end")" &
controlnet=$!
if ! wait $autoencoder && [ ! -s "$cache/autoencoder/vae/config.json" ]; then
  # No stage can do without the autoencoder: once more, with half of the batch and 40 seconds more.
  stage autoencoder-again $((SECONDS + 60)) train_autoencoder \
    --batch_size $(((autoencoder_batch + 1) / 2)) --deadline "$(at $((SECONDS + 45)))"
fi
left=$((unet_end - 15 - SECONDS))
[ "$left" -le 0 ] || sleep "$left"
stage decoder $((last_end + 10)) train_autoencoder --batch_size "$autoencoder_batch" \
  --wait $((last_end - SECONDS)) --decoder "$sample/model" --deadline "$(at "$last_end")" &
decoder=$!
wait $unet
if [ ! -s "$sample/model/model_index.json" ] && [ -s "$early/model/model_index.json" ]; then
  say "unet: not finished; its model at 60 % serves"
  mv "$early/model" "$sample/model"
fi
look $((SECONDS + 40))
wait $controlnet
wait $decoder
wait $backbones
kill $storing 2>/dev/null
wait $storing 2>/dev/null
store
look "$end"
say "done"
store
ls -l "$out"
[ -s "$sample/model/model_index.json" ] && [ -s "$sample/controlnet/config.json" ]
