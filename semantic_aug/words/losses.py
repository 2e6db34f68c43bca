"""The error of the UNet's prediction for noised photos, under prompts that hold new words."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from semantic_aug import UserError
from semantic_aug.diffusion.loading import encode_image, scale_latents
from semantic_aug.words.prompts import Prompts, encode_prompts
from semantic_aug.words.rows import words_in_place


@torch.no_grad()
def latent_posterior(vae, photo: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the VAE's posterior of a photo and of its mirror image.

    The encoder is frozen, so each photo is encoded once. Each step draws from the posterior anew.

    Args:
        photo: [3, H, W] in [-1, 1].

    Returns:
        Two tensors [2, C, h, w] on the CPU, scaled as the UNet expects them; mirrored at [1].
    """
    mean, deviation = encode_image(vae, torch.stack([photo, photo.flip(-1)]).to(vae.device))
    zero = scale_latents(vae, torch.zeros_like(mean.float()))
    scaled = scale_latents(vae, mean.float())
    return scaled.cpu(), (scale_latents(vae, deviation.float()) - zero).cpu()


def noise_target(scheduler, latents, noise, timesteps) -> torch.Tensor:
    """The target of the UNet's prediction: the noise, or the velocity (arXiv 2202.00512)."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise UserError(f"this model predicts {kind!r}; known: epsilon, v_prediction, sample")


@dataclass(frozen=True)
class Draw:
    """A batch of a word: B photos' latents, their noise and timesteps, and their template.

    The photos share a template, so the text encoder runs once per word, not once per photo.
    """

    latents: torch.Tensor  # [B, C, h, w]
    weights: torch.Tensor  # [B, 1, h, w]: of the loss, with a mean of 1 for each photo
    noise: torch.Tensor  # [B, C, h, w]
    timesteps: torch.Tensor  # [B]
    template: int


def denoising_losses(
    pipeline,
    noise_scheduler,
    rows: Sequence[Sequence[torch.Tensor]],
    draws: Sequence[Draw],
    prompts: Prompts,
) -> torch.Tensor:
    """Mean squared error of the UNet's prediction for each word's batch, in a single pass: [words].

    If the photos do not fill the square, each place of the error has a weight.
    """
    device = next(pipeline.unet.parameters()).device
    ids = prompts.of_words(len(rows[0][0]), [draw.template for draw in draws])
    with words_in_place(pipeline, rows, prompts.first_ids):
        hidden, added = encode_prompts(
            pipeline, [each.to(device) for each in ids], draws[0].latents.shape[-2:]
        )
    photos = len(draws[0].latents)
    hidden = _for_each_photo(hidden.float(), photos)  # float32, because gradients add up
    added = added and {name: _for_each_photo(each, photos) for name, each in added.items()}
    return losses_when_told(pipeline, noise_scheduler, draws, hidden, added)


def losses_when_told(
    pipeline, noise_scheduler, draws: Sequence[Draw], hidden: torch.Tensor, added: dict | None
) -> torch.Tensor:
    """`denoising_losses` of photos whose prompts are already encoded: [draws].

    Args:
        hidden, added: as `encode_prompts` gives them, for each photo of all draws.
    """
    unet = pipeline.unet
    # pipeline.device and unet.dtype would search every module for hooks in every step.
    device, dtype = (weight := next(unet.parameters())).device, weight.dtype
    latents, weights, noise, timesteps = (
        torch.cat([getattr(draw, part) for draw in draws]).to(device)
        for part in ("latents", "weights", "noise", "timesteps")
    )
    noisy = noise_scheduler.add_noise(latents, noise, timesteps).to(dtype)
    predicted = unet(noisy, timesteps, hidden.to(dtype), added_cond_kwargs=added).sample
    target = noise_target(noise_scheduler, latents, noise, timesteps)
    errors = functional.mse_loss(predicted.float(), target, reduction="none")
    return (errors * weights).view(len(draws), -1).mean(dim=1)


def _for_each_photo(of_words: torch.Tensor, photos: int) -> torch.Tensor:
    """Repeat each word's value for each of its photos in a batch: [words * photos, ...]."""
    return of_words.unsqueeze(1).expand(-1, photos, *of_words.shape[1:]).flatten(0, 1)
