"""Textual inversion (arXiv 2208.01618): rows for new words, trained in a frozen Stable Diffusion.

The rows are the only parameters. The UNet predicts the noise of a noised photo under a prompt with
the new word. The gradient of the squared error updates the word's rows (equation 2 of the paper).

Words do not interact: AdamW treats each number separately, and no layer of the model mixes the
samples of a batch. So several words share each batch, and each is trained as if alone.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from semantic_aug.words.convergence import FIXED_PHOTOS, has_converged, steps_between
from semantic_aug.words.losses import Draw, denoising_losses
from semantic_aug.words.prompts import Prompts

# The fixed noises of a validation loss, in batches that need little memory.
VALIDATION_BATCHES, VALIDATION_BATCH_SIZE = 8, 4


@dataclass(frozen=True)
class TrainingSettings:
    """Hyperparameters of the optimisation of one word's rows."""

    max_train_steps: int
    train_batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    lr_scheduler: str
    lr_warmup_steps: int
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    stop_when_converged: float | None = None
    convergence_window: int = 310

    @property
    def steps_between(self) -> int:
        """Steps between two losses of the fixed batch."""
        return steps_between(self.train_batch_size * self.gradient_accumulation_steps)


class Word:
    """A word in training, with everything that belongs to its training alone.

    Args:
        rows: for each text encoder, [num_vectors, dim] float32 to start from.
        posteriors: means and deviations, [N, 2, C, h, w], of `latent_posterior` of N photos.
        weights: of the loss at each place of these latents, [N, 2, 1, h, w]; default 1.
        settings: of the optimisation.
        generator: CPU; the only random source (order, mirroring, templates, noise, timesteps).
        device: where the rows are trained.
        scale_loss: for a model in float16, in which small gradients underflow.
        fixed_seed: of the fixed batch, which shows whether a word has converged.

    Attributes:
        step: optimiser steps done.
        loss, rate: loss and learning rate of the last step.
        fixed_losses: of the fixed batch, at step 0 and after every `settings.steps_between` steps.
        stopped: whether the word converged before its last step.
        diverged: why the training ended early, or None.
    """

    def __init__(
        self,
        rows: Sequence[torch.Tensor],
        posteriors: tuple[torch.Tensor, torch.Tensor],
        settings: TrainingSettings,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        scale_loss: bool = False,
        weights: torch.Tensor | None = None,
        fixed_seed: int = 0,
    ):
        from diffusers.optimization import get_scheduler

        self.rows = [nn.Parameter(each.detach().clone().to(device)) for each in rows]
        self.posteriors, self.settings, self.generator = posteriors, settings, generator
        self.weights = torch.ones_like(posteriors[0][:, :, :1]) if weights is None else weights
        self.step, self.loss, self.rate = 0, math.nan, math.nan
        self.diverged: str | None = None
        self.fixed_seed, self.stopped = fixed_seed, False
        self.fixed_losses: list[float] = []
        self.queue: list[int] = []  # the rest of this pass over the photos
        self.optimizer = torch.optim.AdamW(
            self.rows,
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            weight_decay=settings.adam_weight_decay,
            eps=settings.adam_epsilon,
        )
        self.schedule = get_scheduler(
            settings.lr_scheduler,
            self.optimizer,
            num_warmup_steps=settings.lr_warmup_steps,
            num_training_steps=settings.max_train_steps,
        )
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=scale_loss)

    @property
    def is_done(self) -> bool:
        """Whether the word needs no more steps."""
        return self.stopped or self.step >= self.settings.max_train_steps

    @property
    def is_running(self) -> bool:
        """Whether steps are left."""
        return not self.is_done and self.diverged is None

    def trained_rows(self) -> list[torch.Tensor]:
        """The current rows: for each text encoder, [num_vectors, dim] on the CPU."""
        return [each.detach().float().cpu().clone() for each in self.rows]

    def next_photo(self) -> int:
        """Endless passes over the photos, each in a new random order."""
        if not self.queue:
            order = torch.randperm(len(self.posteriors[0]), generator=self.generator)
            self.queue = order.tolist()
        return self.queue.pop(0)

    def draw(self, num_templates: int, num_timesteps: int) -> Draw:
        """The next batch."""
        size, generator = self.settings.train_batch_size, self.generator
        photos = torch.tensor([self.next_photo() for _ in range(size)])
        mirrored = torch.randint(2, (size,), generator=generator)
        template = int(torch.randint(num_templates, (1,), generator=generator))
        timesteps = torch.randint(num_timesteps, (size,), generator=generator)
        return self.noised(photos, mirrored, timesteps, template, generator)

    def fixed_draw(self, num_templates: int, num_timesteps: int) -> Draw:
        """The fixed batch: the same at every call, and independent of the training's generator.

        Its timesteps are evenly spaced.
        """
        size, generator = FIXED_PHOTOS, torch.Generator().manual_seed(self.fixed_seed)
        order = torch.randperm(len(self.posteriors[0]), generator=generator)
        photos = order[torch.arange(size) % len(order)]
        mirrored = torch.randint(2, (size,), generator=generator)
        template = int(torch.randint(num_templates, (1,), generator=generator))
        parts = torch.arange(size) + torch.rand(size, generator=generator)
        timesteps = (parts * num_timesteps / size).long().clamp(max=num_timesteps - 1)
        return self.noised(photos, mirrored, timesteps, template, generator)

    def noised(self, photos, mirrored, timesteps, template: int, generator) -> Draw:
        """A noised batch of `photos` [B]; `mirrored` [B] is 1 for mirrored photos, else 0."""
        mean, deviation, weights = (
            part[photos, mirrored] for part in (*self.posteriors, self.weights)
        )
        latents = mean + deviation * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        return Draw(latents, weights, noise, timesteps, template)

    def advance(self, loss: float) -> None:
        """Take an optimiser step with the present gradients, unless the loss is not finite.

        If a float16 gradient overflowed, the step counts and the rows stay.
        """
        self.loss, self.rate = loss, self.schedule.get_last_lr()[0]
        if not math.isfinite(loss):
            self.diverged = f"loss is {loss} at step {self.step + 1} (learning rate {self.rate:g})"
            return
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings():  # warns if the scaler skips the first step
            warnings.simplefilter("ignore", UserWarning)
            self.schedule.step()
        self.step += 1
        if self.is_done and not all(each.isfinite().all() for each in self.rows):
            self.diverged = f"rows are not finite after step {self.step}"

    def note_fixed_loss(self, loss: float) -> None:
        """Record a loss of the fixed batch; stop the word if it has converged."""
        self.fixed_losses.append(loss)
        count = self.settings.convergence_window // self.settings.steps_between
        self.stopped = has_converged(
            self.fixed_losses, count, cast(float, self.settings.stop_when_converged)
        )

    def state_dict(self) -> dict:
        """Everything that changes in training, for another process to continue from."""
        watched = self.settings.stop_when_converged is not None
        fixed = {"fixed_losses": list(self.fixed_losses), "stopped": self.stopped}
        return {
            "step": self.step,
            "queue": list(self.queue),
            "rows": self.trained_rows(),
            "generator": self.generator.get_state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            **(fixed if watched else {}),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a `state_dict`."""
        with torch.no_grad():
            for mine, stored in zip(self.rows, state["rows"], strict=True):
                mine.copy_(stored)
        self.step, self.queue = state["step"], list(state["queue"])
        self.generator.set_state(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.settings.stop_when_converged is not None:
            self.fixed_losses, self.stopped = list(state["fixed_losses"]), state["stopped"]


def train_words(pipeline, noise_scheduler, words: Sequence[Word], prompts: Prompts):
    """Train words together; apart from rounding, each is trained as if alone.

    A word leaves the batch after its last step, when it has converged, or when its loss is not
    finite.

    Args:
        pipeline: frozen; gradients pass through its text encoders and UNet, whose weights get none.
        noise_scheduler: a DDPMScheduler with the model's noise levels.
        words: of the same batch size, accumulation and number of vectors.
        prompts: the templates; each word draws a template per step.

    Yields:
        After each step, the words that were trained in it.
    """
    num_templates = len(prompts.ids[0])
    num_timesteps = noise_scheduler.config.num_train_timesteps
    fixed = {
        word: word.fixed_draw(num_templates, num_timesteps)
        for word in words
        if word.settings.stop_when_converged is not None
    }

    @torch.no_grad()
    def measure(words: Sequence[Word]) -> None:
        if words:
            rows, draws = [word.rows for word in words], [fixed[word] for word in words]
            losses = denoising_losses(pipeline, noise_scheduler, rows, draws, prompts)
            for word, loss in zip(words, losses.tolist()):
                word.note_fixed_loss(loss)

    measure([word for word in fixed if not word.fixed_losses])
    while running := [word for word in words if word.is_running]:
        accumulation = running[0].settings.gradient_accumulation_steps
        totals = torch.zeros(len(running))
        for _ in range(accumulation):
            draws = [word.draw(num_templates, num_timesteps) for word in running]
            rows = [word.rows for word in running]
            losses = denoising_losses(pipeline, noise_scheduler, rows, draws, prompts)
            scaled = [word.scaler.scale(loss) for word, loss in zip(running, losses)]
            (torch.stack(scaled).sum() / accumulation).backward()
            totals += losses.detach().cpu() / accumulation
        for word, loss in zip(running, totals.tolist()):
            word.advance(loss)
        going_on = [word for word in running if word in fixed and word.is_running]
        measure([word for word in going_on if word.step % word.settings.steps_between == 0])
        yield running


@torch.no_grad()
def validation_losses(
    pipeline,
    noise_scheduler,
    words: Sequence[Word],
    generators: Sequence[torch.Generator],
    prompts: Prompts,
) -> list[float]:
    """Denoising loss of each word over fixed photos, noises and timesteps.

    The loss of a training step depends on the drawn timesteps far more than on the rows. The
    validation loss is comparable between steps, because all draws are the same.

    Args:
        generators: a generator per word, always in the same state.
    """
    total = VALIDATION_BATCHES * VALIDATION_BATCH_SIZE
    num_timesteps = noise_scheduler.config.num_train_timesteps
    # Evenly over all timesteps; a batch has early and late timesteps.
    even = ((torch.arange(total) + 0.5) * num_timesteps / total).long()
    losses = torch.zeros(len(words))
    for number in range(VALIDATION_BATCHES):
        draws = []
        for word, generator in zip(words, generators):
            timesteps = even[number::VALIDATION_BATCHES]
            photos = (torch.arange(len(timesteps)) + number) % len(word.posteriors[0])
            latents, weights = word.posteriors[0][photos, 0], word.weights[photos, 0]
            noise = torch.randn(latents.shape, generator=generator)
            draws.append(Draw(latents, weights, noise, timesteps, template=0))
        rows = [word.rows for word in words]
        losses += denoising_losses(pipeline, noise_scheduler, rows, draws, prompts).cpu()
    return (losses / VALIDATION_BATCHES).tolist()
