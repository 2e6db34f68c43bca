#!/usr/bin/env bash
# Runs the same commands with the code of two revisions, and compares every byte of their output and
# every line of their messages. A difference is named by file and key, and the status is then 1.
# compare_outputs.py lists the ignored parts (times, process ids, hosts).
#
#   bash scripts/compare_revisions.sh                    # HEAD~1 and HEAD
#   bash scripts/compare_revisions.sh main my-branch     # made for 15 minutes on two quiet cores
#   bash scripts/compare_revisions.sh --only edits       # a part of the commands; --list names them
#
# Both sides use the packages and the sample of the newer revision. Folder and worktrees are removed
# at the end; --keep keeps the outputs, and prints their folder.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

usage="usage: bash scripts/compare_revisions.sh [--only PART]... [--list] [--keep] [OLD [NEW]]"
parts=(sample words sdxl loras edits filter classifier datasets commands)

# --- the commands ----------------------------------------------------------------------------

photos=(--dataset folder --data_dir inputs/photos --dataset_args masks=inputs/masks)
sd=(--model_path inputs/sd2 --device cpu)
few=(--max_train_steps 4 --train_batch_size 2 --num_vectors 2 --report_to none)
quick=(--num_inference_steps 4 --num_synthetic 2 --batch_size 3)
head=(--classifier_backbone inputs/resnet --num_epochs 2 --iterations_per_epoch 3 --batch_size 4
  --learning_rate 1e-2 --device cpu)

part_sample() { # the whole method on the sample: words, ControlNet, classifier, report
  local each=(--experiment_name sample --examples_per_class 2 --num_trials 2)
  local data=(--dataset mvip --data_dir sample/mvip --classes hex_nut spur_gear washer "${each[@]}")
  local edit=("${data[@]}" --model_path sample/model --device cpu --prompt sample/prompts.txt
    --strength 1.0 --guidance_scale 5 --scheduler dpm++ --num_inference_steps 4 --num_synthetic 2)
  local classify=("${data[@]}" --classifier_backbone sample/backbone --num_epochs 2
    --iterations_per_epoch 5 --learning_rate 1e-2 --device cpu)
  call 0 fine_tune.py "${data[@]}" --model_path sample/model --device cpu "${few[@]}" \
    --learning_rate 1e-3
  call 0 aggregate_embeddings.py "${each[@]}"
  call 0 generate_augmentations.py "${edit[@]}"
  call 0 generate_augmentations.py "${edit[@]}" --aug real-guidance --aug_name edges \
    --controlnet sample/controlnet --controlnet_scale 0.8
  call 0 train_classifier.py "${classify[@]}" --num_synthetic 0 --augmentation none
  call 0 train_classifier.py "${classify[@]}" --augmentation none --compare real
  call 0 train_classifier.py "${classify[@]}" --aug_name edges --augmentation randaugment \
    --compare real aug
  call 0 -m semantic_aug.report "${data[@]}" --aug_name aug edges --cell 48
  call 0 -m semantic_aug.status output/sample
  call 0 -m semantic_aug.datasets check mvip --data_dir sample/mvip
}

part_words() { # textual inversion with SD 2: settings, shares, killed and resumed runs
  local all=("${photos[@]}" "${sd[@]}" "${few[@]}")
  local two=(--num_trials 2 --examples_per_class 2) shard copy
  local settings=("${all[@]}" --experiment_name words "${two[@]}" --classes "aux: été" "spur gear"
    --num_vectors 3 --gradient_accumulation_steps 2 --lr_scheduler cosine --lr_warmup_steps 2
    --scale_lr --fit pad --validation_prompt "a photo of a *" --validation_steps 4
    --num_validation_images 1 --save_steps 2 --report_to tensorboard)
  call 0 fine_tune.py "${settings[@]}"
  call 0 fine_tune.py "${settings[@]}"
  call 2 fine_tune.py "${settings[@]}" --learning_rate 1e-3
  call 0 aggregate_embeddings.py --experiment_name words "${two[@]}"
  call 0 aggregate_embeddings.py --experiment_name others --word \
    "spur gear=output/words/fine-tuned/seed=1_ex=2/aux__été/learned_embeds.safetensors"
  for shard in 1 0; do
    call 0 fine_tune.py "${all[@]}" --experiment_name shares --crop_to_object --center_crop \
      --classes_per_step 1 --shard_index $shard --num_shards 2
  done
  call 0 fine_tune.py "${photos[@]}" "${sd[@]}" --experiment_name token --num_train_epochs 1 --repeats 4 \
    --classes "Hex Nut" --placeholder_token "My Nut" --initializer_token photo \
    --learnable_property style --report_to none
  local long=("${all[@]}" --checkpointing_steps 1 --num_trials 2)
  KILL_AT="*/aux_*/checkpoint-3.pt" call 137 fine_tune.py "${long[@]}" --experiment_name killed
  for copy in left handed-on; do cp -a output/killed output/$copy; done
  call 0 fine_tune.py "${long[@]}" --experiment_name killed
  code=newer call 0 fine_tune.py "${long[@]}" --experiment_name handed-on
  call 0 -m semantic_aug.status output/left
}

part_sdxl() { # SDXL with its two text encoders
  local xl=("${photos[@]}" --model_path inputs/sdxl --device cpu --experiment_name sdxl)
  call 0 fine_tune.py "${xl[@]}" "${few[@]}" --validation_steps 2
  call 0 aggregate_embeddings.py --experiment_name sdxl
  call 0 generate_augmentations.py "${xl[@]}" "${quick[@]}" --mask 1 --strength 0.8
}

part_loras() { # a LoRA of each trial beside its words, killed and resumed, and edits with it
  local all=("${photos[@]}" "${sd[@]}" --experiment_name loras --num_trials 2)
  local learn=("${all[@]}" "${few[@]}" --lora_rank 2 --lora_steps 4 --lora_learning_rate 1e-2
    --prior_preservation 1 --checkpointing_steps 1)
  KILL_AT="*_ex=1/checkpoint-3.pt" call 137 fine_tune.py "${learn[@]}"
  call 0 fine_tune.py "${learn[@]}"
  call 2 fine_tune.py "${learn[@]}" --lora_rank 3
  call 0 aggregate_embeddings.py --experiment_name loras --num_trials 2
  call 0 generate_augmentations.py "${all[@]}" "${quick[@]}"
  call 0 generate_augmentations.py "${all[@]}" "${quick[@]}" --aug_name none --lora none
  call 0 generate_augmentations.py --reproduce output/loras/aug/seed=1_ex=1/000001-001.png
}

part_edits() { # masks, edits in parallel and in sequence, LoRA, safety checker, shares, kills
  local all=("${photos[@]}" "${sd[@]}" --experiment_name edits) name shard two
  two=(--aug textual-inversion real-guidance)
  call 0 fine_tune.py "${all[@]}" "${few[@]}" --examples_per_class 2
  call 0 aggregate_embeddings.py --experiment_name edits --examples_per_class 2
  all+=(--examples_per_class 2 "${quick[@]}")
  call 0 generate_augmentations.py "${all[@]}" --aug_name masked --mask 1 --mask_grow_radius 2 \
    --mask_feather 3 --fit crop
  call 0 generate_augmentations.py "${all[@]}" --aug_name ground --mask 1 --inverted 1 \
    --strength 1.0 --prompt "a photo of a {name}" "{token} on a table"
  call 0 generate_augmentations.py "${all[@]}" --aug_name parallel "${two[@]}" --probs 0.3 0.7 \
    --strength 0.4 0.9 --mask 0 1
  call 0 generate_augmentations.py "${all[@]}" --aug_name sequence "${two[@]}" --strength 0.4 0.6 \
    --compose sequential --probs 0.5 1 --guidance_scale 3 6 --mask 1 1 --inverted 0 1
  call 0 generate_augmentations.py --reproduce output/edits/sequence/seed=0_ex=2/000003-001.png
  call 0 generate_augmentations.py "${all[@]}" --aug_name lora --lora inputs/lora \
    --lora_scale 0.7 --scheduler ddim --crop_to_object
  call 0 generate_augmentations.py "${all[@]}" --aug_name checked --safety_checker inputs/checker \
    --safety_retries 2
  call 0 generate_augmentations.py "${all[@]}" --aug_name own --aug own:Mirror --classes "Hex Nut"
  for shard in 1 0; do
    call 0 generate_augmentations.py "${all[@]}" --aug_name shares --shard_index $shard \
      --num_shards 2
  done
  call 0 generate_augmentations.py "${all[@]}" --aug_name shares --num_synthetic 3
  call 2 generate_augmentations.py "${all[@]}" --aug_name shares --strength 0.7
  call 0 generate_augmentations.py "${all[@]}" --aug_name shares --strength 0.7 --overwrite
  call 0 generate_augmentations.py "${all[@]}" --aug_name borrowed --seed 1 \
    --embed_path output/edits/fine-tuned-merged/seed=0_ex=2.safetensors
  KILL_AT="*/000004-000.png" call 137 generate_augmentations.py "${all[@]}" --aug_name killed
  for name in left handed-on; do cp -a output/edits/killed output/edits/$name; done
  call 0 generate_augmentations.py "${all[@]}" --aug_name killed
  code=newer call 0 generate_augmentations.py "${all[@]}" --aug_name handed-on
  call 0 -m semantic_aug.report "${photos[@]}" --experiment_name edits --examples_per_class 2 \
    --aug_name masked parallel left --embed 3 --variants 1
  call 0 -m semantic_aug.status output/edits
}

part_filter() { # the quality gate, by CLIP and by a classifier, and commands that obey it
  local all=("${photos[@]}" --experiment_name filter --examples_per_class 2)
  local edit=("${all[@]}" "${sd[@]}" "${quick[@]}")
  local clip=(--filter clip --filter_model inputs/clip)
  call 0 generate_augmentations.py "${edit[@]}" "${clip[@]}" --filter_quantile 0.3
  call 0 generate_augmentations.py "${edit[@]}" "${clip[@]}" --filter_quantile 0.6
  call 0 generate_augmentations.py "${edit[@]}" --aug_name judged --filter classifier \
    --filter_model inputs/resnet --filter_quantile 0.5
  call 0 train_classifier.py "${all[@]}" "${head[@]}"
  call 0 train_classifier.py "${all[@]}" "${head[@]}" --ignore_filter --method all --compare aug
  call 0 -m semantic_aug.report "${all[@]}" --aug_name aug judged
}

part_classifier() { # frozen and trained, all ways to use images, shares, kills
  local all=("${photos[@]}" --experiment_name classifier --num_trials 2 --examples_per_class 1 2)
  local shard name train=(train_classifier.py "${all[@]}" "${head[@]}")
  call 0 generate_augmentations.py "${all[@]}" "${sd[@]}" --aug own:Mirror --num_synthetic 2
  call 0 "${train[@]}" --num_synthetic 0
  call 0 "${train[@]}" --compare real
  call 2 "${train[@]}" --learning_rate 1e-3
  call 0 "${train[@]}" --method append --utilization append --augmentation cutmix mixup \
    --select best_val
  call 0 "${train[@]}" --method trained --finetune all --utilization pretrain --augmentation \
    trivialaugment --compare append real
  call 0 "${train[@]}" --method last --finetune last:1 --utilization balance --class_balanced \
    --augmentation none --crop_to_object
  call 0 "${train[@]}" --method scratch --finetune all --from_scratch --use_randaugment \
    --num_synthetic 1 --synthetic_probability 0.7
  call 0 generate_augmentations.py "${all[@]}" "${sd[@]}" --aug own:Mirror --num_synthetic 1 \
    --aug_name more
  call 0 "${train[@]}" --aug_name aug more --elsewhere --compare real
  for shard in 1 0; do
    call 0 "${train[@]}" --method shares --shard_index $shard --num_shards 2
  done
  KILL_AT="*/results_1_1.csv" call 137 "${train[@]}" --method killed
  for name in left handed-on; do
    cp -a output/classifier/results/killed output/classifier/results/$name
  done
  call 0 "${train[@]}" --method killed --compare real
  code=newer call 0 "${train[@]}" --method handed-on --compare real
  call 0 -m semantic_aug.status output/classifier
}

part_datasets() { # lists and checks of datasets, and datasets that users write
  local own=(--experiment_name own --examples_per_class 2)
  call 0 -m semantic_aug.datasets
  call 0 -m semantic_aug.datasets own:Listed
  call 0 -m semantic_aug.datasets check "${photos[@]:1}"
  call 1 -m semantic_aug.datasets check folder --data_dir inputs/wrong/photos \
    --dataset_args masks=inputs/wrong/masks
  call 1 -m semantic_aug.datasets check own:Listed --data_dir inputs/wrong/photos --verbose
  call 0 generate_augmentations.py --dataset own:Listed --dataset_args turned=true "${own[@]}" \
    "${sd[@]}" "${quick[@]}"
  call 0 train_classifier.py --dataset own:Listed --dataset_args turned=true "${own[@]}" "${head[@]}"
  call 0 generate_augmentations.py --dataset own:Older --aug_name older "${own[@]}" "${sd[@]}" \
    "${quick[@]}"
  call 0 train_classifier.py --dataset own:Older --aug_name older "${own[@]}" "${head[@]}"
}

part_commands() { # help, errors, and all four commands in a chain
  local script
  for script in fine_tune aggregate_embeddings generate_augmentations train_classifier \
    fine_tune_upstream; do
    call 0 $script.py --help
  done
  for script in report status chain datasets; do
    call 0 -m semantic_aug.$script --help
  done
  call 0 generate_augmentations.py --reproduce x --help
  call 2 fine_tune.py --dataset folder
  call 2 fine_tune.py "${photos[@]}" "${sd[@]}" --experiment_name e --classes nothing
  call 2 fine_tune.py --dataset no:Such --experiment_name e
  call 2 aggregate_embeddings.py --experiment_name nothing
  call 2 generate_augmentations.py "${photos[@]}" --model_path inputs/none --experiment_name e
  call 2 generate_augmentations.py "${photos[@]}" "${sd[@]}" --experiment_name e --strength 2
  call 2 generate_augmentations.py --reproduce inputs/photos/train/none.png
  call 2 train_classifier.py "${photos[@]}" --experiment_name e --aug_name none "${head[@]}"
  call 2 train_classifier.py "${photos[@]}" --experiment_name .. --num_synthetic 0 "${head[@]}"
  call 2 -m semantic_aug.report "${photos[@]}" --experiment_name e
  call 2 -m semantic_aug.status output/none
  call 2 -m semantic_aug.chain run --no_such_flag
  call 2 -m semantic_aug.datasets no-such
  local flags=("${photos[@]}" --experiment_name chain --device cpu --model_path inputs/sd2
    fine_tune: "${few[@]}" generate: "${quick[@]}" train_classifier: "${head[@]}")
  call 0 -m semantic_aug.chain run "${flags[@]}"
  call 0 -m semantic_aug.chain submit --dry_run --array 4 "${flags[@]}" -- --partition=gpu
}

# --- running them ----------------------------------------------------------------------------

# call STATUS COMMAND...: runs the command in the folder of this side, keeps its status and messages,
# and notes a status other than STATUS. With KILL_AT the command is killed before it writes a file of
# such a name; code=newer runs the newer revision's code on both sides.
call() {
  local expected=$1 status=0 name pythonpath
  shift
  calls=$((calls + 1))
  name=$(printf 'commands/%s/%02d' "$part" "$calls")
  pythonpath=$PWD/${code:-code}
  local line=("$@")
  [ "$1" = -m ] || line[0]=${code:-code}/$1
  printf '%s\n' "python $*" > "$name.command"
  {
    env -i PATH="$PATH" LD_LIBRARY_PATH="${LD_LIBRARY_PATH-}" LANG=C.UTF-8 COLUMNS=100 \
      HOME="$PWD/../home" MPLCONFIGDIR="$PWD/../../matplotlib" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 \
      CUDA_VISIBLE_DEVICES= ${KILL_AT:+KILL_AT="$KILL_AT"} \
      PYTHONPATH="$pythonpath${KILL_AT:+:$PWD/../../kill}" \
      nice -n 5 "$python" "${line[@]}" > "$name.stdout" 2> "$name.stderr" < /dev/null
  } 2> /dev/null || status=$?
  echo "$status" > "$name.status"
  [ "$status" = "$expected" ] || echo "$name" >> ../unexpected
}

# run_side SIDE: all parts, in the folder of the side old or new.
run_side() {
  cd "$folder/$1/run"
  for part in "${wanted[@]}"; do
    mkdir -p "commands/$part"
    calls=0
    SECONDS=0
    "part_$part"
    echo "$1: $part, $calls commands, $SECONDS s" >&2
  done
}

# --- two revisions ---------------------------------------------------------------------------

wanted=() keep= revisions=()
while [ $# -gt 0 ]; do
  case $1 in
    --list)
      for part in "${parts[@]}"; do sed -n "s/^part_$part() { # /$part: /p" scripts/compare_revisions.sh; done
      exit 0 ;;
    --only) [[ " ${parts[*]} " == *" ${2-} "* ]] || {
        echo "compare_revisions.sh: --only takes one of: ${parts[*]}" >&2
        exit 2
      }
      wanted+=("$2")
      shift ;;
    --keep) keep=yes ;;
    -*) echo "$usage" >&2; exit 2 ;;
    *) revisions+=("$1") ;;
  esac
  shift
done
[ ${#revisions[@]} -le 2 ] || { echo "$usage" >&2; exit 2; }
[ ${#wanted[@]} -gt 0 ] || wanted=("${parts[@]}")
commits=()
for revision in "${revisions[0]-HEAD~1}" "${revisions[1]-HEAD}"; do
  commits+=("$(git rev-parse --verify --quiet "$revision^{commit}")") || {
    echo "compare_revisions.sh: git knows no revision $revision" >&2
    exit 2
  }
done

folder=$(mktemp -d)
folder=$(cd "$folder" && pwd -P)
sides=()
finish() {
  status=$?
  trap - EXIT INT TERM
  for side in "${sides[@]}"; do
    { kill -KILL -- "-$side" && wait "$side"; } 2> /dev/null || true
  done
  for side in old new; do
    git worktree remove --force "$folder/$side/code" 2> /dev/null || true
  done
  if [ -n "$keep" ]; then echo "what the commands left: $folder/old and $folder/new" >&2
  else rm -rf "$folder"; fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$folder"/{old,new}/{home,run} "$folder"/{inputs,kill,matplotlib}
git worktree add --quiet --detach "$folder/old/code" "${commits[0]}"
git worktree add --quiet --detach "$folder/new/code" "${commits[1]}"
make_environment "$folder/new/code/requirements.txt" "$folder/new/code/tests/requirements.txt"
python=$(cd "$(dirname "$venv/bin/python")" && pwd)/python
for side in old new; do
  ln -s ../code "$folder/$side/run/code"
  ln -s "$folder/new/code" "$folder/$side/run/newer"
  ln -s "$folder/new/code/sample" "$folder/$side/run/sample"
  ln -s "$folder/inputs" "$folder/$side/run/inputs"
  ln -s "$folder/inputs/own.py" "$folder/$side/run/own.py"
done
# Python imports this module when it starts. A file gets its name when it is whole; the process is
# killed before the awaited file gets its name. Other threads finish their work first, so that the
# process always leaves the same files.
cat > "$folder/kill/sitecustomize.py" << 'PYTHON'
import fnmatch, os, signal, sys, time

def end(event, args):
    if event == "os.rename" and fnmatch.fnmatch(os.path.abspath(args[1]), os.environ["KILL_AT"]):
        spent = -1
        while time.process_time() - spent > 0.01:
            spent = time.process_time()
            time.sleep(3)
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(end)
PYTHON
# Made once, by the code beside this script, for both sides.
PYTHONPATH=$PWD:$PWD/tests HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 MPLCONFIGDIR=$folder/matplotlib \
  nice -n 5 "$python" scripts/compare_inputs.py "$folder/inputs" \
  "$folder/new/code/sample/mvip" > "$folder/inputs.log" 2>&1 || {
  cat "$folder/inputs.log" >&2
  exit 2
}

set -m # each side is a group of processes, which ends as a whole
for side in old new; do
  run_side $side &
  sides+=($!)
done
set +m
for side in "${sides[@]}"; do wait "$side" || exit 2; done
sides=()

# Outputs of a command that failed on both sides may be equal, but prove nothing.
for name in $(sort "$folder"/{old,new}/unexpected 2> /dev/null | uniq -d); do
  echo "compare_revisions.sh: an unexpected status on both sides, so little is" \
    "compared: $(cat "$folder/new/run/$name.command")" >&2
  tail -n 3 "$folder/new/run/$name.stderr" >&2
  useless=yes
done
described=()
for side in old new; do
  described+=("$(git -C "$folder/$side/code" describe --always --abbrev=40)")
done
"$python" scripts/compare_outputs.py "$folder/old/run" "$folder/new/run" \
  --same revision "${described[@]}" --same side "$folder/old" "$folder/new"
[ -z "${useless-}" ] || exit 2
