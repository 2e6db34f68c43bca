"""Four steps of every training, on a few renders: a mistake shows within a minute.

    python sample/build/rehearse.py --cache CACHE_DIR

`on_gpu.sh` runs it while the real renders are made. Everything goes to CACHE_DIR, which must have
the meshes. Batches are as large as in the real run, to test the memory too.
"""

import argparse
import time

import make_data
import sheets
import train_autoencoder
import train_backbone
import train_controlnet
import train_diffusion
import train_masker


def main(argv=None):
    parser = argparse.ArgumentParser(description="Try every stage with four steps.")
    parser.add_argument("--cache", required=True, help="a folder with meshes")
    parser.add_argument("--autoencoder_batch", type=int, default=8)
    parser.add_argument("--backbone_batch", type=int, default=64)
    parser.add_argument("--unet_batch", type=int, default=32)
    parser.add_argument("--controlnet_batch", type=int, default=32)
    parser.add_argument("--masker_batch", type=int, default=16)
    args = parser.parse_args(argv)
    model, controlnet = f"{args.cache}/sample/model", f"{args.cache}/sample/controlnet"
    batch = lambda size: ["--steps", "4", "--batch_size", str(size)]  # noqa: E731
    renders = ["--count", "66", "--workers", "1"]
    early = ["--early", f"{args.cache}/early/model", "--early_at", "0.1"]
    sheet = ["--only", "generator", "--type", "png", "--steps", "2"]
    sheet += ["--sample", f"{args.cache}/sample", "--out", f"{args.cache}/sheets"]
    vae, unet = batch(args.autoencoder_batch), batch(args.unet_batch)
    edges = [*batch(args.controlnet_batch), "--workers", "1"]
    for module, flags in (
        (make_data, ["pretrain", *renders]),
        (train_autoencoder, vae),
        (train_diffusion, [*unet, "--out", model, *early]),
        (train_diffusion, [*unet, "--out", model, "--continue_from", model]),
        (train_masker, [*batch(args.masker_batch), "--out", f"{args.cache}/sample/masker"]),
        (train_controlnet, [*edges, "--model", model, "--out", controlnet]),
        (train_autoencoder, [*vae, "--decoder", model]),
        (sheets, sheet),
        (make_data, ["backbone", *renders]),
        (train_backbone, [*batch(args.backbone_batch), "--out", f"{args.cache}/sample/backbone"]),
    ):
        begun = time.time()
        module.main([*flags, "--cache", args.cache])
        print(f"rehearsed {module.__name__} in {time.time() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    main()
