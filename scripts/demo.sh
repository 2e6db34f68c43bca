#!/usr/bin/env bash
# The whole method on the embedded sample, offline after the installation: learns a word per class,
# generates photos, and compares four ways to train a classifier, in three trials of four photos per
# class. About 10 minutes on two cores; --fast shows the same in 3 minutes with one trial and fewer
# steps and images. When run again it goes on where it was. K="1 2 4" before the command takes other
# numbers of photos per class.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

k=${K:-4} trials=3 steps=75 variants=4 denoising=24 epochs=6 experiment=demo
case $* in
  "") ;;
  --fast) trials=1 steps=40 variants=2 denoising=24 epochs=5 experiment=demo-fast ;;
  *) echo "usage: bash scripts/demo.sh [--fast]" >&2; exit 2 ;;
esac
out=${OUTPUT_DIR:-output}/$experiment

if [ ! -s sample/model/model_index.json ]; then
  echo "demo.sh: sample/model is not there; bash sample/build/all.sh makes it" >&2
  exit 2
fi
# room FOLDER MEGABYTES: ends the demo where fewer are free; FOLDER need not be there yet.
room() {
  local folder=$1 free
  while [ ! -e "$folder" ]; do folder=$(dirname "$folder"); done
  free=$(df -Pk "$folder" | awk 'NR == 2 { print int($4 / 1024) }')
  if [ "$free" -lt "$2" ]; then
    echo "demo.sh: $free MB are free in $folder and $2 MB are needed; make room and run it again" >&2
    exit 2
  fi
}
[ -x "$venv/bin/python" ] || room "$venv" 4000
room "$out" 200
make_environment requirements.txt
export HF_HUB_OFFLINE=1
mkdir -p "$out"

trap 'exit 130' INT
trap 'exit 143' TERM
trap '[ $? -eq 0 ] || echo "demo.sh: interrupted or failed; the same command goes on from here" >&2' EXIT

# stage NAME COMMAND...: runs a command and adds its seconds to those of earlier runs.
stage() {
  local name=$1 started=$SECONDS before
  shift
  printf '\n== %s\n' "$name"
  "$venv/bin/python" "$@"
  before=$(cat "$out/.seconds-$name" 2>/dev/null || echo 0)
  echo $((before + SECONDS - started)) > "$out/.seconds-$name"
}

common=(--output_dir "${OUTPUT_DIR:-output}" --experiment_name "$experiment"
  --examples_per_class $k --num_trials $trials)
data=(--dataset mvip --data_dir sample/mvip "${common[@]}")
classify=(train_classifier.py "${data[@]}" --classifier_backbone sample/backbone
  --num_epochs $epochs --iterations_per_epoch 50 --learning_rate 2e-3)
edit=("${data[@]}" --model_path sample/model --num_synthetic $variants
  --num_inference_steps $denoising --strength 0.15 0.25 0.35 --batch_size 16)

stage fine_tune fine_tune.py "${data[@]}" --model_path sample/model --num_vectors 4 \
  --max_train_steps $steps --learning_rate 1e-3 --report_to none
stage aggregate aggregate_embeddings.py "${common[@]}"
stage real-guidance generate_augmentations.py "${edit[@]}" --aug real-guidance \
  --aug_name real-guidance
stage textual-inversion generate_augmentations.py "${edit[@]}" --aug textual-inversion \
  --aug_name textual-inversion
stage classify-real "${classify[@]}" --num_synthetic 0
stage classify-randaugment "${classify[@]}" --num_synthetic 0 --augmentation randaugment \
  --method real-randaugment
stage classify-real-guidance "${classify[@]}" --aug_name real-guidance
stage classify-textual-inversion "${classify[@]}" --aug_name textual-inversion
stage report -m semantic_aug.report "${data[@]}" --aug_name real-guidance textual-inversion

"$venv/bin/python" - "$out" $trials $k <<'PYTHON'
import sys

import pandas as pd

out, trials, numbers = sys.argv[1], int(sys.argv[2]), [int(k) for k in sys.argv[3:]]
interval = ", 95 % interval" * (trials > 2)
for k in numbers:
    print(f"\n{k} photos per class, {trials} trial(s): test accuracy{interval}")
    for method in ("real", "real-randaugment", "real-guidance", "textual-inversion"):
        table = pd.read_csv(f"{out}/results/{method}/summary.csv")
        row = table[(table.split == "Test") & (table.examples_per_class == k)].iloc[0]
        half = f" ± {50 * (row.ci95_high - row.ci95_low):.1f}" * (trials > 2)
        print(f"{method:<20} {100 * row.mean_accuracy:6.1f}{half} %")
PYTHON
printf '\n%-28s %8s\n' stage seconds
for file in "$out"/.seconds-*; do
  printf '%-28s %8d\n' "${file##*seconds-}" "$(cat "$file")"
done
printf '\npictures: %s\npage: %s\n' "$out/report/seed=0_ex=${k##* }."{png,html}
