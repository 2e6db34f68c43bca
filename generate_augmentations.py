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

import functools
import sys
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.augmentations.sdedit import DEFAULT_PROMPT, SAFETY_RETRIES
from semantic_aug.cli.command import Parser, command
from semantic_aug.diffusion.loading import SCHEDULERS, pick_device
from semantic_aug.experiment.config import config_id
from semantic_aug.experiment.names import CACHE
from semantic_aug.experiment.processes import at_work
from semantic_aug.experiment.sharding import shard_of
from semantic_aug.experiment.timing import GENERATE, timed
from semantic_aug.gate import MODELS, check_trial, load_scorer, make_filter
from semantic_aug.images.framing import FITS
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
from semantic_aug.stages.choosing_words import choose_words
from semantic_aug.stages.common import experiment_of, trials_of
from semantic_aug.stages.editing import (
    OWN,
    build_pipeline,
    check_model,
    list_edits,
    load_extras,
    weights_of,
)
from semantic_aug.stages.generate import Plan, judge_images, lacks_scores, make_images, plan_trial
from semantic_aug.stages.reproduce import reproduce
from semantic_aug.synthesis.records import find_images

AUTO_BATCH = 32
# Flags that say more about another one, and mean nothing without it.
DETAILS_OF = {
    "filter_quantile": "filter",
    "filter_model": "filter",
    "lora_scale": "lora",
    "controlnet_scale": "controlnet",
    "safety_retries": "safety_checker",
}


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


def parse_reproduce_args(argv):
    parser = Parser("Make one synthetic image again, and say whether it is equal.")
    parser.add_argument("--reproduce", metavar="IMAGE", required=True, type=Path)
    parser.add_argument("--data_dir", help="where the photos are now (default: where they were)")
    parser.add_argument("--model_path", help="where the model is now (default: where it was)")
    parser.add_argument("--lora", help="where the LoRA is now (default: where it was)")
    parser.add_argument("--unet_path", help="where the UNet is now (default: where it was)")
    parser.add_argument("--controlnet", help="where the ControlNet is now (default: where it was)")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    return parser.parse_args(argv)


@command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else [str(arg) for arg in argv]
    if any(arg.split("=")[0] == "--reproduce" for arg in argv):
        return reproduce(parse_reproduce_args(argv), build_parser())
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


if __name__ == "__main__":
    main()
