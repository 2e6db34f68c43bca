#!/usr/bin/env bash
# The numbers of docs/experiments.md, on the embedded sample, for common and for novel kinds: does
# augmentation help, with how many photos, at which strength, with how many variants, and at what cost.
# Many hours on two cores, offline after the installation. The same command goes on after an
# interruption. SETS=common, TRIALS=2 or NUMBERS="1 4" before the command limits it to a part.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
make_environment requirements.txt
export HF_HUB_OFFLINE=1
trap 'exit 130' INT
trap 'exit 143' TERM
trap '[ $? -eq 0 ] || echo "experiments.sh: interrupted or failed; the same command goes on from here" >&2' EXIT

trials=${TRIALS:-8} numbers=${NUMBERS:-1 2 4 8} some=${SOME:-${NUMBERS:-2 8}}

# run NUMBERS COMMAND...: one of the four commands, for these numbers of photos per class.
run() {
  local k=$1 command=$2
  shift 2
  printf '\n== %s: %s %s\n' "$experiment" "$command" "$*"
  # shellcheck disable=SC2086
  "$venv/bin/python" "$command" --output_dir "${OUTPUT_DIR:-output}" \
    --experiment_name $experiment --num_trials "$trials" --examples_per_class $k "$@"
}

for set in ${SETS:-common novel}; do
  case $set in common) kinds=CarComponent ;; novel) kinds=NovelComponent ;; esac
  experiment=experiments-$set
  sample=(--dataset mvip --data_dir sample/mvip --dataset_args "super_class=$kinds")
  head=("${sample[@]}" --classifier_backbone sample/backbone --num_epochs 6
    --iterations_per_epoch 50 --learning_rate 1e-2)
  edits=("${sample[@]}" --model_path sample/model --prompt sample/prompts.txt --guidance_scale 5
    --scheduler dpm++ --num_inference_steps 10 --batch_size 32)

  # 1. Five ways at every number of photos.
  run "$numbers" train_classifier.py "${head[@]}" --num_synthetic 0
  run "$numbers" train_classifier.py "${head[@]}" --num_synthetic 0 --augmentation randaugment \
    --method randaugment --compare real
  run "$numbers" generate_augmentations.py "${edits[@]}" --aug real-guidance --aug_name names \
    --strength 1.0 --num_synthetic 8
  run "$numbers" train_classifier.py "${head[@]}" --aug_name names --num_synthetic 2 \
    --method names-2 --compare real randaugment
  run "$numbers" train_classifier.py "${head[@]}" --aug_name names --compare real randaugment names-2
  run "$numbers" train_classifier.py "${head[@]}" --aug_name names --synthetic_probability 0.75 \
    --method recipe --compare real randaugment names
  run "$numbers" train_classifier.py "${head[@]}" --aug_name names --synthetic_probability 0.75 \
    --augmentation randaugment --method recipe-randaugment --compare real randaugment recipe
  run "$numbers" fine_tune.py "${sample[@]}" --model_path sample/model --num_vectors 4 \
    --max_train_steps 75 --learning_rate 1e-3 --report_to none
  run "$numbers" aggregate_embeddings.py
  run "$numbers" generate_augmentations.py "${edits[@]}" --aug textual-inversion --aug_name words \
    --strength 1.0 --num_synthetic 2
  run "$numbers" train_classifier.py "${head[@]}" --aug_name words --compare real randaugment names-2

  # 2. Single strengths, the paper's mixture of four strengths, and the quality gate.
  for strength in 0.25 0.5 0.75 "0.25 0.5 0.75 1.0"; do
    name=strength-${strength// /-}
    # shellcheck disable=SC2086
    run "$some" generate_augmentations.py "${edits[@]}" --aug real-guidance --aug_name "$name" \
      --strength $strength --num_synthetic 2 --filter classifier --filter_quantile 0.25 \
      --filter_model sample/backbone
    run "$some" train_classifier.py "${head[@]}" --aug_name "$name" --ignore_filter \
      --method "$name" --compare real randaugment names-2
    run "$some" train_classifier.py "${head[@]}" --aug_name "$name" --method "$name-filtered" \
      --compare "$name"
  done

  # 3. The part keeps its pixels: new surroundings, and pasting on other places, each with and
  # without a change of the part's colour.
  places=(--controlnet sample/controlnet --places sample/places.txt)
  drawn=(--backgrounds generated --num_places 32 --places_from photos)
  seen=("${head[@]}" --views 16)
  run "$numbers" train_classifier.py "${seen[@]}" --num_synthetic 0 --method views-real
  run "$numbers" train_classifier.py "${seen[@]}" --num_synthetic 0 --augmentation randaugment \
    --method views-randaugment --compare views-real
  for colour in 0 0.4; do
    run "$numbers" generate_augmentations.py "${edits[@]}" --aug paste --aug_name paste-$colour \
      --layout_colour $colour --num_synthetic 8
    run "$numbers" generate_augmentations.py "${edits[@]}" "${places[@]}" "${drawn[@]}" --aug paste \
      --aug_name generated-$colour --layout_colour $colour --num_synthetic 8
    run "$numbers" generate_augmentations.py "${edits[@]}" "${places[@]}" --aug background \
      --aug_name background-$colour --layout_colour $colour --num_synthetic 4
    for name in paste generated background; do
      for share in 0.5 0.75; do
        run "$numbers" train_classifier.py "${seen[@]}" --aug_name $name-$colour \
          --augmentation randaugment --synthetic_probability $share \
          --method $name-$colour-$share --compare views-real views-randaugment
      done
    done
  done

  "$venv/bin/python" scripts/experiments_tables.py "${OUTPUT_DIR:-output}/$experiment" |
    tee "${OUTPUT_DIR:-output}/$experiment/tables.md"
done
