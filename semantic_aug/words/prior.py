"""Images of the classes' names by the model itself, which keep a LoRA from forgetting.

A model that is trained on few photos of a class forgets what else it knew of it; images that it has
made before are shown among them (prior preservation, arXiv 2208.12242, section 3.3).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from semantic_aug import stable_hash
from semantic_aug.diffusion.loading import text_encoders
from semantic_aug.experiment.files import atomic_path, remove_leftovers
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.images.reading import image_to_tensor
from semantic_aug.words.class_names import say_classes
from semantic_aug.words.domain_adapter import Latents
from semantic_aug.words.losses import latent_posterior
from semantic_aug.words.prompts import encode_prompts

PROMPT = "a photo of a {}"
STEPS = 25  # of denoising, for each image


def prior_settings(model: str, resolution: int | None) -> dict:
    """What makes these images, apart from their class and number."""
    return {"model": model, "resolution": resolution, "prompt": PROMPT, "steps": STEPS}


def prior_files(folder: Path, folders: Mapping[str, str], count: int) -> dict[str, list[Path]]:
    """Of each class, where its images lie, whether they are there or not.

    Args:
        folders: the name of each class's own folder.
    """
    return {
        name: [folder / own / f"{number:06d}.png" for number in range(count)]
        for name, own in folders.items()
    }


def make_prior(
    pipeline, files: Mapping[str, Sequence[Path]], resolution: int, shard: tuple[int, int]
) -> None:
    """Make the images that are missing, each by a random stream of its own.

    Processes that do so at the same time begin at different ones; an image that two make is the
    same in both.
    """
    wanted = [(name, n, path) for name, paths in files.items() for n, path in enumerate(paths)]
    first = len(wanted) * shard[0] // shard[1]
    wanted = [each for each in wanted[first:] + wanted[:first] if not each[2].exists()]
    for folder in {path.parent for _, _, path in wanted}:
        remove_leftovers(folder)
    said = say_classes(files, "words")
    for name, number, path in progress_bar(iterable=wanted, desc="prior", unit="image"):
        if path.exists():
            continue
        image = pipeline(
            PROMPT.format(said[name]),
            height=resolution,
            width=resolution,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(stable_hash("prior", name, number)),
        ).images[0]
        with atomic_path(path) as temporary:
            image.save(temporary, format="PNG")


def read_prior(pipeline, files: Sequence[Path], resolution: int) -> Latents:
    """A class's images as the UNet sees them."""
    encoded = []
    for path in files:
        with Image.open(path) as image:
            pixels = image_to_tensor(image.convert("RGB"), resolution)
        encoded.append(latent_posterior(pipeline.vae, pixels))
    mean, deviation = (torch.stack(parts) for parts in zip(*encoded))
    return Latents(mean, deviation, torch.ones_like(mean[:, :, :1]))


@torch.no_grad()
def told_of_class(pipeline, class_name: str, latent_size: Sequence[int]):
    """What the UNet is told of a class's images: its name alone, in the same prompt."""
    prompt = PROMPT.format(say_classes([class_name], "words")[class_name])
    ids = [
        tokenizer(
            prompt,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(pipeline.unet.device)
        for tokenizer, _ in text_encoders(pipeline)
    ]
    hidden, added = encode_prompts(pipeline, ids, latent_size)
    return hidden.float(), added
