"""Four steps of every training, on a few renders: a mistake shows within a minute.

    python sample/build/rehearse.py --cache CACHE_DIR

`on_gpu.sh` runs it while the real renders are made. Everything goes to CACHE_DIR, which must have
the meshes; batches are as large as in the real run, so that memory is tried too.
"""

import argparse
import time

import make_data
import sheets
import train_autoencoder
import train_controlnet
import train_diffusion


def main(argv=None):
    parser = argparse.ArgumentParser(description="Try every stage with four steps.")
    parser.add_argument("--cache", required=True, help="a folder with meshes")
    parser.add_argument("--autoencoder_batch", type=int, default=8)
    parser.add_argument("--unet_batch", type=int, default=32)
    parser.add_argument("--controlnet_batch", type=int, default=32)
    args = parser.parse_args(argv)
    model, controlnet = f"{args.cache}/sample/model", f"{args.cache}/sample/controlnet"
    vae = ["--batch_size", str(args.autoencoder_batch)]
    unet = ["--batch_size", str(args.unet_batch)]
    edges = ["--batch_size", str(args.controlnet_batch), "--workers", "1"]
    early = ["--early", f"{args.cache}/early/model", "--early_at", "0.1"]
    sheet = [
        "--only",
        "generator",
        "--type",
        "png",
        "--steps",
        "2",
        "--out",
        f"{args.cache}/sheets",
    ]
    for module, flags in (
        (make_data, ["pretrain", "--count", "66", "--workers", "1"]),
        (train_autoencoder, ["--steps", "4", *vae]),
        (train_diffusion, ["--steps", "4", *unet, "--out", model, *early]),
        (train_diffusion, ["--steps", "4", *unet, "--out", model, "--continue_from", model]),
        (train_controlnet, ["--steps", "4", *edges, "--model", model, "--out", controlnet]),
        (train_autoencoder, ["--steps", "4", *vae, "--decoder", model]),
        (sheets, ["--sample", f"{args.cache}/sample", *sheet]),
    ):
        begun = time.time()
        module.main([*flags, "--cache", args.cache])
        print(f"rehearsed {module.__name__} in {time.time() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    main()
