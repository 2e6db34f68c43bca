#!/usr/bin/env bash
# The whole method on the embedded sample, offline after the installation: learns a word per class,
# edits two photos of each class into many, and compares five ways to train a classifier, trial by
# trial. Eight minutes on two quiet cores; --fast shows the same in three, with one trial and fewer
# steps and images. The same command goes on after an interruption. K="1 2 4" before the command sets
# the numbers of photos per class, TRIALS=8 the number of trials.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

k=${K:-2} trials=${TRIALS:-3} steps=40 few=2 many=6 iterations=50 experiment=demo
case $* in
  "") ;;
  --fast) trials=${TRIALS:-1} steps=10 few=1 many=3 iterations=30 experiment=demo-fast ;;
  *) echo "usage: bash scripts/demo.sh [--fast]" >&2; exit 2 ;;
esac
# Another number of photos or trials has its own folder, so that results do not mix.
experiment+=${K:+-photos-${K// /-}}${TRIALS:+-trials-$TRIALS}
out=${OUTPUT_DIR:-output}/$experiment

if [ ! -s sample/model/model_index.json ]; then
  echo "demo.sh: sample/model is not there; bash sample/build/all.sh makes it" >&2
  exit 2
fi
# room FOLDER MEGABYTES: ends the demo if fewer megabytes are free; FOLDER need not exist yet.
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

# stage NAME COMMAND...: runs a command and adds its seconds to the seconds of earlier runs.
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
  --num_epochs 6 --iterations_per_epoch $iterations --learning_rate 1e-2)
# New pictures of the same class: strength 1.0, and prompts that name surface, table and light.
edit=("${data[@]}" --model_path sample/model --strength 1.0 --prompt sample/prompts.txt
  --guidance_scale 5 --scheduler dpm++ --num_inference_steps 10 --batch_size 32)

stages() {
  stage fine_tune fine_tune.py "${data[@]}" --model_path sample/model --num_vectors 4 \
    --max_train_steps $steps --train_batch_size 2 --learning_rate 1e-3 --report_to none
  stage aggregate aggregate_embeddings.py "${common[@]}"
  stage names generate_augmentations.py "${edit[@]}" --aug real-guidance --aug_name names \
    --num_synthetic $many
  stage words generate_augmentations.py "${edit[@]}" --aug textual-inversion --aug_name words \
    --num_synthetic $few
  # Without random augmentation every image passes the backbone once, which takes seconds.
  plain=("${classify[@]}" --augmentation none)
  stage classify-real "${plain[@]}" --num_synthetic 0
  stage classify-randaugment "${classify[@]}" --num_synthetic 0 --augmentation randaugment \
    --method randaugment --compare real
  stage classify-words "${plain[@]}" --aug_name words --compare real randaugment
  stage classify-names "${plain[@]}" --aug_name names --num_synthetic $few --compare real randaugment \
    words
  stage classify-recipe "${plain[@]}" --aug_name names --synthetic_probability 0.75 \
    --method recipe --compare real randaugment names
  stage report -m semantic_aug.report "${data[@]}" --aug_name names words
}

cat <<TEXT

Twelve kinds of machine parts, ${k// /, } photo(s) of each, taken in four places; the test photos come
from everywhere. A small Stable Diffusion knows such parts, but has never seen these. It edits the photos into
new ones; then a classifier learns without and with them, in $trials trial(s). Three trials take eight
minutes on two quiet cores, --fast takes three.
TEXT

# The result depends on this digest: of this script, the prompts and the models.
made_from=$(cat scripts/demo.sh sample/prompts.txt sample/*/*.safetensors sample/*/*/*.safetensors |
  sha256sum)
page=$out/report/seed=0_ex=${k##* }
all_there() {
  local method
  for method in real randaugment words names recipe; do
    [ -s "$out/results/$method/summary.csv" ] || return 1
  done
  [ -s "$page.png" ] && [ "$(cat "$out/.finished" 2>/dev/null)" = "$made_from" ]
}
if all_there; then
  echo "The demo was finished earlier; remove the folder $out to run it again."
else
  stages
  echo "$made_from" > "$out/.finished"
fi

"$venv/bin/python" scripts/demo_table.py "$out" "$many" "$few"
printf '\n%-28s %8s\n' stage seconds
for file in "$out"/.seconds-*; do
  printf '%-28s %8d\n' "${file##*seconds-}" "$(cat "$file")"
done
printf '\npictures: %s\npage: %s\n' "$page.png" "$page.html"

# The classifier of the last row, on a photo that it has never seen.
classifier=$out/results/recipe/classifier_0_${k##* } photo=sample/mvip/ball_bearing/test_data/set_00/cam_0/024_rgb.png
if [ -d "$classifier" ]; then  # earlier versions kept no classifier
  printf '\nWhat does it see in %s?\n\npython -m semantic_aug predict %s %s\n' \
    "$photo" "$classifier" "$photo"
  "$venv/bin/python" -m semantic_aug predict "$classifier" "$photo"
fi
