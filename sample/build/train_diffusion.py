"""Train tokenizer, text encoder and UNet, and assemble sample/model.

    python sample/build/train_diffusion.py --cache CACHE_DIR --out sample/model

Needs the renders and CACHE_DIR/autoencoder/vae. Latents of all renders and of their mirror images
are computed once; a step draws posterior samples. UNet and text encoder learn together to predict
the velocity (arXiv 2202.00512, section 4). Epsilon prediction leaves the noisiest steps, which
decide on colour and table, almost without weight: prompts were hardly obeyed after 50,000 samples.
Resumes from CACHE_DIR/diffusion/checkpoint.pt.

The noise schedule is the cosine one: 16x16 latents carry little redundancy, and half way it keeps
a signal of 0.49 where Stable Diffusion's own schedule, made for 64x64 latents, keeps 0.28.
"""

import argparse
import collections
import itertools
import json
import re
import shutil
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
from train_autoencoder import encode_all
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
        best = max(pairs, key=lambda p: (pairs[p], p))  # ties by name, so that it is repeatable
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
    """Train the vocabulary, write CLIP's two files, and load them as any user will."""
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
        attention_head_dim=4,  # the number of heads, for all its name
        # Attention at 8x8 and, in the middle, at 4x4; at 16x16 it costs a quarter of the time.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        # A pooled text state joins the time embedding of every block: a short way for what a
        # caption says of the whole picture (colours, tables), beside cross attention.
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
    )


def warm_text_encoder(text_encoder, tokens, steps, seed, device, batch=32):
    """Teach the fresh text encoder to carry the words of a caption to every later place.

    Each place predicts which words have occurred so far. Without this, the 60 places of padding
    say nothing, and cross attention, spread over 77 places, hardly hears the caption.
    """
    words = torch.unique(tokens[:2000])
    head = torch.nn.Linear(text_encoder.config.hidden_size, len(words)).to(device)
    weights = [*text_encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate(step, steps, 1e-3, 20)
        rng, _ = training.step_generators(seed, step)
        ids = tokens[torch.from_numpy(rng.integers(len(tokens), size=batch))].to(device)
        said = (ids[:, :, None] == words.to(device)).float().cumsum(1).clamp(max=1)
        with torch.autocast(device.type, torch.bfloat16):
            guess = head(text_encoder(ids)[0])
        loss = F.binary_cross_entropy_with_logits(guess.float(), said)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
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


def cached_latents(cache, vae, images, device, mirror):
    """[1 or 2, N, 8, 16, 16] float16: mean and deviation of all renders (and mirror images)."""
    path = Path(cache) / "diffusion" / "latents.pt"
    if path.exists():
        stored = torch.load(path, weights_only=True)
        if stored.shape[1] == len(images):
            return stored
    views = [images, images[:, :, ::-1]] if mirror else [images]
    latents = torch.stack([encode_all(vae, view, device) for view in views])
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(latents, path)
    return latents


def main(argv=None):
    parser = argparse.ArgumentParser(description="Train UNet and text encoder.")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--out", default=str(make_data.ROOT / "model"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--drop", type=float, default=0.12, help="share of empty captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no_mirror", action="store_true", help="do not train on mirror images")
    parser.add_argument("--export", action="store_true", help="save the model as it is now")
    args = parser.parse_args(argv)
    device = training.pick_device()
    torch.manual_seed(args.seed)
    images, _, captions = make_data.load_shards(args.cache)
    folder = Path(args.cache) / "diffusion"
    tokenizer = make_tokenizer(captions, folder / "tokenizer")
    tokens = tokenizer(
        captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    empty = tokenizer([""], padding="max_length", max_length=77, return_tensors="pt").input_ids[0]
    vae = AutoencoderKL.from_pretrained(Path(args.cache) / "autoencoder" / "vae").to(device).eval()
    latents = cached_latents(args.cache, vae, images, device, not args.no_mirror)
    scale = vae.config.scaling_factor

    text_encoder, unet = build_text_encoder(tokenizer).to(device), build_unet().to(device)
    unet.to(memory_format=torch.channels_last)
    if not (folder / "checkpoint.pt").exists():
        warm_text_encoder(text_encoder, tokens, min(args.steps, 300), args.seed + 4, device)
    modules = {"unet": unet, "text_encoder": text_encoder}
    weights = [p for m in modules.values() for p in m.parameters()]
    optimizer = torch.optim.AdamW(
        weights, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    run = training.Run(folder, modules, optimizer, decay=0.999)
    scheduler = build_scheduler()
    alphas = scheduler.alphas_cumprod.to(device)

    while run.step < args.steps and not args.export:
        run.set_rate(training.learning_rate(run.step, args.steps, args.lr))
        rng, noise_rng = training.step_generators(args.seed + 2, run.step)
        rows = torch.from_numpy(rng.integers(len(images), size=args.batch_size))
        flips = torch.from_numpy(rng.integers(len(latents), size=args.batch_size))
        chosen = latents[flips, rows].float()
        fresh = torch.randn(chosen[:, :4].shape, generator=noise_rng)
        noise = torch.randn(fresh.shape, generator=noise_rng).to(device)
        x = ((chosen[:, :4] + chosen[:, 4:] * fresh) * scale).to(device)
        times = torch.randint(1000, (len(rows),), generator=noise_rng).to(device)
        ids = tokens[rows].clone()
        ids[torch.from_numpy(rng.random(len(rows)) < args.drop)] = empty
        x = x.contiguous(memory_format=torch.channels_last)
        signal = alphas[times].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * x + (1 - signal).sqrt() * noise
        with torch.autocast(device.type, torch.bfloat16):
            states = text_encoder(ids.to(device))[0]
            guess = unet(noisy, times, states, return_dict=False)[0]
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * x
        loss = (guess.float() - velocity).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        run.advance({"velocity_mse": loss.item()}, args.steps)

    run.use_average()
    finished = Path(args.cache) / "decoder" / "vae"
    if finished.exists():  # the same encoder, a decoder that was trained for longer
        vae = AutoencoderKL.from_pretrained(finished)
    unet.to(memory_format=torch.contiguous_format)
    out = Path(args.out)
    shutil.rmtree(out, ignore_errors=True)
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out)
    config = json.loads((out / "vae" / "config.json").read_text())
    config.pop("_name_or_path", None)  # a folder of this machine
    (out / "vae" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    classes = parts.seen(make_data.load_classes(args.cache))
    (out / "classes.json").write_text(json.dumps({"generator": classes}, indent=1) + "\n")
    result = {
        "unet_parameters": sum(p.numel() for p in unet.parameters()),
        "text_encoder_parameters": sum(p.numel() for p in text_encoder.parameters()),
        "vocabulary": len(tokenizer),
        "renders": len(images),
        **training.final_line(folder),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
