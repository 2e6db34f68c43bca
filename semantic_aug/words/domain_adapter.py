"""A LoRA of a trial (arXiv 2106.09685): it learns what all photos of the trial have in common.

The loss is the same as for words (equation 2 of arXiv 2208.01618), but the words stay frozen. The
prompt of each photo contains the word of its class. Prior images of the classes' names can keep
the model from forgetting (prior preservation, equation 2 of arXiv 2208.12242).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.words.losses import Draw, denoising_losses, losses_when_told
from semantic_aug.words.prompts import Prompts


@dataclass(frozen=True)
class Latents:
    """N photos as latents, each unchanged and mirrored.

    Attributes:
        mean, deviation: of the VAE's posterior, [N, 2, C, h, w].
        weights: of the loss, [N, 2, 1, h, w], with a mean of 1 for each.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class ClassPhotos:
    """The training images of a class for a LoRA.

    Attributes:
        rows: of the class's word, for each text encoder [num_vectors, dim].
        photos: of the trial.
        prior: prior images of the class, or None.
        told: the encoded prompt of the prior images, as `encode_prompts` gives it.
    """

    rows: list[torch.Tensor]
    photos: Latents
    prior: Latents | None = None
    told: Any = None


class Deck:
    """Endless passes over the numbers below `count`, each in a new random order."""

    def __init__(self, count: int, generator: torch.Generator):
        self.count, self.generator = count, generator
        self.left: list[int] = []

    def draw(self) -> int:
        if not self.left:
            self.left = torch.randperm(self.count, generator=self.generator).tolist()
        return self.left.pop(0)


class Shown:
    """Photos of classes, drawn one by one, from each class equally often."""

    def __init__(self, classes: Sequence[Latents], generator: torch.Generator):
        self.classes, self.generator = list(classes), generator
        # A deck of the classes, then a deck of each class's photos.
        self.decks = [Deck(len(self.classes), generator)]
        self.decks += [Deck(len(each.mean), generator) for each in self.classes]

    def draw(self, num_templates: int, num_timesteps: int) -> tuple[int, Draw]:
        """The number of a class, and a photo of it as a batch of one."""
        generator, number = self.generator, self.decks[0].draw()
        shown, photo = self.classes[number], self.decks[1 + number].draw()
        mirrored = int(torch.randint(2, (1,), generator=generator))
        template = int(torch.randint(num_templates, (1,), generator=generator))
        timesteps = torch.randint(num_timesteps, (1,), generator=generator)
        mean, deviation, weights = (
            part[photo, mirrored].unsqueeze(0)
            for part in (shown.mean, shown.deviation, shown.weights)
        )
        latents = mean + deviation * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        return number, Draw(latents, weights, noise, timesteps, template)


class DomainAdapter:
    """A LoRA in training, with everything that its training depends on.

    Args:
        weights: of the LoRA, as `new_lora` gives them.
        classes: the training images.
        generator: CPU; the only source of randomness from here on.
        scale_loss: for a UNet in float16, in which small gradients underflow.

    Attributes:
        step: optimiser steps done.
        loss: of the last step, without the prior images' loss.
        diverged: why the training ended early, or None.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        classes: Sequence[ClassPhotos],
        settings: FineTuning,
        generator: torch.Generator,
        scale_loss: bool = False,
    ):
        self.weights, self.classes, self.settings = dict(weights), list(classes), settings
        self.generator, self.step, self.loss = generator, 0, math.nan
        self.diverged: str | None = None
        self.photos = Shown([each.photos for each in classes], generator)
        self.prior = Shown([each.prior for each in classes if each.prior is not None], generator)
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=settings.lora_learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            weight_decay=settings.adam_weight_decay,
            eps=settings.adam_epsilon,
        )
        device = next(iter(self.weights.values())).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=scale_loss)

    @property
    def is_running(self) -> bool:
        """Whether steps are left."""
        return self.diverged is None and self.step < self.settings.lora_steps

    def state_dict(self) -> dict:
        """Everything that changes in training, for another process to continue from."""
        return {
            "step": self.step,
            "weights": {name: each.detach().cpu() for name, each in self.weights.items()},
            "left": [deck.left for deck in (*self.photos.decks, *self.prior.decks)],
            "generator": self.generator.get_state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Continue from a `state_dict`."""
        with torch.no_grad():
            for name, stored in state["weights"].items():
                self.weights[name].copy_(stored)
        self.step = state["step"]
        for deck, left in zip((*self.photos.decks, *self.prior.decks), state["left"], strict=True):
            deck.left = list(left)
        self.generator.set_state(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def train_adapter(
    pipeline, noise_scheduler, adapter: DomainAdapter, prompts: Prompts
) -> Iterator[None]:
    """Train a LoRA in the pipeline's UNet; all else stays frozen. Yields after each step.

    Args:
        noise_scheduler: a DDPMScheduler with the model's noise levels.
        prompts: the sentences with the words; each photo draws a sentence.
    """
    settings, num_templates = adapter.settings, len(prompts.ids[0])
    num_timesteps = noise_scheduler.config.num_train_timesteps
    size, accumulation = settings.train_batch_size, settings.gradient_accumulation_steps
    classes = adapter.classes
    while adapter.is_running:
        total = 0.0
        for _ in range(accumulation):
            drawn = [adapter.photos.draw(num_templates, num_timesteps) for _ in range(size)]
            rows, draws = [classes[number].rows for number, _ in drawn], [each for _, each in drawn]
            losses = denoising_losses(pipeline, noise_scheduler, rows, draws, prompts)
            adapter.scaler.scale(losses.mean() / accumulation).backward()
            total += float(losses.detach().mean()) / accumulation
            if adapter.prior.classes:  # a separate pass, which does not double the memory
                drawn = [adapter.prior.draw(1, num_timesteps) for _ in range(size)]
                told = [classes[number].told for number, _ in drawn]
                draws = [each for _, each in drawn]
                losses = losses_when_told(pipeline, noise_scheduler, draws, *_joined(told))
                adapter.scaler.scale(losses.mean() / accumulation).backward()
        adapter.loss = total
        if not math.isfinite(total):
            adapter.diverged = f"loss is {total} at step {adapter.step + 1}"
        else:
            adapter.scaler.step(adapter.optimizer)
            adapter.scaler.update()
            adapter.optimizer.zero_grad(set_to_none=True)
            adapter.step += 1
            if not adapter.is_running and not all(
                each.isfinite().all() for each in adapter.weights.values()
            ):
                adapter.diverged = f"weights are not finite after step {adapter.step}"
        yield


def _joined(told: Sequence[tuple[torch.Tensor, dict | None]]) -> tuple[torch.Tensor, dict | None]:
    """The encoded prompts of several photos as a single batch."""
    hidden = torch.cat([states for states, _ in told])
    added = [others for _, others in told if others is not None]
    if not added:
        return hidden, None
    return hidden, {name: torch.cat([each[name] for each in added]) for name in added[0]}
