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

import argparse
import functools
import logging
import math
import re
import shlex
import sys
from pathlib import Path

from PIL import Image, ImageChops

from semantic_aug import UserError
from semantic_aug.augmentations import augmentation_class
from semantic_aug.augmentations.compose import ComposeParallel, ComposeSequential, check_probs
from semantic_aug.augmentations.sdedit import (
    DEFAULT_PROMPT,
    check_guidance_scale,
    check_prompt,
    check_strength,
)
from semantic_aug.cli import (
    Parser,
    add_classes_flag,
    add_dataset_flags,
    add_experiment_flags,
    add_model_flags,
    add_shard_flags,
    command,
    dataset_of,
    experiment_of,
    non_negative,
    positive_int,
    shard_of,
    trials_of,
)
from semantic_aug.diffusion import (
    SCHEDULERS,
    check_resolution,
    inspect_model,
    load_pipeline,
    pick_device,
    pick_dtype,
    set_scheduler,
    tune_for_memory,
    tune_for_speed,
)
from semantic_aug.embeddings import (
    check_widths,
    class_tokens,
    read_header,
    read_words,
    rows_digest,
    token_for,
)
from semantic_aug.experiment import (
    FINE_TUNED,
    MERGED,
    Trial,
    aug_dir,
    check_config,
    config_id,
    merged_file,
    read_config,
)
from semantic_aug.framing import FITS
from semantic_aug.generation import (
    Job,
    compute,
    generate,
    has_records,
    read_records,
    stale_records,
)
from semantic_aug.processes import at_work
from semantic_aug.timing import GENERATE, timed

log = logging.getLogger("semantic_aug.generate_augmentations")

AUTO_BATCH = 32


def parse_args(argv=None):
    return build_parser().parse_args(argv)


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
        type=positive_int,
        default=50,
        help="steps of a full denoising, of which an edit runs strength times as many",
    )
    edits.add_argument(
        "--scheduler", choices=SCHEDULERS, help="another sampler (default: the model's own)"
    )
    edits.add_argument(
        "--batch_size",
        type=lambda text: text if text == "auto" else positive_int(text),
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
    return parser


@command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else [str(arg) for arg in argv]
    if any(arg.split("=")[0] == "--reproduce" for arg in argv):
        return reproduce(argv)
    args = parse_args(argv)
    experiment, trials, shard = experiment_of(args), trials_of(args), shard_of(args)

    # Whatever can be wrong is found before the model is loaded.
    folders = {trial: aug_dir(experiment, args.aug_name, trial) for trial in trials}
    args.prompt = read_prompts(args.prompt)
    check_prompts(args.prompt)
    if args.batch_size == "auto":
        args.batch_size = AUTO_BATCH
    embed_paths = {trial: find_embeddings(args, experiment, trial) for trial in trials}
    if args.aug is None:
        found = all(embed_paths.values())
        args.aug = ["textual-inversion" if found else "real-guidance"]
    edits = list_edits(args)
    uses_words = "textual-inversion" in args.aug
    report_words(args, experiment, embed_paths, uses_words)
    info = inspect_model(args.model, args.revision, args.variant)
    if info.for_inpainting and not all(edit["mask"] for edit in edits):
        raise UserError(f"{args.model} is for inpainting alone: it needs --mask 1")
    resolution = check_resolution(info, args.resolution)
    device = pick_device(args.device)
    masked = any(edit["mask"] for edit in edits)
    work = {}
    for trial, folder in folders.items():
        embed_path = embed_paths[trial] if uses_words else None
        dataset = dataset_of(args, "train", trial)
        indices = dataset.indices(args.classes)
        check_photos(dataset, indices, embed_path, info, masked)
        settings = {
            "dataset": args.dataset,
            "dataset_args": sorted(args.dataset_args),
            "crop_to_object": args.crop_to_object,
            "photos": dataset.photo_digest(),
            "model": info.identity,
            "resolution": resolution,
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
        check_config(folder, settings, has_records(folder), args.overwrite)
        digests = word_digests(embed_path, dataset, len(info.embedding_dims))
        stale = stale_records(folder, config_id(settings), digests)
        if stale and not args.overwrite:
            raise UserError(
                f"{folder} holds images made with other words than those in {embed_path} for: "
                f"{', '.join(dict.fromkeys(r['class_name'] for r in stale))}; choose another "
                "--aug_name or pass --overwrite to make them again"
            )
        work[trial] = (dataset, indices, embed_path, settings, digests)

    # Once for all trials, and only if an image is missing.
    pipeline = functools.cache(functools.partial(build_pipeline, args, info, device))
    # Augmentations of which one is drawn per image get their images from more jobs, so that each
    # has a full batch all the same.
    alternatives = len(edits) if args.compose == "parallel" else 1
    batch_size = args.batch_size * alternatives
    wanted = {
        trial: (len(indices) * args.num_synthetic,) * 2 for trial, (_, indices, *_) in work.items()
    }
    num_blocks = [math.ceil(images / batch_size) for images, _ in wanted.values()]
    if shard[0] >= sum(num_blocks):
        print(f"nothing to do: shard {shard[0]} of {shard[1]} has none of {sum(num_blocks)} blocks")
        return
    with at_work(experiment, GENERATE, wanted, args.aug_name, shard) as reporter:
        for number, (trial, planned) in enumerate(work.items()):
            dataset, indices, embed_path, settings, digests = planned
            folder = folders[trial]
            reporter.works_on([trial])
            with timed(experiment, GENERATE, args.aug_name, trial, device, args.overwrite) as done:
                made = done.images = generate(
                    dataset,
                    functools.partial(
                        build_augmentation, args, edits, pipeline, resolution, embed_path
                    ),
                    folder,
                    settings,
                    num_synthetic=args.num_synthetic,
                    batch_size=batch_size,
                    seed=trial.seed,
                    indices=indices,
                    shard=shard,
                    already=sum(num_blocks[:number]),
                    constants={
                        "seed": trial.seed,
                        "examples_per_class": trial.examples_per_class,
                        "num_inference_steps": args.num_inference_steps,
                        "resolution": resolution,
                        "model": args.model,
                    },
                    arguments={**vars(args), "command": command_line(argv)},
                    word_digests=digests,
                    count=reporter.count,
                )
            total, there = wanted[trial][0], len(read_records(folder, config_id(settings)))
            print(f"{folder}: {made} images made now; {there} there, {total} wanted")


def build_pipeline(args, info, device):
    """The model, loaded and set up as the flags say."""
    precision = args.mixed_precision or ("no" if device.type == "cpu" else "fp16")
    pipeline = load_pipeline(info, device, pick_dtype(device, precision))
    set_scheduler(pipeline, args.scheduler)
    if args.low_memory:
        tune_for_memory(pipeline)
    tune_for_speed(pipeline, args.compile)
    return pipeline


def reproduce(argv) -> None:
    """Make one image again from its record and its folder's config.json, and compare."""
    parser = Parser("Make one synthetic image again, and say whether it is equal.")
    parser.add_argument("--reproduce", metavar="IMAGE", required=True, type=Path)
    parser.add_argument("--data_dir", help="where the photos are now (default: where they were)")
    parser.add_argument("--model_path", help="where the model is now (default: where it was)")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    given = parser.parse_args(argv)
    path, config = given.reproduce, read_config(given.reproduce.parent)
    records = {record["file_name"]: record for record in read_records(path.parent)}
    if config is None or path.name not in records:
        raise UserError(
            f"--reproduce: {path} is no image of generate_augmentations.py with a record"
        )
    record, stored, settings = records[path.name], config["arguments"], config["settings"]
    args = argparse.Namespace(**stored)
    args.data_dir, args.device = given.data_dir or args.data_dir, given.device
    args.model = given.model_path or args.model
    trial = Trial(record["seed"], record["examples_per_class"])
    info, device = inspect_model(args.model, args.revision, args.variant), pick_device(args.device)
    dataset = dataset_of(args, "train", trial)
    uses_words = "textual-inversion" in args.aug
    embed_path = find_embeddings(args, path.parent.parent.parent, trial) if uses_words else None
    digest = word_digests(embed_path, dataset, len(info.embedding_dims)).get(record["class_name"])
    for what, before, now in (
        ("other weights of the model", settings["model"], info.identity),
        ("other photos of the trial", settings["photos"], dataset.photo_digest()),
        ("other rows of the learned word", record["embeddings"], digest),
    ):
        if before != now:
            raise UserError(f"--reproduce: {path} was made with {what}: then {before}, now {now}")
    sources = dataset.sources()
    job = Job(sources.index(record["source"]), record["repeat"])
    augmentation = build_augmentation(
        args,
        settings["edits"],
        lambda: build_pipeline(args, info, device),
        record["resolution"],
        embed_path,
    )
    ((_, image, _),) = compute(dataset, augmentation, [job], sources, trial.seed)
    with Image.open(path) as there:
        difference = ImageChops.difference(image, there.convert("RGB"))
    largest = max(high for _, high in difference.getextrema())
    if largest == 0:
        print(f"{path}: equal")
    elif largest <= 2:
        print(f"{path}: at most {largest} of 255 apart, as images of another batch size are")
    else:
        print(f"{path}: differs by up to {largest} of 255")
        raise SystemExit(1)


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


EDIT_FLAGS = ("aug", "strength", "guidance_scale", "mask", "inverted")


def find_embeddings(args, experiment: Path, trial: Trial) -> Path | None:
    """The file of learned words for a trial; None where there is none.

    Raises:
        UserError: `--embed_path` names no file.
    """
    if args.embed_path:
        values = {"seed": trial.seed, "examples_per_class": trial.examples_per_class}
        path = args.embed_path
        for key, value in values.items():
            path = path.replace(f"{{{key}}}", str(value))
        if not Path(path).is_file():
            raise UserError(
                f"--embed_path: {path} does not exist; aggregate_embeddings.py makes it"
            )
        return Path(path)
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
    for trial, path in embed_paths.items():
        if uses_words and not args.embed_path and path != merged_file(experiment, trial):
            log.warning(
                "%s has no learned words of its own: those in %s are used; words learned from "
                "other or more photos than the trial has make its result optimistic",
                trial.name,
                path,
            )


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
                "aggregate_embeddings.py for them, or leave them out with --classes"
            )
    if needs_mask:
        sources = dataset.sources()
        for idx in indices:
            on_object = (dataset.get_mask_by_idx(idx) > 0).mean()
            if on_object in (0, 1):
                what = "empty" if on_object == 0 else "the whole photo"
                log.warning("%s: its mask is %s", sources[idx], what)


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


def build_augmentation(args, edits: list[dict], pipeline, resolution: int, embed_path):
    """The augmentation that the flags describe; `pipeline()` loads the model."""
    augs = []
    for edit in edits:
        options = {key: value for key, value in edit.items() if key != "aug"}
        options |= {
            "prompt": args.prompt,
            "num_inference_steps": args.num_inference_steps,
            "resolution": resolution,
            "batch_size": args.batch_size,
            "fit": args.fit,
            "mask_grow_radius": args.mask_grow_radius,
            "mask_feather": args.mask_feather,
        }
        if edit["aug"] == "textual-inversion":
            options["embed_path"] = embed_path
        augs.append(augmentation_class(edit["aug"])(pipeline=pipeline(), **options))
    if len(augs) == 1 and args.probs in (None, [1.0]):
        return augs[0]
    compose = ComposeParallel if args.compose == "parallel" else ComposeSequential
    return compose(augs, args.probs)


if __name__ == "__main__":
    main()
