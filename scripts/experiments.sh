#!/usr/bin/env bash
# The numbers of docs/experiments.md, on the embedded sample: does augmentation help, at which
# strength, with how many photos, used in which way, and at what cost. About two hours on two cores,
# offline after the installation. When run again it goes on where it was. TRIALS=2 before the command
# takes fewer trials than eight, and NUMBERS="1 4" other numbers of photos than 1 2 4 8.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
make_environment requirements.txt
export HF_HUB_OFFLINE=1
trap 'exit 130' INT
trap 'exit 143' TERM
trap '[ $? -eq 0 ] || echo "experiments.sh: interrupted or failed; the same command goes on from here" >&2' EXIT

trials=${TRIALS:-8} numbers=${NUMBERS:-1 2 4 8} one_k=4 experiment=experiments
out=${OUTPUT_DIR:-output}/$experiment

# run NUMBERS COMMAND...: one of the four commands, for these numbers of photos per class.
run() {
  local k=$1 command=$2
  shift 2
  printf '\n== %s %s\n' "$command" "$*"
  # shellcheck disable=SC2086
  "$venv/bin/python" "$command" --output_dir "${OUTPUT_DIR:-output}" \
    --experiment_name $experiment --num_trials "$trials" --examples_per_class $k "$@"
}
sample=(--dataset mvip --data_dir sample/mvip)
edits=("${sample[@]}" --model_path sample/model --num_inference_steps 24 --batch_size 16)
head=("${sample[@]}" --classifier_backbone sample/backbone --num_epochs 6
  --iterations_per_epoch 50 --learning_rate 2e-3)
mild=(--strength 0.15 0.25 0.35 --num_synthetic 4)

# 1. Five methods at every number of photos. The strengths were chosen on validation photos.
run "$numbers" fine_tune.py "${sample[@]}" --model_path sample/model --num_vectors 4 \
  --max_train_steps 75 --learning_rate 1e-3 --report_to none
run "$numbers" aggregate_embeddings.py
run "$numbers" train_classifier.py "${head[@]}" --num_synthetic 0
run "$numbers" train_classifier.py "${head[@]}" --num_synthetic 0 --augmentation randaugment \
  --method real-randaugment --compare real
others=(real real-randaugment)
for method in real-guidance textual-inversion; do
  run "$numbers" generate_augmentations.py "${edits[@]}" --aug $method --aug_name $method "${mild[@]}"
  run "$numbers" train_classifier.py "${head[@]}" --aug_name $method --compare "${others[@]}"
  others+=("$method")
done
# Where edges are kept, prompts may name surface, table and light, and strengths be high.
run "$numbers" generate_augmentations.py "${edits[@]}" --aug real-guidance --aug_name edges \
  --controlnet sample/controlnet --prompt sample/prompts.txt --guidance_scale 5 \
  --strength 0.6 0.8 --num_synthetic 4
run "$numbers" train_classifier.py "${head[@]}" --aug_name edges --compare "${others[@]}"
# Edits and RandAugment together.
for images in real-guidance edges; do
  run $one_k train_classifier.py "${head[@]}" --aug_name $images --augmentation randaugment \
    --method $images-randaugment --compare real real-randaugment
done

# 2. What to edit and how to use it, with one number of photos, and heads without random
# augmentation: those take seconds, because every image passes the backbone once.
plain=("${head[@]}" --augmentation none)
run $one_k train_classifier.py "${plain[@]}" --num_synthetic 0 --method plain-real
for strength in 0.25 0.5 0.75 1.0 "0.25 0.5 0.75 1.0"; do # one at a time, and the paper's mixture
  name=strength-${strength// /-}
  # shellcheck disable=SC2086
  run $one_k generate_augmentations.py "${edits[@]}" --aug real-guidance --aug_name "$name" \
    --strength $strength --num_synthetic 2 --filter classifier --filter_quantile 0.25 \
    --filter_model sample/backbone
  run $one_k train_classifier.py "${plain[@]}" --aug_name "$name" --ignore_filter \
    --method "plain-$name" --compare plain-real
  run $one_k train_classifier.py "${plain[@]}" --aug_name "$name" \
    --method "plain-$name-filtered" --compare plain-real "plain-$name"
done
run $one_k train_classifier.py "${plain[@]}" --aug_name edges --method plain-edges \
  --compare plain-real
for utilization in mix append pretrain balance; do
  run $one_k train_classifier.py "${plain[@]}" --aug_name real-guidance \
    --utilization $utilization --method plain-$utilization --compare plain-real
done

"$venv/bin/python" scripts/experiments_tables.py "$out" | tee "$out/tables.md"
