"""Generating images: this project against a plain loop, on the embedded sample.

    python benchmarks/generate.py            # 12 classes x 4 photos x 4 variants
    python benchmarks/generate.py --quick    # within a minute
    python benchmarks/generate.py --mask     # edits of the object, and new surroundings

The plain loop works as earlier implementations do. It calls a pipeline for each image, encodes
photo and prompt every time, and writes an image before it begins the next image. Both sides have
the same model, photos, strengths, steps and random streams, and their images are compared. Start-up
(imports, loading the model) is measured separately. With --precision bf16 on the CPU, a row
compares bfloat16 with float32: CPU seconds per image, and the mean difference of the pixels, of
255. Approximations have their own rows, with their ratio to the plain loop and the mean difference
of their pixels from the plain loop's images, of 255.

With --mask, two methods are measured: edits of the whole object at the same strengths, and new
surroundings (`background`) at strength 1. Each method has its own plain loop around the inpainting
pipeline of diffusers, for 3 classes x 4 photos x 8 variants. `ratio` is the smaller ratio.

With --device cuda, --model sd14 measures a Stable Diffusion 1.4 of the real shape with random
weights at 512 pixels.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from common import ROOT, compare, report_side, run_side, threads
from models import model_folder

K, SEED, STRENGTHS = 4, 0, (0.25, 0.5, 0.75)
APPROXIMATIONS = {  # name: (divisor of the steps, --scheduler)
    "half the steps": (2, None),
    "DPM-Solver++, half the steps": (2, "dpm++"),
    "DPM-Solver++, a third of the steps": (3, "dpm++"),
}
METHODS = {  # what is compared: the strengths, of which one is drawn per image, and other flags
    "edits": (STRENGTHS, ["--aug=real-guidance"]),
    "masked": (STRENGTHS, ["--aug=real-guidance", "--mask=1"]),
    "background": ((1.0,), ["--aug=background"]),
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "sample/model"))
    parser.add_argument("--data_dir", default=str(ROOT / "sample/mvip"))
    parser.add_argument("--mask", action="store_true", help="edits of the object, and around it")
    parser.add_argument("--classes", type=int, help="default 12, with --mask 3")
    parser.add_argument("--variants", type=int, help="of each photo, default 4, with --mask 8")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="3 classes, with --mask 1; 2 variants")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), default="no")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--work", help="folder for what is made (default: a temporary one)")
    parser.add_argument("--scheduler", help="of our side (default: the model's own)")
    parser.add_argument("--side", choices=("plain", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--method", choices=METHODS, default="edits", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.strengths, _ = METHODS[args.method]
    if args.quick:
        args.classes, args.variants, args.rounds = 1 if args.mask else 3, 2, 1
    args.classes = args.classes or (3 if args.mask else 12)
    args.variants = args.variants or (8 if args.mask else 4)
    return args


def main(argv=None):
    args = parse_args(argv)
    threads()
    if args.side:
        report_side({"plain": plain, "ours": ours}[args.side](args))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.work = args.work or folder
        args.model = model_folder(args.model, args.work)
        if args.mask:
            result = {method: compared(args, method)[0] for method in ("masked", "background")}
            result = {"ratio": min(found["ratio"] for found in result.values()), **result}
        else:
            result, arguments = compared(args, "edits")
            result |= variations(args, arguments, result["plain_s"])
    print(json.dumps(result))


def compared(args, method: str) -> tuple[dict, list[str]]:
    """The cost of a method in the plain loop and here, and the arguments of both sides."""
    work = Path(args.work) / method
    work.mkdir(parents=True, exist_ok=True)
    keys = ("model", "data_dir", "classes", "variants", "steps", "batch_size", "device",
            "precision")  # fmt: skip
    arguments = [f"--{key}={getattr(args, key)}" for key in keys]
    arguments += [f"--method={method}", f"--work={work}", *["--compile"] * args.compile]
    print(f"{method}:", flush=True)
    result = compare(__file__, ("plain", "ours"), args.rounds, arguments)
    for side, runs in result.pop("rounds").items():
        result[f"{side}_startup_s"] = statistics.median(run["startup"] for run in runs)
        result[f"{side}_processor_s"] = statistics.median(run["processor"] for run in runs)
    images = K * args.classes * args.variants
    result["images"] = images
    result["images_per_s"] = round(images / result["ours_s"], 2)
    result["largest_difference"] = max(differences(ours_in(work), work / "plain"))[0]
    return result, arguments


def variations(args, arguments: list[str], plain_s: float) -> dict:
    """Our side in bfloat16, if `args` ask for it, and with approximations."""
    work, result = Path(args.work) / "edits", {}
    if (args.device, args.precision) == ("cpu", "bf16"):
        result["bf16"] = against_float32(arguments, args)
        print(f"bf16 against float32: {result['bf16']}", flush=True)
    result["approximations"] = {}
    for name, (divisor, scheduler) in APPROXIMATIONS.items():
        changed = [f"--steps={args.steps // divisor}"]
        changed += [f"--scheduler={scheduler}"] if scheduler else []
        found = run_side(__file__, "ours", arguments + changed)
        means = [mean for _, mean in differences(ours_in(work), work / "plain")]
        result["approximations"][name] = {
            "ratio": round(plain_s / found["seconds"], 2),
            "mean_difference": round(statistics.mean(means), 2),
        }
        print(f"{name}: {result['approximations'][name]}", flush=True)
    return result


def against_float32(arguments: list[str], args) -> dict:
    """Our side in bfloat16 and in float32."""
    seconds, folders = {}, []
    for name, precision in (("bf16", "bf16"), ("float32", "no")):
        found = run_side(__file__, "ours", [*arguments, f"--precision={precision}"])
        images = K * args.classes * args.variants
        seconds[f"{name}_s_per_image"] = round(found["processor"] / images, 3)
        folders.append(ours_in(Path(args.work) / "edits"))
    means = [mean for _, mean in differences(*folders)]
    return seconds | {"mean_difference": round(statistics.mean(means), 2)}


def photos_of(args):
    from semantic_aug.datasets import build_dataset

    dataset = build_dataset(
        "mvip", "train", data_dir=args.data_dir, seed=SEED, examples_per_class=K
    )
    return dataset, dataset.indices(dataset.class_names[: args.classes])


def plain(args) -> dict:
    """One image after the other; `processor` is the CPU seconds of all cores."""
    began = time.perf_counter()
    import torch
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    from semantic_aug.synthesis.jobs import job_generator

    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.precision]
    task = AutoPipelineForImage2Image if args.method == "edits" else AutoPipelineForInpainting
    pipeline = task.from_pretrained(args.model, dtype=dtype, safety_checker=None).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    dataset, indices = photos_of(args)
    folder = Path(args.work) / "plain"
    folder.mkdir(exist_ok=True)
    startup, began = time.perf_counter() - began, time.perf_counter()
    processor = time.process_time()
    for index in indices:
        for repeat in range(args.variants):
            generator = job_generator(SEED, dataset.sources()[index], repeat)
            strength = draw_strength(args.strengths, generator)
            image = plain_image(args, pipeline, dataset, index, strength, generator)
            image.save(folder / f"{index:06d}-{repeat:03d}.png")
    return {
        "seconds": time.perf_counter() - began,
        "startup": round(startup, 2),
        "processor": round(time.process_time() - processor, 2),
    }


def plain_image(args, pipeline, dataset, index: int, strength: float, generator):
    """One call of a pipeline; pixels outside the edited region are then set to the photo's."""
    import torch
    from PIL import Image, ImageChops

    from semantic_aug.augmentations.places import read_places

    photo = dataset.get_image_by_idx(index)
    name = dataset.get_metadata_by_idx(index)["name"].replace("_", " ")
    prompt, start, region = f"a photo of a {name}", photo, None
    if args.method != "edits":
        region = Image.fromarray(dataset.get_mask_by_idx(index))
    if args.method == "background":
        torch.rand(8, generator=generator, dtype=torch.float64)  # a layout that changes nothing
        places = read_places(None)
        prompt = places[int(torch.randint(len(places), (), generator=generator))]
        start = Image.composite(photo, Image.new("RGB", photo.size, "grey"), region)
        region = ImageChops.invert(region)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    masks = {"mask_image": region.resize((side, side), Image.Resampling.NEAREST)} if region else {}
    image = pipeline(
        prompt,
        image=start.resize((side, side), Image.Resampling.BICUBIC),
        strength=strength,
        num_inference_steps=args.steps,
        guidance_scale=7.5,
        generator=generator,
        **masks,
    ).images[0]
    image = image.resize(photo.size, Image.Resampling.BICUBIC)
    return Image.composite(image, photo, region) if region else image


def draw_strength(strengths, generator) -> float:
    """The strength of an image, as this project draws one of several augmentations."""
    import torch

    if len(strengths) == 1:
        return strengths[0]
    weights = torch.full((len(strengths),), 1 / len(strengths), dtype=torch.float64)
    return strengths[int(torch.multinomial(weights, 1, generator=generator))]


def ours(args) -> dict:
    """The command itself; start-up is the time before the first block.

    `first_block` is the seconds of the first block, which compiles the UNet; `processor` is the
    CPU seconds of all cores.
    """
    began = time.perf_counter()
    import generate_augmentations
    from semantic_aug.synthesis import making

    blocks, processor = [], []
    compute = making.compute

    def timed_block(*arguments, **options):
        started = time.perf_counter()
        processor.append(time.process_time())
        found = compute(*arguments, **options)
        blocks.append((started, time.perf_counter()))
        return found

    making.compute = timed_block
    dataset, _ = photos_of(args)
    generate_augmentations.main([
        "--dataset=mvip", f"--data_dir={args.data_dir}", f"--output_dir={args.work}",
        f"--experiment_name=ours-{time.time_ns()}", f"--model_path={args.model}",
        f"--seed={SEED}", f"--examples_per_class={K}", f"--num_synthetic={args.variants}",
        f"--num_inference_steps={args.steps}", f"--batch_size={args.batch_size}",
        *METHODS[args.method][1], "--strength", *map(str, args.strengths),
        f"--device={args.device}", f"--mixed_precision={args.precision}",
        *["--compile"] * args.compile,
        *([f"--scheduler={args.scheduler}"] if args.scheduler else []),
        "--classes", *dataset.class_names[: args.classes],
    ])  # fmt: skip
    seconds = time.perf_counter() - blocks[0][0]
    spent = time.process_time() - processor[0]
    making.compute = compute
    startup, first = blocks[0][0] - began, blocks[0][1] - blocks[0][0]
    return {
        "seconds": seconds,
        "startup": round(startup, 2),
        "first_block": round(first, 2),
        "processor": round(spent, 2),
    }


def ours_in(work: Path) -> Path:
    """The images of our last run."""
    return next(max(work.glob("ours-*")).glob("aug/*"))


def differences(folder: Path, other: Path) -> list[tuple[int, float]]:
    """For each image, the largest and the mean pixel difference between both folders."""
    import numpy as np
    from PIL import Image

    found = []
    for path in sorted(folder.glob("*.png")):
        one, two = (np.asarray(Image.open(p)).astype(int) for p in (path, other / path.name))
        found.append((int(np.abs(one - two).max()), float(np.abs(one - two).mean())))
    return found


if __name__ == "__main__":
    main()
