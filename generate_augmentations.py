"""Turn each labelled photo into varied photos of its class, by image-to-image edits.

    python generate_augmentations.py --dataset=folder --data_dir=photos --experiment_name=demo \\
        --examples_per_class 4 --num_synthetic 10 --strength 0.5

Writes output/EXP/AUG/seed=S_ex=N/ with images, records/ and metadata.jsonl. Words that were
learned by fine_tune.py and merged by aggregate_embeddings.py are used where they are, else the
class names (--aug says which). What is there already is not made again, so that the same command
goes on after an interruption. Next: train_classifier.py.

    python generate_augmentations.py --reproduce output/EXP/AUG/seed=S_ex=N/000000-000.png

makes one image again and says whether it is equal.
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

import argparse
import dataclasses
import functools
import inspect
import logging
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import ImageChops

from semantic_aug import UserError, counted
from semantic_aug.augmentations import augmentation_class
from semantic_aug.augmentations.compose import (
    ComposeParallel,
    ComposeSequential,
    PerClass,
    check_probs,
)
from semantic_aug.augmentations.sdedit import (
    DEFAULT_PROMPT,
    SAFETY_RETRIES,
    check_guidance_scale,
    check_prompt,
    check_strength,
    fill_prompt,
    words_of,
)
from semantic_aug.cli.command import Parser, command
from semantic_aug.diffusion.adapters import (
    add_lora,
    check_controlnet,
    check_lora,
    check_safety_checker,
    check_unet,
    find_unet,
    find_unets,
    load_controlnet,
    load_safety_checker,
    put_unet,
)
from semantic_aug.diffusion.inspecting import ModelInfo, check_resolution, inspect_model
from semantic_aug.diffusion.loading import (
    SCHEDULERS,
    check_steps,
    load_pipeline,
    offload,
    pick_device,
    pick_dtype,
    set_scheduler,
    tune_for_memory,
    tune_for_speed,
)
from semantic_aug.experiment.config import config_id, is_called, read_config
from semantic_aug.experiment.names import (
    BORROWED_WORDS,
    CACHE,
    CONFIG_FILE,
    FINE_TUNED,
    MERGED,
    Trial,
    aug_dir,
    merged_file,
)
from semantic_aug.experiment.processes import at_work
from semantic_aug.experiment.sharding import shard_of
from semantic_aug.experiment.timing import GENERATE, timed
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.gate import (
    MODELS,
    Filter,
    check_trial,
    load_scorer,
    make_filter,
    mark_worst,
    score_images,
    unscored,
)
from semantic_aug.images.framing import FITS
from semantic_aug.images.reading import read_image
from semantic_aug.settings import (
    add_classes_flag,
    add_dataset_flags,
    add_experiment_flags,
    add_model_flags,
    add_shard_flags,
    fraction_below_one,
    non_negative,
    positive_int,
    whole_number,
)
from semantic_aug.stages.common import dataset_of, experiment_of, trials_of
from semantic_aug.synthesis.jobs import Job, make_jobs, share_of
from semantic_aug.synthesis.making import compute, generate
from semantic_aug.synthesis.records import (
    check_settings,
    differing_keys,
    find_images,
    masks_by_class,
    older_precision,
    read_records,
    write_metadata,
)
from semantic_aug.words.embeddings import (
    check_widths,
    class_tokens,
    read_header,
    read_words,
    rows_digest,
    token_for,
)

log = logging.getLogger("semantic_aug.generate_augmentations")

AUTO_BATCH = 32
MOST_IMAGES = 10_000_000  # of a trial: the list of them must fit into memory
OWN = "own"  # the safety checker that the model comes with
# Flags that say more about another one, and mean nothing without it.
DETAILS_OF = {
    "filter_quantile": "filter",
    "filter_model": "filter",
    "lora_scale": "lora",
    "controlnet_scale": "controlnet",
    "safety_retries": "safety_checker",
}
EDIT_FLAGS = ("aug", "strength", "guidance_scale", "mask", "inverted")


def parse_args(argv=None):
    parser = build_parser()
    args = parser.parse_args(argv)
    for detail, of in DETAILS_OF.items():
        if getattr(args, detail) != parser.get_default(detail) and getattr(args, of) is None:
            raise UserError(f"--{detail} means nothing without --{of}: give that too, or neither")
    return args


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add_experiment_flags(parser)
    parser.add_argument("--aug_name", default="aug", help="folder of these images")
    add_dataset_flags(parser)
    add_classes_flag(parser, "--class_name")
    add_model_flags(parser, "--model_path", "--pretrained_model_name_or_path")
    parser.add_argument(
        "--mixed_precision",
        choices=("no", "fp16", "bf16"),
        help="precision of the model (default: fp16 on a GPU, else no)",
    )
    parser.add_argument(
        "--lora", metavar="PATH", help="file, folder or hub id of LoRA weights for the model"
    )
    parser.add_argument("--lora_scale", type=non_negative, default=1.0, help="weight of the LoRA")
    parser.add_argument(
        "--controlnet",
        metavar="NAME",
        help="hub id or folder of a ControlNet for Canny edges: an edit keeps the edges of its "
        "photo, at a high strength too",
    )
    parser.add_argument(
        "--controlnet_scale", type=non_negative, default=1.0, help="weight of the ControlNet"
    )
    parser.add_argument(
        "--unet_path",
        "--erasure_ckpt_path",
        metavar="PATH",
        help="weights for the model's UNet: a folder in diffusers format or a state dict; with "
        "{name} in it, each class has its own",
    )
    parser.add_argument(
        "--safety_checker",
        nargs="?",
        const=OWN,
        metavar="NAME",
        help="make images again that a safety checker flags: the model's own, or that of a folder "
        "or hub id",
    )
    parser.add_argument(
        "--safety_retries",
        type=whole_number(0, 1000),
        default=SAFETY_RETRIES,
        help="how often; an image that stays flagged is black, and no classifier sees it",
    )
    add_shard_flags(parser)

    edits = parser.add_argument_group(
        "edits", "one value counts for all augmentations, else there is one value for each"
    )
    edits.add_argument(
        "--num_synthetic", type=positive_int, default=10, help="variants of each photo"
    )
    edits.add_argument(
        "--aug",
        nargs="+",
        help="real-guidance, textual-inversion, or package.module:ClassName "
        "(default: textual-inversion where the experiment has learned words, else real-guidance)",
    )
    edits.add_argument(
        "--prompt",
        nargs="+",
        default=[DEFAULT_PROMPT],
        help="{name} is the class name or its learned word, {token} the latter alone, "
        "{description} what the dataset says of a photo; of several, or of the lines of a text "
        "file, one is drawn per image",
    )
    edits.add_argument(
        "--strength",
        type=float,
        nargs="+",
        default=[0.5],
        help="how much of a photo is replaced, in (0, 1]",
    )
    edits.add_argument(
        "--guidance_scale", type=float, nargs="+", default=[7.5], help="weight of the prompt"
    )
    edits.add_argument(
        "--mask", type=int, choices=(0, 1), nargs="+", default=[0], help="1: edit the object alone"
    )
    edits.add_argument(
        "--inverted",
        type=int,
        choices=(0, 1),
        nargs="+",
        default=[0],
        help="1, with --mask 1: edit all but the object",
    )
    edits.add_argument(
        "--mask_grow_radius",
        type=non_negative,
        default=0.0,
        help="by how many pixels of the photo the edited region grows",
    )
    edits.add_argument(
        "--mask_feather",
        type=non_negative,
        default=0.0,
        help="width of a soft seam around the edited region, in pixels of the photo",
    )
    edits.add_argument(
        "--fit",
        choices=FITS,
        default="pad",
        help="how a photo gets into the model's square: mirrored at its edges, its middle alone, "
        "or squeezed",
    )
    edits.add_argument(
        "--compose",
        choices=("parallel", "sequential"),
        default="parallel",
        help="of several augmentations, one per image, or one after the other",
    )
    edits.add_argument(
        "--probs",
        type=float,
        nargs="+",
        help="parallel: how often each is drawn, of sum 1 (default equal); sequential: how often "
        "each is applied, in [0, 1] (default 1)",
    )
    edits.add_argument(
        "--num_inference_steps",
        type=whole_number(1, 10_000),
        default=50,
        help="steps of a full denoising, of which an edit runs strength times as many",
    )
    edits.add_argument(
        "--scheduler", choices=SCHEDULERS, help="another sampler (default: the model's own)"
    )
    edits.add_argument(
        "--batch_size",
        type=lambda text: AUTO_BATCH if text == "auto" else positive_int(text),
        default=4,
        help=f"images at once; auto: {AUTO_BATCH}, or what fits into the GPU's memory",
    )
    edits.add_argument(
        "--compile", action="store_true", help="torch.compile the UNet: faster after a minute"
    )
    edits.add_argument(
        "--low_memory",
        action="store_true",
        help="keep parts of the model in the CPU's memory and decode in pieces: fits 8 GB, slower",
    )
    edits.add_argument(
        "--embed_path",
        help="file of learned words, may hold {seed} and {examples_per_class} "
        "(default: the merged file of the trial)",
    )

    gate = parser.add_argument_group(
        "quality gate",
        "the worst images of each class are marked; train_classifier.py leaves "
        "them out, and nothing is deleted",
    )
    gate.add_argument(
        "--filter",
        choices=MODELS,
        help="score every image by its similarity to the name of its class (CLIP), or by the "
        "confidence of a classifier that was trained on the real photos of the trial",
    )
    gate.add_argument(
        "--filter_quantile",
        type=fraction_below_one,
        default=0.1,
        help="share of each class to mark, in [0, 1); another one later computes no score again",
    )
    gate.add_argument(
        "--filter_model",
        help="hub id or folder of the CLIP, or of the classifier's backbone (default "
        f"{', '.join(MODELS.values())})",
    )
    return parser


@command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else [str(arg) for arg in argv]
    if any(arg.split("=")[0] == "--reproduce" for arg in argv):
        return reproduce(argv)
    args = parse_args(argv)
    experiment, trials, shard = experiment_of(args), trials_of(args), shard_of(args)

    # Whatever can be wrong is found before the model is loaded.
    embed_paths = choose_words(args, experiment, trials)
    edits = list_edits(args)
    info = check_model(args, edits)
    device = pick_device(args.device)
    weights = weights_of(args, info)
    plans: list[Plan] = []
    for trial, path in embed_paths.items():
        already = sum(plan.num_blocks for plan in plans)
        plans.append(
            plan_trial(args, experiment, trial, path, info, weights, edits, device, already)
        )
    quality = None
    if args.filter:
        quality = make_filter(args.filter, args.filter_model, args.filter_quantile)
        for plan in plans:
            check_trial(quality, plan.dataset)
    blocks = sum(plan.num_blocks for plan in plans)
    if shard[0] >= blocks:
        print(
            f"nothing to do: shard {shard[0]} of {shard[1]} has none of {counted(blocks, 'block')}"
        )
        return
    load_judge = functools.cache(functools.partial(load_scorer, quality, device))
    if quality and any(lacks_scores(plan, quality, shard) for plan in plans):
        load_judge()

    # Once for all trials, and only if an image is missing.
    pipeline = functools.cache(functools.partial(build_pipeline, args, info, device))
    extras = functools.cache(functools.partial(load_extras, args, info, device))
    wanted = {plan.trial: (len(plan.jobs),) * 2 for plan in plans}
    with at_work(experiment, GENERATE, wanted, args.aug_name, shard) as reporter:
        for plan in plans:
            trial = plan.trial
            reporter.works_on([trial])
            with timed(experiment, GENERATE, args.aug_name, trial, device, args.overwrite) as work:
                made = make_images(args, argv, plan, pipeline, extras, shard, reporter.count)
                work.images = made
                if quality:
                    scored = judge_images(plan, quality, load_judge, shard, experiment / CACHE)
                    work.images = made or (None if scored else 0)
            there = plan.there
            if made:  # to read 100,000 records takes seconds
                there, _ = find_images(plan.folder, config_id(plan.settings))
            total = len(plan.jobs)
            now = counted(made, "image")
            print(f"{plan.folder}: {now} made now; {len(there)} there, {total} wanted")


# --- what is to be done ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be made of one trial.

    Attributes:
        indices: the photos to be edited.
        there: names of the images that were there when this began.
        jobs: all images that are wanted of them, whoever makes them.
        batch_size: images per block.
        already: how many blocks were dealt out before those of this trial.
        settings: whatever changes an image, for config.json.
        of_class: what may change while the settings stay, by class and by its key in records.
        constants: what all records share.
        notes: for config.json, beside the settings.
        make_augmentation: gives the augmentation, from a function that gives the pipeline, and
            what `load_extras` gives.
    """

    trial: Trial
    folder: Path
    dataset: FewShotDataset
    indices: list[int]
    there: set[str]
    jobs: list[Job]
    batch_size: int
    already: int
    settings: dict
    of_class: dict[str, dict]
    constants: dict
    notes: dict
    make_augmentation: Callable

    @property
    def num_blocks(self) -> int:
        return math.ceil(len(self.jobs) / self.batch_size)

    def share_of(self, shard: tuple[int, int]) -> list[list[Job]]:
        """The blocks of one process."""
        return share_of(self.jobs, self.batch_size, shard, self.already)


def choose_words(args, experiment: Path, trials: list[Trial]) -> dict[Trial, Path | None]:
    """Complete the flags about prompts and augmentations; the learned words of each trial, if used.

    Raises:
        UserError: prompts that cannot be filled in, or no words where they are asked for.
    """
    args.prompt = read_prompts(args.prompt)
    check_prompts(args.prompt)
    embed_paths = {trial: find_embeddings(args, experiment, trial) for trial in trials}
    if args.aug is None:
        found = all(embed_paths.values())
        args.aug = ["textual-inversion" if found else "real-guidance"]
    uses_words = "textual-inversion" in args.aug
    report_words(args, experiment, embed_paths, uses_words)
    return embed_paths if uses_words else dict.fromkeys(trials)


def check_model(args, edits: list[dict]) -> ModelInfo:
    """What the model's configuration tells, where it can do these edits.

    Raises:
        UserError: it cannot.
    """
    info = inspect_model(args.model, args.revision, args.variant)
    if info.for_inpainting and not all(edit["mask"] for edit in edits):
        raise UserError(f"{args.model} is for inpainting alone: it needs --mask 1")
    check_resolution(info, args.resolution)
    check_steps(info, args.scheduler, args.num_inference_steps)
    if info.few_steps and args.num_inference_steps > 10:
        log.warning(
            "%s looks like a model for few steps: --num_inference_steps 2 to 8 are enough, and "
            "Turbo models want --guidance_scale 0",
            args.model,
        )
    return info


def plan_trial(
    args, experiment: Path, trial, embed_path, info, weights, edits, device, already: int
) -> Plan:
    """What is to be made of a trial, where nothing stands in its way.

    Raises:
        UserError: a photo lacks what its edits need, weights do not fit the model, or the folder
            holds images that were made with other settings.
    """
    folder = aug_dir(experiment, args.aug_name, trial)
    dataset = dataset_of(args, "train", trial)
    indices = dataset.indices(args.classes)
    if len(indices) * args.num_synthetic > MOST_IMAGES:
        raise UserError(
            f"--num_synthetic: got {args.num_synthetic} for {counted(len(indices), 'photo')}, "
            f"expected {MOST_IMAGES:,} images of a trial at most"
        )
    check_photos(dataset, indices, embed_path, info, any(edit["mask"] for edit in edits))
    check_fields(args.prompt, edits, dataset, indices)
    names = [dataset.class_names[dataset.get_label_by_idx(idx)] for idx in indices]
    unets = class_unets(args, names)
    settings = settings_of(args, dataset, info, weights, edits)
    settings = check_settings(folder, settings, args.overwrite)
    masked = indices if uses_masks(args, edits) else []
    details = details_of_classes(dataset, embed_path, info, unets, masked)
    precision = precision_of(args, device)
    of_class = {name: details[name] | {"precision": precision} for name in dict.fromkeys(names)}
    there, stale = find_images(folder, config_id(settings), of_class)
    if stale and not args.overwrite:
        raise UserError(
            f"{folder} holds images made {what_differs(stale, of_class, embed_path)}; choose "
            "another --aug_name or pass --overwrite to make them again"
        )
    # Augmentations of which one is drawn per image get their images from more jobs, so that each
    # has a full batch all the same.
    alternatives = len(edits) if args.compose == "parallel" else 1
    constants = {
        "seed": trial.seed,
        "examples_per_class": trial.examples_per_class,
        "num_inference_steps": args.num_inference_steps,
        "resolution": check_resolution(info, args.resolution),
        "model": args.model,
    }
    for key in ("lora", "unet_path", "controlnet", "safety_checker"):
        if getattr(args, key):
            constants[key] = getattr(args, key)
            if hasattr(args, f"{key}_scale"):
                constants[f"{key}_scale"] = getattr(args, f"{key}_scale")
    return Plan(
        trial,
        folder,
        dataset,
        indices,
        there,
        make_jobs(indices, args.num_synthetic),
        args.batch_size * alternatives,
        already,
        settings,
        of_class,
        constants,
        words_note(embed_path, trial),
        functools.partial(build_augmentation, args, edits, info, embed_path, unets),
    )


def settings_of(args, dataset, info: ModelInfo, weights: dict, edits: list[dict]) -> dict:
    """Whatever changes an image, for config.json."""
    masked = any(edit["mask"] for edit in edits)
    return {
        "dataset": args.dataset,
        "dataset_args": sorted(args.dataset_args),
        "crop_to_object": args.crop_to_object,
        "photos": dataset.photo_digest(),
        **weights,
        "resolution": check_resolution(info, args.resolution),
        "num_inference_steps": args.num_inference_steps,
        "scheduler": args.scheduler,
        "fit": args.fit,
        "mask_grow_radius": args.mask_grow_radius if masked else 0,
        "mask_feather": args.mask_feather if masked else 0,
        "prompt": args.prompt,
        "edits": edits,
        "compose": args.compose if len(edits) > 1 else None,
        "probs": check_probs(args.probs, len(edits), args.compose),
    }


def weights_of(args, info: ModelInfo) -> dict:
    """Which weights make the images of all classes, as settings; what is not used is not there.

    Raises:
        UserError: they do not fit the model.
    """
    weights = {"model": info.identity}
    of_each = bool(args.unet_path) and "{name}" in args.unet_path
    if args.lora and of_each:
        raise UserError("--lora needs one UNet for all classes: leave {name} out of --unet_path")
    if args.lora:
        weights |= {"lora": check_lora(info, args.lora), "lora_scale": args.lora_scale}
    if args.unet_path:
        path = args.unet_path
        weights["unet"] = "of each class" if of_each else check_unet(info, find_unet(path))
    if args.controlnet:
        weights["controlnet"] = check_controlnet(info, args.controlnet)
        weights["controlnet_scale"] = args.controlnet_scale
    if args.safety_checker:
        weights["safety_checker"] = check_safety_checker(info, safety_checker_name(args))
        weights["safety_retries"] = args.safety_retries
    return weights


def safety_checker_name(args) -> str | None:
    """None for the model's own."""
    return None if args.safety_checker == OWN else args.safety_checker


def class_unets(args, class_names: Iterable[str]) -> dict[str, Path]:
    """The weights of each class's own UNet; empty where classes share one."""
    if not args.unet_path or "{name}" not in args.unet_path:
        return {}
    return find_unets(args.unet_path, list(dict.fromkeys(class_names)))


def uses_masks(args, edits: list[dict]) -> bool:
    """Whether an image would be another one if its photo had another mask."""
    by_edit = (edit["mask"] or augmentation_class(edit["aug"]).needs_mask for edit in edits)
    return args.crop_to_object or any(by_edit)


def details_of_classes(dataset, embed_path: Path | None, info: ModelInfo, unets, masked) -> dict:
    """What changes the images of one class alone, by the key it has in their records.

    Args:
        masked: photos whose masks do.
    """
    details: dict[str, dict] = {name: {} for name in dataset.class_names}
    for name, digest in word_digests(embed_path, dataset, len(info.embedding_dims)).items():
        details[name]["embeddings"] = digest
    for name, path in unets.items():
        details[name]["unet"] = check_unet(info, path)
    for name, digest in masks_by_class(dataset, masked).items():
        details[name]["masks"] = digest
    return details


def what_differs(stale: dict[str, dict], of_class: dict[str, dict], embed_path) -> str:
    """With what images that are out of date were made, and of which classes they are."""
    what = {
        "embeddings": f"with other words than those in {embed_path}",
        "unet": "with other weights",
        "masks": "with other masks",
    }
    names: dict[str, set[str]] = {}
    for record in stale.values():
        name = record["class_name"]
        for key in differing_keys(record, of_class[name]):
            now = f"in another precision (there {record[key]}, now {of_class[name][key]})"
            names.setdefault(what.get(key, now), set()).add(name)
    return ", and ".join(
        f"{text} for: {', '.join(name for name in of_class if name in each)}"
        for text, each in names.items()
    )


# --- doing it --------------------------------------------------------------------------------


def make_images(args, argv, plan: Plan, pipeline, extras, shard, count) -> int:
    """This process's share of the images that are missing; how many were made."""
    return generate(
        plan.dataset,
        lambda: plan.make_augmentation(pipeline, extras()),
        plan.folder,
        plan.settings,
        num_synthetic=args.num_synthetic,
        batch_size=plan.batch_size,
        seed=plan.trial.seed,
        indices=plan.indices,
        shard=shard,
        already=plan.already,
        constants=plan.constants,
        arguments={**vars(args), "command": command_line(argv)},
        notes=plan.notes,
        of_class=plan.of_class,
        count=count,
    )


def judge_images(plan: Plan, quality: Filter, load_judge, shard, cache: Path) -> int:
    """Score this process's share, and mark the worst of every class that is complete.

    Returns:
        How many images were scored.
    """
    folder, identity = plan.folder, config_id(plan.settings)
    names, of_class = plan.dataset.class_names, {}
    for job in plan.jobs:
        of_class.setdefault(names[plan.dataset.get_label_by_idx(job.index)], []).append(job)
    try:
        scored = score_images(
            folder,
            identity,
            quality,
            lambda: load_judge()(plan.dataset, plan.trial, cache),
            plan.dataset,
            names_to_score(plan, quality, shard),
            shard,
        )
        judged = mark_worst(folder, identity, quality, of_class, shard)
    finally:
        write_metadata(folder, identity)  # which has the scores too
    kept, total = (sum(column) for column in zip((0, 0), *judged.values()))
    line = (
        f"{folder}: {counted(scored, 'image')} scored now; "
        f"{kept} of {total} kept by --filter {quality.kind}"
    )
    if len(judged) < len(of_class):
        line += "; images of other processes are still lacking in "
        line += counted(len(of_class) - len(judged), "class")
    print(line)
    return scored


def names_to_score(plan: Plan, quality: Filter, shard: tuple[int, int]) -> set[str]:
    """This process's share of the images, and, of the first one, those beyond what is wanted."""
    names = {job.file_name for block in plan.share_of(shard) for job in block}
    if shard[0] == 0:
        labels = {plan.dataset.get_label_by_idx(idx) for idx in plan.indices}
        there = unscored(plan.folder, config_id(plan.settings), quality)
        wanted = {job.file_name for job in plan.jobs}
        names |= {r["file_name"] for r in there if r["label"] in labels} - wanted
    return names


def lacks_scores(plan: Plan, quality: Filter, shard: tuple[int, int]) -> bool:
    """Whether an image of this process's share is yet to be made, or to be scored."""
    identity = config_id(plan.settings)
    there, _ = find_images(plan.folder, identity, plan.of_class)
    todo = {record["file_name"] for record in unscored(plan.folder, identity, quality)}
    names = names_to_score(plan, quality, shard)
    return bool(names & todo or names - there)


def precision_of(args, device) -> str:
    """In which precision the model works, as records say it."""
    return "no" if device.type == "cpu" else args.mixed_precision or "fp16"


def dtype_of(args, device):
    """In which precision the model works."""
    return pick_dtype(device, args.mixed_precision or precision_of(args, device))


def offloads(args, device) -> bool:
    """Whether parts of the model wait in the CPU's memory."""
    return args.low_memory and device.type == "cuda"


def home_of(args, device) -> torch.device:
    """Where what is loaded waits."""
    return torch.device("cpu") if offloads(args, device) else device


def build_pipeline(args, info: ModelInfo, device):
    """The model, loaded and set up as the flags say, but for `offload`."""
    pipeline = load_pipeline(info, home_of(args, device), dtype_of(args, device))
    if args.unet_path and "{name}" not in args.unet_path:
        put_unet(pipeline, Path(args.unet_path))
    if args.lora:
        add_lora(pipeline, info, args.lora, args.lora_scale)
    set_scheduler(pipeline, args.scheduler)
    if args.low_memory:
        tune_for_memory(pipeline)
    tune_for_speed(pipeline, args.compile)
    return pipeline


def read_prompts(prompts: list[str]) -> list[str]:
    """The prompts given, with the lines of a text file in place of its name."""
    found = []
    for prompt in prompts:
        if not prompt.endswith(".txt"):
            found.append(prompt)
            continue
        try:
            lines = Path(prompt).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UserError(f"--prompt: cannot read {prompt}: {reason}") from None
        found += [line.strip() for line in lines if line.strip()]
        if not any(line.strip() for line in lines):
            raise UserError(f"--prompt: {prompt} is empty, expected a prompt per line")
    return found


def check_prompts(prompts: list[str]) -> None:
    """Raise UserError for a prompt that cannot be filled in; say where one names no class."""
    for prompt in prompts:
        check_prompt(prompt)
        if not any(field in prompt for field in ("{name}", "{token}", "{description}")):
            log.warning("--prompt %r has no {name}: it says nothing about the class", prompt)


def list_edits(args) -> list[dict]:
    """One mapping per augmentation from the lists of flags; a list of one counts for all.

    Raises:
        UserError: lists of different lengths, or values that no edit can have.
    """
    lists = {key: getattr(args, key) for key in EDIT_FLAGS}
    count = max(map(len, lists.values()))
    for key, values in lists.items():
        if len(values) not in (1, count):
            longest = next(k for k, v in lists.items() if len(v) == count)
            raise UserError(
                f"--{key} has {len(values)} values, --{longest} has {count}: give one value for "
                "all augmentations or one for each"
            )
    rows = [
        {key: values[number % len(values)] for key, values in lists.items()}
        for number in range(count)
    ]
    for row in rows:
        augmentation_class(row["aug"])
        check_strength(row["strength"], args.num_inference_steps)
        check_guidance_scale(row["guidance_scale"])
        if row["inverted"] and not row["mask"]:
            raise UserError("--inverted 1 needs --mask 1: there is no mask to invert")
    check_probs(args.probs, count, args.compose)
    return rows


def find_embeddings(args, experiment: Path, trial: Trial) -> Path | None:
    """The file of learned words for a trial; None where there is none.

    Raises:
        UserError: `--embed_path` names no file.
    """
    if args.embed_path:
        path = Path(trial.fill(args.embed_path))
        if not path.is_file():
            raise UserError(
                f"--embed_path: {path} does not exist; aggregate_embeddings.py makes it"
            )
        return path
    own = merged_file(experiment, trial)
    if own.is_file():
        return own
    others = [path for path in (experiment / MERGED).glob("*.safetensors") if distance(path, trial)]
    return min(others, key=lambda path: distance(path, trial), default=None)


def distance(path: Path, trial: Trial) -> tuple | None:
    """Sorts other trials' words: first those from no more photos, then those of the same seed."""
    name = re.fullmatch(r"seed=(\d+)_ex=(\d+)", path.stem)
    if name is None:
        return None
    seed, examples = int(name[1]), int(name[2])
    more = examples > trial.examples_per_class
    return more, abs(examples - trial.examples_per_class), seed != trial.seed, seed


def report_words(args, experiment: Path, embed_paths: dict, uses_words: bool) -> None:
    """Say what guides the edits, and whatever about it could surprise."""
    log.info("augmentation: %s", ", ".join(dict.fromkeys(args.aug)))
    missing = [trial.name for trial, path in embed_paths.items() if path is None]
    if uses_words and missing:
        raise UserError(
            f"no learned words for {', '.join(missing)} in {experiment / MERGED}; run fine_tune.py "
            "and aggregate_embeddings.py, or use --aug real-guidance"
        )
    if not uses_words and len(missing) < len(embed_paths):
        log.warning("the experiment has learned words, and they are not used")
    elif not uses_words and any((experiment / FINE_TUNED).glob("seed=*/*/learned_embeds.*")):
        log.warning(
            "the experiment has learned words, and they are not used: "
            "aggregate_embeddings.py has not merged them"
        )
    for trial, path in embed_paths.items() if uses_words else ():
        if words_note(path, trial).get(BORROWED_WORDS):
            log.warning(
                "%s does not use learned words of its own, but those in %s; words learned from "
                "other or more photos than the trial has make its result optimistic",
                trial.name,
                path,
            )


def words_note(path: Path | None, trial: Trial) -> dict[str, str | None]:
    """For config.json: of which other trial the words in a file are, None for its own or no words.

    Empty where it is not known.
    """
    if path is None:
        return {BORROWED_WORDS: None}
    header, name = read_header(path), path.stem
    if {"seed", "examples_per_class"} <= header.keys():
        name = f"seed={header['seed']}_ex={header['examples_per_class']}"
    elif not re.fullmatch(r"seed=\d+_ex=\d+", name):
        return {}
    return {BORROWED_WORDS: None if name == trial.name else name}


def check_photos(dataset, indices, embed_path: Path | None, info, needs_mask: bool) -> None:
    """Raise UserError where a photo lacks what its edits need: a learned word, a mask."""
    present = {dataset.get_label_by_idx(idx) for idx in indices}
    names = [dataset.class_names[label] for label in sorted(present)]
    if not names:
        raise UserError("none of the classes chosen has a photo")
    if dataset.empty_classes():
        empty = ", ".join(dataset.empty_classes())
        log.warning("classes without a training photo, left out: %s", empty)
    if embed_path is not None:
        embeddings, *rest = read_words(embed_path, len(info.embedding_dims))
        check_widths(embed_path, [embeddings, *rest], info.embedding_dims)
        known = class_tokens(read_header(embed_path), embeddings)
        without = [name for name in names if token_for(name, known, embeddings) is None]
        if without:
            raise UserError(
                f"{embed_path} has no word for: {', '.join(without)}; run fine_tune.py and "
                "aggregate_embeddings.py for them (its --word CLASS=FILE takes a word from "
                "elsewhere), or leave them out with --classes"
            )
    if needs_mask:
        sources = dataset.sources()
        for idx in indices:
            on_object = (dataset.get_mask_by_idx(idx) > 0).mean()
            if on_object in (0, 1):
                what = "empty" if on_object == 0 else "the whole photo"
                log.warning("%s: its mask is %s", sources[idx], what)


def check_fields(prompts: list[str], edits: list[dict], dataset, indices) -> None:
    """Raise UserError for a prompt that asks what no edit knows: a learned word, a description."""
    prompts = [each for each in prompts if "{token}" in each or "{description}" in each]
    known = {"real-guidance": {}, "textual-inversion": {"token": [""]}}  # others' own is theirs
    for aug in known.keys() & {edit["aug"] for edit in edits} if prompts else ():
        for idx in indices:
            (fields,) = words_of([dataset.get_metadata_by_idx(idx)], **known[aug])
            for prompt in prompts:
                fill_prompt(prompt, fields)


def word_digests(embed_path: Path | None, dataset, num_encoders: int) -> dict[str, str]:
    """sha256 of the learned word of every class that has one; empty where none are used."""
    if embed_path is None:
        return {}
    words = read_words(embed_path, num_encoders)
    known = class_tokens(read_header(embed_path), words[0])
    tokens = {name: token_for(name, known, words[0]) for name in dataset.class_names}
    return {
        name: rows_digest(*(of_encoder[token] for of_encoder in words))
        for name, token in tokens.items()
        if token
    }


def command_line(argv) -> str:
    """This command, to be pasted."""
    return shlex.join(["python", Path(__file__).name, *(sys.argv[1:] if argv is None else argv)])


def load_extras(args, info: ModelInfo, device) -> dict:
    """What works beside the model, loaded, as options of an edit; what is not used is not there."""
    extras = {}
    if args.controlnet:
        extras["controlnet"] = load_controlnet(
            args.controlnet, home_of(args, device), dtype_of(args, device)
        )
        extras["controlnet_scale"] = args.controlnet_scale
    if args.safety_checker:
        name = safety_checker_name(args)
        extras["safety_checker"] = load_safety_checker(info, name, device)
        extras["safety_retries"] = args.safety_retries
    return extras


def build_augmentation(args, edits, info, embed_path, unets, pipeline, extras):
    """The augmentation that the flags describe; `pipeline()` loads the model."""
    device, wanted = pick_device(args.device), []
    if offloads(args, device):
        pipeline().remove_all_hooks()  # of the trial before
    for edit in edits:
        options = {key: value for key, value in edit.items() if key != "aug"}
        options |= {
            "prompt": args.prompt,
            "num_inference_steps": args.num_inference_steps,
            "resolution": check_resolution(info, args.resolution),
            "batch_size": args.batch_size,
            "fit": args.fit,
            "mask_grow_radius": args.mask_grow_radius,
            "mask_feather": args.mask_feather,
            **extras,
        }
        if edit["aug"] == "textual-inversion":
            options["embed_path"] = embed_path
        made = augmentation_class(edit["aug"])
        try:
            inspect.signature(made).bind(pipeline=None, **options)
        except TypeError as error:
            raise UserError(
                f"--aug: {edit['aug']} cannot be made: {error}; its __init__ is given pipeline and "
                "the options of an edit by name, of which **options takes all"
            ) from None
        wanted.append((made, options))
    augs = [made(pipeline=pipeline(), **options) for made, options in wanted]
    if offloads(args, device):
        edited = [aug.edit.pipeline for aug in augs if hasattr(aug, "edit")]
        offload([pipeline(), *edited], device)
    augmentation = augs[0]
    if len(augs) > 1 or args.probs not in (None, [1.0]):
        compose = ComposeParallel if args.compose == "parallel" else ComposeSequential
        augmentation = compose(augs, args.probs)
    if not unets:
        return augmentation
    return PerClass(augmentation, lambda name: put_unet(pipeline(), unets[name]))


# --- one image again -------------------------------------------------------------------------


MADE_WITH = {
    "model": "weights of the model",
    "photos": "photos of the trial",
    "embeddings": "rows of the learned word",
    "lora": "weights of the LoRA",
    "unet": "weights of the UNet",
    "controlnet": "weights of the ControlNet",
    "masks": "masks of its class",
    "safety_checker": "weights of the safety checker",
}


def check_arguments(folder: Path, arguments: dict) -> None:
    """Raise UserError for arguments in a folder's config.json that no flags give."""
    for action in build_parser()._actions:
        value = arguments.get(action.dest)
        kind = str if action.type is None else int | float
        values = value if action.nargs == "+" else [value]
        if action.nargs == 0:
            kind = bool
        if value is None and not action.required:
            continue
        if not isinstance(values, list) or not all(isinstance(each, kind) for each in values):
            raise UserError(
                f"--reproduce: {folder / CONFIG_FILE} is damaged: {action.dest} is {value!r}"
            )


def flags_of_edits(folder: Path, edits: object) -> dict[str, list]:
    """The flags from which `list_edits` makes the edits in a folder's config.json."""
    try:
        flags = {key: [edit[key] for edit in edits] for key in EDIT_FLAGS}
    except (KeyError, TypeError):
        flags = {}
    if not any(flags.values()):
        raise UserError(f"--reproduce: {folder / CONFIG_FILE} is damaged: edits is {edits!r}")
    return flags


def reproduce(argv) -> None:
    """Make one image again from its record and its folder's config.json, and compare."""
    parser = Parser("Make one synthetic image again, and say whether it is equal.")
    parser.add_argument("--reproduce", metavar="IMAGE", required=True, type=Path)
    parser.add_argument("--data_dir", help="where the photos are now (default: where they were)")
    parser.add_argument("--model_path", help="where the model is now (default: where it was)")
    parser.add_argument("--lora", help="where the LoRA is now (default: where it was)")
    parser.add_argument("--unet_path", help="where the UNet is now (default: where it was)")
    parser.add_argument("--controlnet", help="where the ControlNet is now (default: where it was)")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    given = parser.parse_args(argv)
    path, config = given.reproduce, read_config(given.reproduce.parent)
    records = {record["file_name"]: record for record in read_records(path.parent)}
    if config is None or path.name not in records:
        raise UserError(
            f"--reproduce: {path} is no image of generate_augmentations.py with a record"
        )
    record, settings = records[path.name], config.get("settings", {})
    try:
        there = read_image(path)
    except UserError as error:
        raise UserError(
            f"--reproduce: {error}; delete it, and the command that made it makes it again"
        ) from error
    arguments = config.get("arguments", {})
    arguments = {**arguments, **flags_of_edits(path.parent, settings.get("edits"))}
    check_arguments(path.parent, arguments)
    defaults = vars(parse_args(["--dataset=-", "--experiment_name=-"]))  # for newer flags
    # A folder whose config.json says nothing of older_list was made by an earlier version.
    args = argparse.Namespace(**{**defaults, "older_list": True, **arguments})
    args.model, args.device = given.model_path or args.model, given.device
    precision = record.get("precision") or older_precision(path.parent)
    args.mixed_precision = precision or args.mixed_precision
    for key in ("data_dir", "lora", "unet_path", "controlnet"):
        setattr(args, key, getattr(given, key) or getattr(args, key))
    trial, name = Trial(record["seed"], record["examples_per_class"]), record["class_name"]
    edits = list_edits(args)
    info = inspect_model(args.model, args.revision, args.variant)
    dataset = dataset_of(args, "train", trial)
    sources = dataset.sources()
    if record["source"] not in sources:
        raise UserError(
            f"--reproduce: {path} was made from {record['source']}, which is not among the "
            f"training photos of seed={trial.seed}, examples_per_class={trial.examples_per_class}"
        )
    embed_path = None
    if "textual-inversion" in args.aug:
        embed_path = find_embeddings(args, path.parent.parent.parent, trial)
    unets = class_unets(args, [name])
    masked = dataset.indices([name]) if uses_masks(args, edits) else []
    details = details_of_classes(dataset, embed_path, info, unets, masked)
    own = {"embeddings": None, **details.get(name, {})}
    own = {key: value for key, value in own.items() if key in record}  # older ones say less
    common = {**weights_of(args, info), "photos": dataset.photo_digest()}
    for stored, now in ((settings, common), (record, own)):
        for key, value in now.items():
            if not is_called(value, stored.get(key)):
                raise UserError(
                    f"--reproduce: {path} was made with other {MADE_WITH.get(key, key)}: "
                    f"then {stored.get(key)}, now {value}"
                )
    device = pick_device(args.device)
    job = Job(sources.index(record["source"]), record["repeat"])
    augmentation = build_augmentation(
        args,
        edits,
        info,
        embed_path,
        unets,
        functools.cache(lambda: build_pipeline(args, info, device)),
        load_extras(args, info, device),
    )
    ((_, image, _),) = compute(dataset, augmentation, [job], sources, trial.seed)
    if image.size != there.size:
        print(f"{path}: its size is {there.size}, not {image.size}")
        raise SystemExit(1)
    difference = ImageChops.difference(image, there)
    largest = max(high for _, high in difference.getextrema())
    if largest == 0:
        print(f"{path}: equal")
    elif largest <= 2:
        print(f"{path}: at most {largest} of 255 apart, as images of another batch size are")
    else:
        print(f"{path}: differs by up to {largest} of 255")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
