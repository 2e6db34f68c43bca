"""Search for the best recipe of each set of sample/mvip: validation photos choose.

    python sample/build/search.py --cache CACHE_DIR --set common --recipes strength-1.0

Every recipe edits all 32 training photos of a class once, by the command itself (trial seed=0),
into CACHE_DIR/search/SET. Then heads on cached features (trials.py) are trained in eight trials of
1, 2, 4 and 8 of these photos. --pool 16 takes half of the photos and half of the time, for 1, 2 and
4 photos: trials of 8 out of 16 photos would share too many. After each recipe, rows are appended to
--out, a CSV. They have accuracies on validation photos, on validation parts in the training places
(`home`), and on test photos, which choose nothing. They also have paired differences on test photos
to heads without synthetic images: without RandAugment, with it, and the better of both per trial.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import make_data
import numpy as np
import parts
import torch
import trials
from PIL import Image

sys.path.insert(0, str(make_data.ROOT.parent))
from semantic_aug.datasets.mvip import MVIPDataset

PROMPTS = str(make_data.ROOT / "prompts.txt")
COLUMNS = (
    "set", "backbone", "pool", "recipe", "variants", "augmentation", "share", "photos", "trials",
    "val", "val_95", "home", "home_95", "test", "test_95", "test_by_home", "test_by_home_95",
    "minus_real", "minus_real_95", "minus_randaugment", "minus_randaugment_95",
    "minus_better", "minus_better_95",
)  # fmt: skip
WHOLE = ["--prompt", PROMPTS, "--guidance_scale", "5"]
AROUND = ["--mask", "1", "--inverted", "1", "--mask_feather", "0", "--mask_grow_radius", "0"]
EDGES = ["--controlnet", str(make_data.ROOT / "controlnet")]
# name -> (flags of generate_augmentations.py, variants of each photo unless --variants says another
# number); without flags images are made from prompts alone.
RECIPES = {
    "strength-0.25": ([*WHOLE, "--strength", "0.25"], 2),
    "strength-0.5": ([*WHOLE, "--strength", "0.5"], 2),
    "strength-0.75": ([*WHOLE, "--strength", "0.75"], 2),
    "strength-1.0": ([*WHOLE, "--strength", "1.0"], 4),
    "strengths-mixed": ([*WHOLE, "--strength", "0.25", "0.5", "0.75", "1.0"], 4),
    "strengths-high": ([*WHOLE, "--strength", "0.7", "0.8", "0.9", "1.0"], 4),
    "plain-prompt": (["--guidance_scale", "5", "--strength", "1.0"], 1),
    "guidance-2.5": (["--prompt", PROMPTS, "--guidance_scale", "2.5", "--strength", "1.0"], 1),
    "guidance-8": (["--prompt", PROMPTS, "--guidance_scale", "8", "--strength", "1.0"], 1),
    "steps-6": ([*WHOLE, "--num_inference_steps", "6", "--strength", "1.0"], 1),
    "edges-0.9": ([*WHOLE, *EDGES, "--strength", "0.9"], 2),
    "around": ([*WHOLE, *AROUND, "--strength", "1.0"], 2),
    "around-edges": ([*WHOLE, *AROUND, *EDGES, "--strength", "1.0"], 2),
    "no-photo": (None, 1),
}
VARIANTS = (1, 2, 4, 6, 8, 16)


def option_of(args):
    return "CarComponent" if args.set == "common" else "NovelComponent"


def pool_of(args, names):
    """[classes, pool] indices of the pool's photos in the order of their names."""
    dataset = MVIPDataset(
        data_dir=args.mvip, super_class=option_of(args), seed=0, examples_per_class=args.pool
    )
    rows = [[] for _ in names]
    for index in range(len(dataset)):
        source = Path(dataset.get_metadata_by_idx(index)["source"])
        rows[names.index(source.parts[0])].append(source.name)
    files = [(Path(args.mvip) / name / "train_data").rglob("*_rgb.png") for name in names]
    order = [sorted(path.name for path in paths) for paths in files]
    return np.array([sorted(map(all_of.index, row)) for all_of, row in zip(order, rows)])


def generate(args, recipe, names):
    """Images uint8 [classes, pool, variants, 64, 64, 3] of a recipe."""
    import generate_augmentations

    flags, variants = RECIPES[recipe]
    variants = args.variants or variants
    if flags is None:
        return text_to_image(args, names, variants)
    folder = Path(args.cache) / "search" / args.set / recipe / f"seed=0_ex={args.pool}"
    generate_augmentations.main([
        "--dataset", "mvip", "--data_dir", args.mvip,
        "--dataset_args", f"super_class={option_of(args)}",
        "--output_dir", str(Path(args.cache) / "search"), "--experiment_name", args.set,
        "--aug_name", recipe, "--examples_per_class", str(args.pool), "--num_trials", "1",
        "--model_path", args.model, "--num_synthetic", str(variants), "--aug", "real-guidance",
        "--scheduler", "dpm++", "--num_inference_steps", str(args.steps), "--batch_size", "32",
        *flags,
    ])  # fmt: skip
    images = {}
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["repeat"] >= variants:  # from an earlier search with more variants
            continue
        with Image.open(folder / record["file_name"]) as image:
            images.setdefault(record["source"], []).append(np.asarray(image.convert("RGB")))
    rows = []
    for name in names:
        sources = [source for source in images if f"{name}/train_data/" in source]
        sources.sort(key=lambda source: source.rpartition("/")[2])
        rows.append(np.stack([np.stack(images[source]) for source in sources]))
    return np.stack(rows)


def text_to_image(args, names, variants, seed=0):
    """Images of a recipe from prompts alone, in the same form."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(args.model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = Path(PROMPTS).read_text().splitlines()
    prompts, rows = [p for p in prompts if p and not p.startswith("#")], []
    for name in names:
        rng, made = make_data.stream("text to image", name), []
        for start in range(0, args.pool * variants, args.pool):
            said = [prompts[i].format(name=name.replace("_", " "))
                    for i in rng.integers(len(prompts), size=args.pool)]  # fmt: skip
            generator = torch.Generator().manual_seed(seed + start)
            made += pipeline(said, guidance_scale=5.0, num_inference_steps=args.steps,
                             generator=generator, output_type="np").images.tolist()  # fmt: skip
        made = (np.array(made) * 255).round().astype(np.uint8)
        rows.append(made.reshape(args.pool, variants, *made.shape[1:]))
    return np.stack(rows)


def home_photos(args, names):
    """Photos of validation parts in the training places [classes, photos, 64, 64, 3]."""
    path = Path(args.cache) / f"home-{args.set}.npz"
    if not path.exists():
        count = make_data.PHOTOS["val"]
        np.savez(path, images=np.stack([
            [make_data.photo(args.cache, name, "val", i, home=True)[1] for i in range(count)]
            for name in names
        ]))  # fmt: skip
    with np.load(path) as data:
        return data["images"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", required=True)
    parser.add_argument("--set", choices=["common", "novel"], default="common")
    parser.add_argument("--mvip", default=str(make_data.ROOT / "mvip"))
    parser.add_argument("--model", default=str(make_data.ROOT / "model"))
    parser.add_argument("--backbone", default=str(make_data.ROOT / "backbone"))
    parser.add_argument("--out", default=None, help="CSV; default: CACHE_DIR/search-SET.csv")
    parser.add_argument("--recipes", nargs="+", choices=[*RECIPES], default=[*RECIPES])
    parser.add_argument("--variants", type=int, help="of each photo; more can be added later")
    parser.add_argument("--pool", type=int, choices=[16, 32], default=32, help="photos per class")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps of DPM-Solver++")
    parser.add_argument("--trials", type=int, default=8)
    args = parser.parse_args(argv)
    names = sorted(parts.COMMON if args.set == "common" else parts.NOVEL)
    features = trials.Features(args.backbone)
    photos = trials.load_split(args.mvip, names, "train")
    photos = photos[np.arange(len(names))[:, None], pool_of(args, names)]
    val, test = (features(trials.load_split(args.mvip, names, split))[:, :, 0]
                 for split in ("valid", "test"))  # fmt: skip
    home = features(home_photos(args, names))[:, :, 0]
    real = {name: features(photos, 8, name) for name in ("flip-rotate", "randaugment")}
    out = Path(args.out or Path(args.cache) / f"search-{args.set}.csv")
    write_header = not out.exists()
    if not write_header and out.read_text().partition("\n")[0] != ",".join(COLUMNS):
        raise SystemExit(f"{out} has other columns; name another file with --out")
    baseline = {}
    with open(out, "a", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        if write_header:
            table.writeheader()

        def row(recipe, variants, augmentation, share, made):
            for shots in (1, 2, 4, 8)[: 4 if args.pool == 32 else 3]:
                seen = real[augmentation], made, val, test, shots, args.trials, share
                scores = trials.train(*seen, home=home)
                if recipe == "real":
                    baseline[augmentation, shots] = scores["test"]
                entry = {"set": args.set, "backbone": Path(args.backbone).name, "pool": args.pool,
                         "recipe": recipe, "variants": variants, "augmentation": augmentation,
                         "share": share, "photos": shots, "trials": args.trials}  # fmt: skip
                for name, other in (("real", "flip-rotate"), ("randaugment", "randaugment")):
                    if (other, shots) in baseline:  # paired by trial
                        scores[f"minus_{name}"] = scores["test"] - baseline[other, shots]
                if ("randaugment", shots) in baseline:  # the better head of each trial
                    better = np.maximum(*(baseline[name, shots] for name in real))
                    scores["minus_better"] = scores["test"] - better
                for key, values in scores.items():
                    entry[key], entry[f"{key}_95"] = trials.interval(values)
                table.writerow(entry)
                print(entry, flush=True)
            file.flush()

        for augmentation in real:
            row("real", 0, augmentation, 0, None)
        for recipe in args.recipes:
            images = generate(args, recipe, names)
            made = {name: features(images, 3, name, seed=1) for name in real}
            most = images.shape[2]
            for variants in sorted({most, *(count for count in VARIANTS if count < most)}):
                for augmentation in real:
                    used = made[augmentation][:, :, :variants]
                    for share in (0.5, 0.75) if variants == most else (0.5,):
                        row(recipe, variants, augmentation, share, used)


if __name__ == "__main__":
    main()
