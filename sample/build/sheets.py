"""Draw the contact sheets of docs/sample.md: look at them after every change.

    python sample/build/sheets.py --cache CACHE_DIR --out docs/sample

`renders.webp` captioned renders of base classes; `photos.webp` sample/mvip (six training, four
validation, six test photos a class); `reconstructions.webp` photos above their autoencoder
round trip; `strengths.webp` photos and their edits at strengths 0.25, 0.5, 0.75, 1.0, without any
learned token; `prompts.webp` what a prompt changes; `edges.webp` the same with sample/controlnet.
Only when it is named: `generator.webp` renders of base classes and edits at strength 1.0, with
sample/controlnet too if there is one; needs renders and models alone.
"""

import argparse
import sys
from pathlib import Path

import domain_gap
import make_data
import numpy as np
import parts
import torch
import training
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image, ImageDraw

sys.path.insert(0, str(make_data.ROOT.parent))
from semantic_aug.adapters import canny_edges

STRENGTHS = (0.25, 0.5, 0.75, 1.0)


def save_sheet(rows, path, labels=None, scale=1):
    """Rows of equally many images -> one picture, with a column of row labels on the left."""
    sheet = np.vstack([np.hstack([np.asarray(x) for x in row]) for row in rows])
    image = Image.fromarray(sheet)
    if scale != 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    if labels:
        margin = 12 + max(6 * len(t) for t in labels)
        wide = Image.new("RGB", (image.width + margin, image.height), "white")
        wide.paste(image, (margin, 0))
        draw, height = ImageDraw.Draw(wide), image.height // len(rows)
        for i, text in enumerate(labels):
            draw.text((5, i * height + height // 2 - 6), text, fill="black")
        image = wide
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=88, method=6)


def edit(pipe, images, prompts, strength, guidance, steps, seed):
    """img2img of a batch, one generator per image."""
    rngs = [torch.Generator().manual_seed(seed + i) for i in range(len(images))]
    return pipe(
        prompts,
        image=images,
        strength=strength,
        guidance_scale=guidance,
        num_inference_steps=steps,
        generator=rngs,
        **({"control_image": canny_edges(images)} if "controlnet" in pipe.components else {}),
    ).images


def draw_generator(cache, sample, device, guidance, steps, seed):
    """(rows of images, row labels): a render of each base class, and what prompts make of it."""
    images, labels, _ = make_data.load_shards(cache)
    present = [c for c in range(int(labels.max()) + 1) if (labels == c).any()]
    sources = [Image.fromarray(images[np.flatnonzero(labels == c)[0]]) for c in present]
    nouns = [list(parts.BASE.values())[c][0] for c in present]
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(sample / "model", dtype=torch.float32)
    pipes = [pipe.to(device)]
    if (sample / "controlnet" / "config.json").exists():
        controlnet = ControlNetModel.from_pretrained(sample / "controlnet").float().to(device)
        pipes.append(
            StableDiffusionControlNetImg2ImgPipeline(
                **pipe.components, controlnet=controlnet, requires_safety_checker=False
            )
        )
    columns = [sources]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
        for i, look in enumerate(
            (
                "a steel {} on a wooden table",
                "a rusty {} on a green mat",
                "a red {} on white paper, from above",
                "a brass {} on a dark cloth in warm light",
            )
        ):
            prompts = [f"a photo of {look.format(noun)}" for noun in nouns]
            columns.append(edit(pipe, sources, prompts, 1.0, guidance, steps, seed + 100 * i))
    return list(zip(*columns, strict=True)), nouns


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draw the contact sheets.")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--sample", default=str(make_data.ROOT), help="folder of the sample")
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", nargs="*", help="names of the sheets to draw")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--type", choices=["webp", "png"], default="webp")
    args = parser.parse_args(argv)
    device, out, sample = training.pick_device(), Path(args.out), Path(args.sample)
    sheets = ["renders", "photos", "reconstructions", "strengths", "prompts", "edges"]
    wanted = set(args.only or sheets)
    names = parts.QUICK_NOVEL if args.quick else list(parts.NOVEL)
    if "generator" in wanted:
        rows, nouns = draw_generator(
            args.cache, sample, device, args.guidance, args.steps, args.seed
        )
        save_sheet(rows, out / f"generator.{args.type}", nouns)
        if wanted == {"generator"}:
            return
    if "renders" in wanted:
        images, labels, _ = make_data.load_shards(args.cache)
        rows = [images[np.flatnonzero(labels == c)[:12]] for c in range(int(labels.max()) + 1)]
        captions = [v[0] for v in parts.BASE.values()][: len(rows)]
        save_sheet(rows, out / f"renders.{args.type}", captions)
    photos = {
        s: domain_gap.load_split(sample / "mvip", names, s) for s in ("train", "valid", "test")
    }
    if "photos" in wanted:
        rows = []
        for c in range(len(names)):
            row = []
            for split, count in (("train", 6), ("valid", 4), ("test", 6)):
                images, labels, _ = photos[split]
                row += list(images[np.flatnonzero(labels == c)[:count]])
            rows.append(row)
        save_sheet(rows, out / f"photos.{args.type}", [n.replace("_", " ") for n in names])
    if not wanted & set(sheets[2:]):
        return

    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(
        sample / "model", torch_dtype=torch.float32
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    if "reconstructions" in wanted:
        images, labels, _ = photos["test"]
        rows = []
        for nth in (0, 5):
            chosen = images[[np.flatnonzero(labels == c)[nth] for c in range(len(names))]]
            with torch.no_grad():
                x = training.to_tensor(chosen, device)
                y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample
            y = ((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            rows += [chosen, y]
        save_sheet(rows, out / f"reconstructions.{args.type}", ["photo", "decoded"] * 2)
    images, labels, _ = photos["train"]
    sources = [Image.fromarray(images[np.flatnonzero(labels == c)[1]]) for c in range(len(names))]
    nouns = [parts.NOVEL[n][0] for n in names]
    plain = [f"a photo of a {noun}" for noun in nouns]
    if "strengths" in wanted:
        rows, titles = [sources], ["photo"]
        for strength in STRENGTHS:
            for turn in range(2):
                rows.append(
                    edit(
                        pipe,
                        sources,
                        plain,
                        strength,
                        args.guidance,
                        args.steps,
                        args.seed + 100 * turn,
                    )
                )
                titles.append(f"{strength}")
        save_sheet(rows, out / f"strengths.{args.type}", titles)
    for sheet, strengths in (("prompts", (0.5, 0.75)), ("edges", (0.75, 1.0))):
        if sheet not in wanted:
            continue
        if sheet == "edges":
            controlnet = ControlNetModel.from_pretrained(
                sample / "controlnet", torch_dtype=torch.float32
            )
            pipe = StableDiffusionControlNetImg2ImgPipeline(
                **pipe.components, controlnet=controlnet.to(device), requires_safety_checker=False
            )
            pipe.set_progress_bar_config(disable=True)
        rows, titles = [sources], ["photo"]
        for look, place in (
            ("rusty", "on a green mat"),
            ("red", "on a dark cloth"),
            ("brass", "on a wooden table"),
        ):
            prompts = [f"a photo of a {look} {noun} {place}" for noun in nouns]
            for strength in strengths:
                rows.append(
                    edit(pipe, sources, prompts, strength, args.guidance, args.steps, args.seed)
                )
                titles.append(f"{look} {strength}")
        save_sheet(rows, out / f"{sheet}.{args.type}", titles)


if __name__ == "__main__":
    main()
