"""Learning words: this project against a plain loop, on the embedded sample.

    python benchmarks/fine_tune.py            # 10 classes, 100 steps of 4 photos each
    python benchmarks/fine_tune.py --quick    # within a minute

The plain loop works as earlier implementations do. It trains one class after the other and loads
the model for each class. Every step reads and encodes photos, optimises the whole embedding table
and puts back all rows except the new rows. Start-up (imports, loading the model) is measured
separately. Then the rows of both sides are compared by their denoising loss on photos of the
validation split. The last measurement is the floor: the UNet's forward and backward passes alone,
at our batch size.

The row "until converged" is this project with --stop_when_converged, whose words have at most as
many steps as the plain loop's; its ratio counts start-up as well.

With --device cuda, --model sd14 measures a Stable Diffusion 1.4 of the real shape with random
weights at 512 pixels.
"""

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, compare, report_side, threads
from models import model_folder
from words import (
    NUM_VECTORS,
    SEED,
    K,
    class_names,
    dataset,
    load_model,
    losses_on_validation_photos,
)

SIDES = ("plain", "ours", "converged")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "sample/model"))
    parser.add_argument("--data_dir", default=str(ROOT / "sample/mvip"))
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=5e-3)
    parser.add_argument("--classes_per_step", type=int, default=8)
    parser.add_argument("--window", type=int, default=32, help="of --stop_when_converged")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="3 classes, 40 steps, 1 round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), default="no")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="where our time goes")
    parser.add_argument("--work", help="folder for what is made (default: a temporary one)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.classes, args.steps, args.rounds = 3, 40, 1
    return args


def main(argv=None):
    args = parse_args(argv)
    threads()
    if args.side:
        report_side({"plain": plain, "ours": ours, "converged": converged}[args.side](args))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.work = args.work or folder
        args.model = model_folder(args.model, args.work)
        keys = ("model", "data_dir", "classes", "steps", "batch", "learning_rate",
                "classes_per_step", "window", "device", "precision", "work")  # fmt: skip
        arguments = [f"--{key}={getattr(args, key)}" for key in keys]
        arguments += ["--compile"] * args.compile + ["--profile"] * args.profile
        result = compare(__file__, SIDES, args.rounds, arguments)
        result |= held_out(args)
    runs = result.pop("rounds")
    for side, found in runs.items():
        result[f"{side}_startup_s"] = statistics.median(run["startup"] for run in found)
    whole = {side: result[f"{side}_s"] + result[f"{side}_startup_s"] for side in SIDES}
    result["converged_ratio"] = round(whole["plain"] / whole["converged"], 2)
    result["photos_per_s"] = round(args.classes * args.steps * args.batch / result["ours_s"], 1)
    print(f"loss on validation photos, start: {result['loss_start']:.4f}, plain: "
          f"{result['loss_plain']:.4f}; difference to it per class")  # fmt: skip
    for side, name in (("ours", "all steps"), ("converged", "until converged")):
        print(f"{name}: {result[f'{side}_steps']:.1f} steps, loss {result[f'loss_{side}']:.4f}, "
              f"{result[f'{side}_difference']:+.4f} ± {result[f'{side}_standard_error']:.4f}, "
              f"{whole['plain'] / whole[side]:.2f} times as fast with start-up")  # fmt: skip
    print(json.dumps(result))


# --- the plain way ---------------------------------------------------------------------------


def plain(args) -> dict:
    """One class after the other, everything at every step."""
    import numpy as np
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from PIL import Image
    from torch.nn import functional as F
    from transformers import CLIPTextModel, CLIPTokenizer

    from semantic_aug.words.embeddings import placeholder_token, vector_tokens, write_embeddings
    from semantic_aug.words.rows import initial_rows, initializer_id
    from semantic_aug.words.templates import OBJECT

    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.precision]
    photos, startup, seconds = dataset(args, "train"), 0.0, 0.0
    for name in class_names(args):
        began = time.perf_counter()
        tokenizer = CLIPTokenizer.from_pretrained(args.model, subfolder="tokenizer")
        encoder = CLIPTextModel.from_pretrained(
            args.model, subfolder="text_encoder", dtype=torch.float32
        )
        vae = AutoencoderKL.from_pretrained(args.model, subfolder="vae", dtype=dtype)
        unet = UNet2DConditionModel.from_pretrained(args.model, subfolder="unet", dtype=dtype)
        noise_scheduler = DDPMScheduler.from_pretrained(args.model, subfolder="scheduler")
        for part in (encoder, vae, unet):
            part.requires_grad_(False).to(args.device)
        token = placeholder_token(name)
        tokens = vector_tokens(token, NUM_VECTORS)
        start = initializer_id(tokenizer, None, name)
        tokenizer.add_tokens(tokens)
        new = torch.tensor(tokenizer.convert_tokens_to_ids(tokens))
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = encoder.get_input_embeddings().weight
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            table[new] = initial_rows(table[start], NUM_VECTORS, generator).to(table)
        table.requires_grad_(True)
        original = table.detach().clone()
        others = torch.ones(len(tokenizer), dtype=torch.bool)
        others[new] = False
        optimizer = torch.optim.AdamW([table], lr=args.learning_rate, weight_decay=1e-2)
        paths = [photos.records[i].path for i in photos.indices([name])]
        side = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
        startup += time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(args.steps):
            images, prompts = [], []
            for _ in range(args.batch):
                pick = int(torch.randint(len(paths), (1,), generator=generator))
                image = Image.open(paths[pick]).convert("RGB").resize((side, side), 3)
                pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
                images.append(
                    pixels.flip(-1) if torch.rand(1, generator=generator) < 0.5 else pixels
                )
                sentence = OBJECT[int(torch.randint(len(OBJECT), (1,), generator=generator))]
                prompts.append(sentence.format(" ".join(tokens)))
            pixels = torch.stack(images).to(args.device, dtype)
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            times = torch.randint(1000, (args.batch,), generator=generator).to(args.device)
            noisy = noise_scheduler.add_noise(latents, noise, times)
            ids = tokenizer(
                prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
            ).input_ids.to(args.device)
            hidden = encoder(ids)[0].to(dtype)
            predicted = unet(noisy, times, hidden).sample
            target = noise
            if noise_scheduler.config.prediction_type == "v_prediction":
                target = noise_scheduler.get_velocity(latents, noise, times)
            F.mse_loss(predicted.float(), target.float()).backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                table[others] = original[others]
        if args.device != "cpu":
            torch.cuda.synchronize()
        seconds += time.perf_counter() - began
        rows = table.detach()[new].cpu()
        write_embeddings(Path(args.work) / "plain" / f"{name}.safetensors", {token: rows}, {})
    return {"seconds": seconds, "startup": round(startup, 2), **cuda_peak(args)}


def cuda_peak(args) -> dict:
    import torch

    on_gpu = args.device.startswith("cuda")
    return {"cuda_peak_mb": round(torch.cuda.max_memory_allocated() / 2**20)} if on_gpu else {}


# --- this project ----------------------------------------------------------------------------


def converged(args) -> dict:
    """The command itself, whose words stop when they have converged."""
    window = f"--convergence_window={args.window}"
    return ours(args, "converged", "--stop_when_converged", window)


def ours(args, name: str = "ours", *more: str) -> dict:
    """The command itself; start-up is what passes before the first word is built."""
    began = time.perf_counter()
    import fine_tune
    from semantic_aug.words import session

    ended = {}
    build_word = session.build_word

    def first_word(*arguments):
        ended.setdefault("startup", time.perf_counter())
        return build_word(*arguments)

    session.build_word = first_word
    flags = [
        "--dataset=mvip", f"--data_dir={args.data_dir}", f"--output_dir={args.work}",
        f"--experiment_name={name}-{time.time_ns()}", f"--model_path={args.model}",
        f"--seed={SEED}", f"--examples_per_class={K}", f"--num_vectors={NUM_VECTORS}",
        f"--learning_rate={args.learning_rate}", f"--max_train_steps={args.steps}",
        f"--train_batch_size={args.batch}", f"--classes_per_step={args.classes_per_step}",
        "--report_to=none", f"--device={args.device}", f"--mixed_precision={args.precision}",
        *more, *["--compile"] * args.compile, "--classes", *class_names(args),
    ]  # fmt: skip
    with profiled(args.profile):
        fine_tune.main(flags)
    seconds = time.perf_counter() - ended["startup"]
    startup = round(ended["startup"] - began, 2)
    return {"seconds": seconds, "startup": startup, **cuda_peak(args)}


@contextlib.contextmanager
def profiled(wanted: bool):
    if not wanted:
        yield
        return
    from torch.profiler import profile

    with profile() as found:
        yield
    table = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=15)
    print(table, file=sys.stderr)


# --- what came out ---------------------------------------------------------------------------


def held_out(args) -> dict:
    """Losses of all sides' rows on validation photos, our steps, and the floor of our seconds."""
    from semantic_aug.words.embeddings import read_embeddings, read_header

    rows, steps = {"start": None, **{side: {} for side in SIDES}}, {"ours": [], "converged": []}
    for name in class_names(args):
        path = Path(args.work) / "plain" / f"{name}.safetensors"
        (rows["plain"][name],) = read_embeddings(path).values()
        for side, done in steps.items():
            latest = max(Path(args.work).glob(f"{side}-*")) / "fine-tuned" / f"seed={SEED}_ex={K}"
            path = latest / name.replace(" ", "_") / "learned_embeds.safetensors"
            (rows[side][name],) = read_embeddings(path).values()
            header = read_header(path)
            done.append(int(header.get("steps_done", header["steps"])))
    pipeline = load_model(args)
    losses = losses_on_validation_photos(args, pipeline, rows)
    found = {f"loss_{side}": round(statistics.mean(each), 5) for side, each in losses.items()}
    for side, done in steps.items():
        differences = [x - y for x, y in zip(losses[side], losses["plain"])]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        found[f"{side}_steps"] = round(statistics.mean(done), 1)
        found[f"{side}_difference"] = round(statistics.mean(differences), 5)
        found[f"{side}_standard_error"] = round(error, 5)
    return found | {"floor_s": round(floor(args, pipeline), 2)}


def floor(args, pipeline) -> float:
    """Seconds that the UNet's forward and backward passes take at our batch size, by themselves."""
    import torch

    unet, device = pipeline.unet, pipeline.device
    size = args.batch * min(args.classes, args.classes_per_step)
    side, dim = unet.config.sample_size, unet.config.cross_attention_dim
    noisy = torch.randn(size, unet.config.in_channels, side, side, device=device, dtype=unet.dtype)
    hidden = torch.randn(size, 77, dim, device=device, dtype=unet.dtype, requires_grad=True)
    times = torch.randint(1000, (size,), device=device)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        unet(noisy, times, hidden).sample.square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:]) * args.classes * args.steps * args.batch / size


if __name__ == "__main__":
    main()
