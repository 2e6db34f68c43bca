"""How this folder was made: by revision 99240b1, with every stage half finished.

    git worktree add /tmp/older 99240b1 && python make.py /tmp/older

Photos, masks, a Stable Diffusion and a backbone of a few thousand parameters, and an experiment on
them. tests/stages/test_older_experiment.py has today's commands finish it.
"""

import contextlib
import json
import os
import shutil
import socket
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
COLOURS = {"cat": (220, 40, 40), "motor": (40, 200, 40), "bird": (50, 60, 230)}

# The commands, as test_older_experiment.py gives them too.
COMMON = ["--dataset=folder", "--data_dir=photos", "--experiment_name=e", "--examples_per_class=2"]
COMMON += ["--device=cpu"]
WORDS = [*COMMON, "--model_path=model", "--num_vectors=2", "--max_train_steps=4"]
WORDS += ["--train_batch_size=2", "--checkpointing_steps=1", "--report_to=none"]
IMAGES = [*COMMON, "--model_path=model", "--num_synthetic=2", "--num_inference_steps=4"]
MASKED = [*IMAGES, "--dataset_args", "masks=masks", "--aug_name=masked", "--aug=real-guidance"]
MASKED += ["--mask=1", "--filter=classifier", "--filter_model=backbone", "--filter_quantile=0.3"]
CLASSIFIER = [*COMMON, "--classifier_backbone=backbone", "--num_epochs=2", "--batch_size=4"]
CLASSIFIER += ["--iterations_per_epoch=2"]


def draw(path: Path, colour, seed: int) -> None:
    """A square on a ground of one other colour, 16 pixels, and its mask."""
    from PIL import Image, ImageDraw

    image, mask = Image.new("RGB", (16, 16), (seed, 90, 120)), Image.new("1", (16, 16))
    box = (2 + seed % 5, 3 + seed % 3, 8 + seed % 5, 9 + seed % 3)
    ImageDraw.Draw(image).rectangle(box, fill=colour)
    ImageDraw.Draw(mask).rectangle(box, fill=1)
    mask_path = FOLDER / "masks" / path.relative_to(FOLDER / "photos").with_suffix(".png")
    for each, picture in ((path, image), (mask_path, mask)):
        each.parent.mkdir(parents=True, exist_ok=True)
        picture.save(each)


def build_model(folder: Path) -> None:
    """A complete Stable Diffusion for 16 pixels in half precision."""
    import torch
    from conftest import build_tokenizer
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    ids = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=77, **ids,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=8,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, sample_size=16,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear"), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).to(torch.float16).save_pretrained(folder)  # fmt: skip


def build_backbone(folder: Path) -> None:
    import torch
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.3] * 3, "size": {"shortest_edge": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


class Killed(BaseException):
    """Ends a command in its middle, as a kill would."""


@contextlib.contextmanager
def killed_after(module, name: str, calls: int):
    """Inside, `module.name` ends everything once it has been called so often."""
    original, count = getattr(module, name), 0

    def counting(*args, **kwargs):
        nonlocal count
        result = original(*args, **kwargs)
        count += 1
        if count == calls:
            raise Killed
        return result

    setattr(module, name, counting)
    with contextlib.suppress(Killed):
        yield
    assert count == calls, f"{name} was called {count} times"
    setattr(module, name, original)


def main(older: Path) -> None:
    os.chdir(FOLDER)
    os.environ["HF_HUB_OFFLINE"] = "1"
    socket.gethostname = lambda: "node"
    sys.path[:0] = [str(older), str(older / "tests")]
    import aggregate_embeddings
    import fine_tune
    import generate_augmentations
    import train_classifier
    from semantic_aug import generation

    for name in ("photos", "masks", "model", "backbone", "output"):
        shutil.rmtree(name, ignore_errors=True)
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        for label, (name, colour) in enumerate(COLOURS.items()):
            for number in range(count):
                path = FOLDER / "photos" / split / name / f"{number}.png"
                draw(path, colour, 60 * label + 13 * number + len(split))
    # This revision does not take these two: the experiment goes on without them.
    draw(FOLDER / "photos/train/cat/session2/7.png", (250, 250, 250), 7)
    draw(FOLDER / "photos/train/bird/8.ppm", (250, 250, 250), 8)
    build_model(FOLDER / "model")
    build_backbone(FOLDER / "backbone")

    # Words: of seed 0, cat is finished, motor stands at step 2 of 4, bird has not begun.
    fine_tune.main([*WORDS, "--classes=cat"])
    with killed_after(fine_tune, "save", 4):
        fine_tune.main([*WORDS, "--classes=motor"])
    fine_tune.main([*WORDS, "--seed=1"])
    aggregate_embeddings.main(["--experiment_name=e", "--seed=1", "--examples_per_class=2"])
    # Images: with words, of seed 1, four of twelve; masked, all of seed 0 and eight of seed 1.
    with killed_after(generation, "compute", 2):
        generate_augmentations.main([*IMAGES, "--seed=1"])
    generate_augmentations.main(MASKED)
    with killed_after(generation, "compute", 3):
        generate_augmentations.main([*MASKED, "--seed=1"])
    # Results: of two trials, the first.
    train_classifier.main([*CLASSIFIER, "--num_synthetic=0"])
    train_classifier.main(
        [*CLASSIFIER, "--dataset_args", "masks=masks", "--aug_name=masked", "--compare=real"]
    )
    for picture in (FOLDER / "output").rglob("results/**/*.png"):
        picture.unlink()  # large, and made anew by every command


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
