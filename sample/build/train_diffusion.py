"""Train tokenizer, text encoder and UNet, and assemble sample/model.

    python sample/build/train_diffusion.py --cache CACHE_DIR --out sample/model

Needs the renders and CACHE_DIR/autoencoder/vae. Latents of all renders and of their mirror images
are computed once; a step draws posterior samples. UNet and text encoder learn together to predict
the velocity (arXiv 2202.00512, section 4). Epsilon prediction gives hardly any weight to the
noisiest steps, which decide on colour and table: after 50,000 samples, prompts had little effect.
Resumes from CACHE_DIR/diffusion/checkpoint.pt. `--continue_from sample/model` goes on from finished
weights, with their tokenizer and VAE and a fresh optimizer; an unknown word of new captions is then
spelled in bytes.

The noise schedule is the cosine one: 16x16 latents carry little redundancy, and half way it keeps
a signal of 0.49 where Stable Diffusion's own schedule, made for 64x64 latents, keeps 0.28.
"""

import argparse
import collections
import copy
import itertools
import json
import re
import shutil
import time
from pathlib import Path

import make_data
import parts
import torch
import training
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch.nn import functional as F
from train_autoencoder import cached_latents
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_symbols():
    """The printable stand-ins of the 256 bytes in byte-level BPE, in byte order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


def train_bpe(texts, limit=700):
    """Byte-pair encoding (arXiv 1508.07909): merge the commonest neighbour pair, again and again.

    Returns (vocabulary, merges) in CLIP's format: a word ends in `</w>`. Merging stops when every
    word of the texts is one token, or at `limit` merges.
    """
    symbols = byte_symbols()
    counts = collections.Counter(w for t in texts for w in re.findall(r"[a-z]+|[^\sa-z]", t))
    words = {}
    for word, count in counts.items():
        pieces = [symbols[b] for b in word.encode()]
        words[(*pieces[:-1], pieces[-1] + "</w>")] = count
    merges = []
    while len(merges) < limit:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda p: (pairs[p], p))  # the name decides ties
        merges.append(best)
        merged = {}
        for word, count in words.items():
            out, i = [], 0
            while i < len(word):
                if word[i : i + 2] == best:
                    out.append(word[i] + word[i + 1])
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] = merged.get(tuple(out), 0) + count
        words = merged
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), START, END]
    return {t: i for i, t in enumerate(dict.fromkeys(tokens))}, merges


def make_tokenizer(texts, folder):
    """Train the vocabulary, write CLIP's two files, and load them as users do."""
    vocabulary, merges = train_bpe(texts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **special}, indent=1))
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    ids = tokenizer(texts[0]).input_ids
    if tokenizer.decode(ids, skip_special_tokens=True).strip().replace(" ,", ",") != texts[0]:
        raise RuntimeError(f"the tokenizer garbles {texts[0]!r}")
    return tokenizer


def build_text_encoder(tokenizer):
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            projection_dim=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet():
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 128, 192),
        norm_num_groups=16,
        cross_attention_dim=128,
        attention_head_dim=4,  # the number of heads, in spite of its name
        # Attention at 8x8 and, in the middle, at 4x4; at 16x16 it costs a quarter of the time.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        # A pooled text state joins the time embedding of every block: a short way for what a
        # caption says of the whole picture (colours, tables), beside cross attention.
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
    )


def warm_text_encoder(text_encoder, tokens, steps, seed, until, batch):
    """Teach the fresh text encoder to carry the words of a caption to every later place.

    Each place predicts which words have occurred so far. Otherwise the 60 places of padding carry
    nothing, and the caption has little effect on cross attention over 77 places. Stops after
    `steps` or at the time `until`.
    """
    words = torch.unique(tokens[:2000])
    device = tokens.device
    head = torch.nn.Linear(text_encoder.config.hidden_size, len(words)).to(device)
    weights = [*text_encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        weights, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    for step in range(steps):
        if time.time() > until:
            break
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate(step, step / steps, 1e-3, 20)
        rng = training.generator(seed, step, device)
        ids = tokens[torch.randint(len(tokens), (batch,), generator=rng, device=device)]
        said = (ids[:, :, None] == words).float().cumsum(1).clamp(max=1)
        with training.autocast(device):
            guess = head(text_encoder(ids)[0])
        loss = F.binary_cross_entropy_with_logits(guess.float(), said)
        training.update(optimizer, loss)
        if step % 25 == 24:
            print(json.dumps({"text_step": step + 1, "loss": round(loss.item(), 5)}), flush=True)


def build_scheduler():
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def draw_batch(latents, tokens, empty, scale, args, rng):
    """(rows, scaled latents, noise, token ids), all on the device; some captions are empty."""
    device, count = latents.device, args.batch_size
    rows = torch.randint(latents.shape[1], (count,), generator=rng, device=device)
    views = torch.randint(len(latents), (count,), generator=rng, device=device)
    chosen = latents[views, rows].float()
    fresh, noise = torch.randn((2, *chosen[:, :4].shape), generator=rng, device=device)
    x = (chosen[:, :4] + chosen[:, 4:] * fresh) * scale
    silent = torch.rand((count, 1), generator=rng, device=device) < args.drop
    return rows, x, noise, torch.where(silent, empty, tokens[rows])


def mix_noise(x, noise, alphas, times):
    """(noisy latents, velocity): the UNet's input and its target."""
    signal = alphas[times].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * x + (1 - signal).sqrt() * noise
    velocity = signal.sqrt() * noise - (1 - signal).sqrt() * x
    return noisy.contiguous(memory_format=torch.channels_last), velocity


def caption_tokens(tokenizer, captions, device):
    """Token ids of the captions [N, 77] and of the empty caption [77]."""
    ids = tokenizer(
        [*captions, ""], padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids.to(device)
    return ids[:-1], ids[-1]


def train(args, run, latents, tokens, empty, scale, alphas, early):
    """UNet and text encoder together; `early()` is called at `args.early_at` of the run."""
    unet, text_encoder = run.modules["unet"], run.modules["text_encoder"]
    device = latents.device
    while not args.export and run.goes_on():
        rng = training.generator(args.seed + 2, run.step, device)
        _, x, noise, ids = draw_batch(latents, tokens, empty, scale, args, rng)
        times = torch.randint(1000, (len(x),), generator=rng, device=device)
        noisy, velocity = mix_noise(x, noise, alphas, times)
        with training.autocast(device):
            guess = unet(noisy, times, text_encoder(ids)[0], return_dict=False)[0]
        loss = (guess.float() - velocity).square().mean()
        training.update(run.optimizer, loss)
        run.advance({"velocity_mse": loss})
        if early and run.done > args.early_at:
            early()
            early = None


def export(out, run, parts_of, classes):
    """Store the average of the weights as a pipeline in float16."""
    modules = copy.deepcopy({**run.modules, "vae": parts_of["vae"]})
    for name, weights in run.average.items():
        modules[name].load_state_dict(weights)
    for module in modules.values():
        module.to("cpu", torch.float16, memory_format=torch.contiguous_format).eval()
    pipeline = StableDiffusionPipeline(
        **modules,
        tokenizer=parts_of["tokenizer"],
        scheduler=parts_of["scheduler"],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )

    def save(folder):
        pipeline.save_pretrained(folder)
        if "tokenizer_folder" in parts_of:  # unchanged files: a tokenizer in use has other defaults
            shutil.copytree(parts_of["tokenizer_folder"], folder / "tokenizer", dirs_exist_ok=True)
        (folder / "classes.json").write_text(json.dumps({"generator": classes}, indent=1) + "\n")

    training.write_folder(out, save)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Train UNet and text encoder.")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--out", default=str(make_data.ROOT / "model"))
    parser.add_argument(
        "--continue_from",
        metavar="MODEL",
        help="go on from the weights of this model, with its tokenizer and VAE, a new optimizer",
    )
    training.add_budget(parser, 6000)
    training.add_wait(parser)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--drop", type=float, default=0.12, help="share of empty captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no_mirror", action="store_true", help="do not train on mirror images")
    parser.add_argument("--export", action="store_true", help="save the model as it is now")
    parser.add_argument("--early", metavar="FOLDER", help="also save an unfinished model here")
    parser.add_argument("--early_at", type=float, default=0.6, help="part of the run, 0 to 1")
    args = parser.parse_args(argv)
    device, cache = training.pick_device(), Path(args.cache)
    torch.manual_seed(args.seed)
    images, _, captions = make_data.load_shards(cache)
    if args.continue_from:
        start = StableDiffusionPipeline.from_pretrained(args.continue_from, dtype=torch.float32)
        tokenizer, vae, scheduler = start.tokenizer, start.vae, start.scheduler
        unet, text_encoder = start.unet, start.text_encoder
        folder = cache / f"diffusion-{training.fingerprint(unet, text_encoder)}"
    else:
        folder, scheduler = cache / "diffusion", build_scheduler()
        tokenizer = make_tokenizer(captions, folder / "tokenizer")
        unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    tokens, empty = caption_tokens(tokenizer, captions, device)
    unet.to(device, memory_format=torch.channels_last).train()
    text_encoder.to(device).train()
    fresh = not args.continue_from and not (folder / "checkpoint.pt").exists()
    if fresh and not args.export:
        steps, batch = min(args.steps or args.default_steps, 300), min(args.batch_size, 256)
        until = time.time() + training.seconds_left(args) / 20
        warm_text_encoder(text_encoder, tokens, steps, args.seed + 4, until, batch)
    if not args.continue_from:
        source = cache / "autoencoder" / "vae"
        training.wait_until((source / "config.json").exists, args.wait, source)
        vae = AutoencoderKL.from_pretrained(source)
    vae.to(device).eval()
    latents = cached_latents(cache, vae, images, device, not args.no_mirror)

    modules = {"unet": unet, "text_encoder": text_encoder}
    optimizer = torch.optim.AdamW(
        [p for m in modules.values() for p in m.parameters()],
        lr=args.lr,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        fused=True,
    )
    run = training.Run(folder, modules, optimizer, args, decay=0.999, warmup=300)
    classes = parts.seen(make_data.load_classes(cache))
    kept = {"vae": vae, "tokenizer": tokenizer, "scheduler": scheduler}
    if args.continue_from:
        kept["tokenizer_folder"] = Path(args.continue_from) / "tokenizer"
    early = (lambda: export(args.early, run, kept, classes)) if args.early else None
    alphas = scheduler.alphas_cumprod.to(device)
    train(args, run, latents, tokens, empty, vae.config.scaling_factor, alphas, early)
    export(args.out, run, kept, classes)
    result = {
        "unet_parameters": sum(p.numel() for p in unet.parameters()),
        "text_encoder_parameters": sum(p.numel() for p in text_encoder.parameters()),
        "vocabulary": len(tokenizer),
        "renders": len(images),
    }
    training.write_result(folder, result)


if __name__ == "__main__":
    main()
