#!/usr/bin/env bash
# The whole method on the embedded sample, offline after the installation: learns a word per class,
# generates photos, and compares four ways to train a classifier. About 20 minutes on two cores;
# --fast shows the same in 3 minutes with fewer steps and images. When run again it goes on where
# it was.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

k=4 steps=400 variants=10 denoising=30 epochs=20 experiment=demo
case ${1:-} in
  "") ;;
  --fast) steps=40 variants=2 denoising=12 epochs=5 experiment=demo-fast ;;
  *) echo "usage: bash scripts/demo.sh [--fast]" >&2; exit 2 ;;
esac
out=${OUTPUT_DIR:-output}/$experiment

if [ ! -s sample/model/model_index.json ]; then
  echo "demo.sh: sample/model is not there; bash sample/build/all.sh makes it" >&2
  exit 2
fi
free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024) }')
need=200
[ -x "$venv/bin/python" ] || need=4000
if [ "$free" -lt "$need" ]; then
  echo "demo.sh: $free MB are free here and $need MB are needed; make room and run it again" >&2
  exit 2
fi
make_environment requirements.txt
export HF_HUB_OFFLINE=1
mkdir -p "$out"

trap 'echo "demo.sh: interrupted or failed; the same command goes on from here" >&2' ERR INT TERM

# stage NAME COMMAND...: runs a command and adds its seconds to those of earlier runs.
stage() {
  local name=$1 started=$SECONDS before
  shift
  printf '\n== %s\n' "$name"
  "$venv/bin/python" "$@"
  before=$(cat "$out/.seconds-$name" 2>/dev/null || echo 0)
  echo $((before + SECONDS - started)) > "$out/.seconds-$name"
}

common=(--output_dir "${OUTPUT_DIR:-output}" --experiment_name "$experiment" --examples_per_class $k)
data=(--dataset mvip --data_dir sample/mvip "${common[@]}")
classify=(train_classifier.py "${data[@]}" --classifier_backbone sample/backbone
  --num_epochs $epochs --iterations_per_epoch 50 --learning_rate 1e-3)
edit=("${data[@]}" --model_path sample/model --num_synthetic $variants
  --num_inference_steps $denoising --strength 0.25 0.5 0.75 --batch_size 16)

stage fine_tune fine_tune.py "${data[@]}" --model_path sample/model --num_vectors 4 \
  --max_train_steps $steps --learning_rate 5e-3 --report_to none
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

printf '\n%-20s %15s\n' "$k photos per class" "test accuracy"
for method in real real-randaugment real-guidance textual-inversion; do
  awk -F, -v m=$method '$3 == "Test" { printf "%-20s %13.1f %%\n", m, 100 * $5 }' \
    "$out/results/$method/summary.csv"
done
printf '\n%-28s %8s\n' stage seconds
for file in "$out"/.seconds-*; do
  printf '%-28s %8d\n' "${file##*seconds-}" "$(cat "$file")"
done
printf '\npictures: %s\npage: %s\n' "$out/report/seed=0_ex=$k."{png,html}
