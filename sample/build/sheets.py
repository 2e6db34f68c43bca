"""Draw the contact sheets of docs/sample.md: look at them after every change.

    python sample/build/sheets.py --cache CACHE_DIR --out docs/sample

`renders.webp` captioned renders of the generator's kinds; `photos.webp` sample/mvip (five training
and five test photos of each common kind, and of each novel kind); `reconstructions.webp` photos
above their reconstructions by the autoencoder; `strengths.webp` photos of six common and six novel
kinds and their edits at strengths 0.25, 0.5, 0.75, 1.0, without learned tokens; `prompts.webp`
edits by several prompts; `edges.webp` the same with sample/controlnet; `demo.webp` two photos and
six edits of six common kinds. Only with `--only generator`: `generator.webp` renders and edits at
strength 1.0, also with sample/controlnet if it exists; this sheet needs only renders and models.
"""

import argparse
import sys
from pathlib import Path

import make_data
import numpy as np
import parts
import torch
import training
import trials
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image, ImageDraw

sys.path.insert(0, str(make_data.ROOT.parent))
from semantic_aug.diffusion.adapters import canny_edges

STRENGTHS = (0.25, 0.5, 0.75, 1.0)


def save_sheet(rows, path, labels=None, scale=1, heads=None):
    """Rows of equally many images -> one picture, with labels of rows, and heads of columns."""
    sheet = np.vstack([np.hstack([np.asarray(x) for x in row]) for row in rows])
    image = Image.fromarray(sheet)
    if scale != 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    if labels:
        widths = [scale * np.shape(x)[1] for x in rows[0]]
        image = with_texts(image, labels, heads, len(rows), widths)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=88, method=6)


def with_texts(image, labels, heads, rows, widths):
    left, top = 12 + max(6 * len(text) for text in labels), 18 if heads else 0
    wide = Image.new("RGB", (image.width + left, image.height + top), "white")
    wide.paste(image, (left, top))
    draw, height = ImageDraw.Draw(wide), image.height // rows
    for i, text in enumerate(labels):
        draw.text((5, top + i * height + height // 2 - 6), text, fill="black")
    for i, text in enumerate(heads or []):
        draw.text((left + sum(widths[:i]) + 4, 3), text, fill="black")
    return wide


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
    """(rows of images, row labels): a render of each base class, and edits of it by prompts."""
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
    sheets = ["renders", "photos", "reconstructions", "strengths", "prompts", "edges", "demo"]
    wanted = set(args.only or sheets)
    common, novel = sorted(parts.COMMON), sorted(parts.NOVEL)
    if args.quick:
        common, novel = parts.QUICK_COMMON, parts.QUICK_NOVEL
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
        split: trials.load_split(sample / "mvip", [*common, *novel], split)
        for split in ("train", "test")
    }
    if "photos" in wanted:
        each = [np.concatenate([photos[s][:, :5] for s in ("train", "test")], 1)]
        rows = [[*each[0][c], *each[0][len(common) + c]] for c in range(len(common))]
        save_sheet(rows, out / f"photos.{args.type}")
    if not wanted & set(sheets[2:]):
        return

    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(sample / "model", dtype=torch.float32).to(
        device
    )
    pipe.set_progress_bar_config(disable=True)
    if "reconstructions" in wanted:
        rows = []
        for nth in (0, 3):
            chosen = photos["test"][len(common) :, nth]
            with torch.no_grad():
                x = training.to_tensor(chosen, device)
                y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample
            y = ((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            rows += [chosen, y]
        save_sheet(rows, out / f"reconstructions.{args.type}", ["photo", "decoded"] * 2)
    # Six common kinds by their own names, six novel kinds by the words that the model knows.
    shown = [*range(0, len(common), 2), *range(len(common), len(common) + len(novel), 2)]
    sources = [Image.fromarray(photos["train"][c, 1]) for c in shown]
    nouns = [n.replace("_", " ") for n in common] + [parts.NOVEL[n][0] for n in novel]
    nouns = [nouns[c] for c in shown]
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
            controlnet = ControlNetModel.from_pretrained(sample / "controlnet", dtype=torch.float32)
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
    if "demo" in wanted:
        kinds = ["hex_bolt", "hex_nut", "ball_bearing", "flange_nut", "sprocket", "belt_pulley"]
        kinds = [kind for kind in kinds if kind in common]
        look = "a rusty {} on a green mat|a red {} on white paper|a brass {} on a dark cloth|"
        look += "a blue {} on a wooden table|a chrome {} in a blue tray|a green {} on a tiled floor"
        heads = ["photo", "another photo", ""]
        heads += [each[2:].replace(" {}", ",").replace(" a ", " ") for each in look.split("|")]
        edges = [Image.fromarray(np.full((64, 10, 3), 255, np.uint8))]
        pipe = StableDiffusionImg2ImgPipeline.from_pretrained(sample / "model", dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        rows = []
        for k, kind in enumerate(kinds):
            pair = [Image.fromarray(photos["train"][common.index(kind), i]) for i in (0, 3)]
            prompts = [
                f"a photo of {each.format(kind.replace('_', ' '))}" for each in look.split("|")
            ]
            made = edit(
                pipe.to(device), pair * 3, prompts, 1.0, 5.0, args.steps, args.seed + 10 * k
            )
            rows.append(pair + edges + made)
        labels = [kind.replace("_", " ") for kind in kinds]
        save_sheet(rows, out / f"demo.{args.type}", labels, scale=2, heads=heads)


if __name__ == "__main__":
    main()
