"""Textual inversion (arXiv 2208.01618): rows for new words, trained in a frozen Stable Diffusion.

The rows are the only parameters. A photo is noised, the UNet predicts the noise under a prompt
that holds the new word, and the squared error moves the word's rows (equation 2 of the paper).

Words do not interact: AdamW treats each number by itself, and no layer of the model mixes the
samples of a batch. So several words share each batch, and every one comes out as if alone.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from semantic_aug import UserError
from semantic_aug.diffusion.loading import encode_image, scale_latents, text_encoders
from semantic_aug.embeddings import expand_token, vector_tokens

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


# --- words -----------------------------------------------------------------------------------


def check_num_vectors(tokenizer, num_vectors: int, templates: Sequence[str]) -> None:
    """Raise UserError unless every template has room for that many vectors of a word."""
    room = min(
        tokenizer.model_max_length - len(tokenizer(template.replace("{}", "")).input_ids)
        for template in templates
    )
    if room < 1:
        longest = max(templates, key=lambda text: len(tokenizer(text).input_ids))
        raise UserError(f"--templates: no room for a word in {longest[:60]!r}...: shorten it")
    if not 1 <= num_vectors <= room:
        raise UserError(
            f"--num_vectors: got {num_vectors}, expected 1 to {room}: a prompt of this model "
            f"holds {tokenizer.model_max_length} tokens, the template included"
        )


def initializer_id(tokenizer, initializer_token: str | None, class_name: str) -> int:
    """Token id that a word starts from.

    Args:
        initializer_token: a word that is a single token; default the last word of the class
            name that is one, else the class name's last token.

    Raises:
        UserError: the initializer is several tokens.
    """

    def ids_of(word: str) -> list[int]:
        return tokenizer(word, add_special_tokens=False).input_ids

    if initializer_token is not None:
        ids = ids_of(initializer_token)
        if len(ids) != 1:
            raise UserError(
                f"--initializer_token: {initializer_token!r} is {len(ids)} tokens of this model, "
                "expected a word that is a single one"
            )
        return ids[0]
    words = class_name.replace("_", " ").replace("-", " ").split()
    for word in reversed(words):
        ids = ids_of(word)
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return ids[0]
    ids = ids_of(class_name) or ids_of("object")
    return ids[-1]


def initial_rows(start: torch.Tensor, num_vectors: int, generator: torch.Generator) -> torch.Tensor:
    """Rows to start from: `start` [dim], further ones a little apart by seeded noise.

    Equal rows would get equal gradients wherever the text encoder treats positions alike, and
    part only slowly.

    Returns:
        [num_vectors, dim] float32.
    """
    rows = start.detach().float().cpu().repeat(num_vectors, 1)
    noise = torch.randn(rows.shape, generator=generator) * (0.1 * rows.std())
    noise[0] = 0
    return rows + noise


def add_tokens(tokenizer, token: str, num_vectors: int) -> list[int]:
    """Add a word's vectors to a tokenizer, under the names that stock diffusers gives them.

    Returns:
        Their ids, which follow each other.

    Raises:
        UserError: the tokenizer has one of them already.
    """
    names = vector_tokens(token, num_vectors)
    vocabulary = tokenizer.get_vocab()
    known = [name for name in names if name in vocabulary]
    if known:
        raise UserError(f"token {known[0]} exists already in this model; choose another name")
    tokenizer.add_tokens(names)
    return tokenizer.convert_tokens_to_ids(names)


def template_ids(tokenizer, templates: Sequence[str], token: str, num_vectors: int) -> torch.Tensor:
    """All templates with the word in its place, as [len(templates), 77] token ids."""
    prompts = [expand_token(t.replace("{}", token), token, num_vectors) for t in templates]
    return tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


class _RowsEmbedding(nn.Module):
    """A frozen embedding table with rows of new words behind it."""

    def __init__(self, table: nn.Embedding, rows: torch.Tensor, first_id: int):
        super().__init__()
        self.table, self.rows, self.first_id = table, rows, first_id

    @property
    def weight(self) -> torch.Tensor:
        return self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        is_new = (ids >= self.first_id) & (ids < self.first_id + len(self.rows))
        known = self.table(ids.masked_fill(is_new, 0))
        new = self.rows[(ids - self.first_id).clamp(0, len(self.rows) - 1)]
        return torch.where(is_new.unsqueeze(-1), new.to(known.dtype), known)


@contextlib.contextmanager
def rows_in_place(text_encoder, rows: torch.Tensor, first_id: int) -> Iterator[None]:
    """Within the block, ids from `first_id` on mean `rows` [R, dim]; the table stays untouched."""
    table = text_encoder.get_input_embeddings()
    text_encoder.set_input_embeddings(_RowsEmbedding(table, rows, first_id))
    try:
        yield
    finally:
        text_encoder.set_input_embeddings(table)


@dataclass(frozen=True)
class Prompts:
    """The templates with a new word in them, tokenised once for all words.

    Attributes:
        ids: for each text encoder, [templates, 77] token ids.
        first_ids: for each text encoder, the id of the word's first vector.
    """

    ids: list[torch.Tensor]
    first_ids: list[int]

    def of_words(self, num_vectors: int, templates: Sequence[int]) -> list[torch.Tensor]:
        """Template `templates[n]` with word n in it, whose ids follow word n - 1's.

        Returns:
            For each text encoder, [words, 77] token ids.
        """
        shift = torch.arange(len(templates)).unsqueeze(1) * num_vectors
        drawn = [ids[list(templates)] for ids in self.ids]
        return [ids + (ids >= first) * shift for ids, first in zip(drawn, self.first_ids)]


def tokenise(pipeline, templates: Sequence[str], token: str, num_vectors: int) -> Prompts:
    """Add a word to the pipeline's tokenizers, and the templates' ids with it in place."""
    tokenizers = [tokenizer for tokenizer, _ in text_encoders(pipeline)]
    first_ids = [add_tokens(tokenizer, token, num_vectors)[0] for tokenizer in tokenizers]
    ids = [template_ids(each, templates, token, num_vectors) for each in tokenizers]
    return Prompts(ids, first_ids)


@contextlib.contextmanager
def words_in_place(pipeline, rows: Sequence[Sequence[torch.Tensor]], first_ids: Sequence[int]):
    """Within the block, the ids from `first_ids` on mean the words' rows, one word after another.

    Args:
        rows: for each word and each text encoder, [num_vectors, dim].
    """
    with contextlib.ExitStack() as stack:
        for (_, encoder), of_encoder, first_id in zip(
            text_encoders(pipeline), zip(*rows), first_ids
        ):
            stacked = torch.cat([each.to(encoder.device) for each in of_encoder])
            stack.enter_context(rows_in_place(encoder, stacked, first_id))
        yield


# --- photos ----------------------------------------------------------------------------------


@torch.no_grad()
def latent_posterior(vae, photo: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the VAE's posterior of a photo and of its mirror image.

    The encoder is frozen, so that once is enough; each step draws from the posterior anew.

    Args:
        photo: [3, H, W] in [-1, 1].

    Returns:
        Two tensors [2, C, h, w] on the CPU, scaled as the UNet expects them; mirrored at [1].
    """
    mean, deviation = encode_image(vae, torch.stack([photo, photo.flip(-1)]).to(vae.device))
    zero = scale_latents(vae, torch.zeros_like(mean.float()))
    scaled = scale_latents(vae, mean.float())
    return scaled.cpu(), (scale_latents(vae, deviation.float()) - zero).cpu()


# --- the loop --------------------------------------------------------------------------------


def noise_target(scheduler, latents, noise, timesteps) -> torch.Tensor:
    """What the UNet of this model predicts: the noise, or the velocity (arXiv 2202.00512)."""
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
    """A batch of one word: B photos' latents, what noises them, and the template they share.

    One template for the batch, so that the text encoder runs once per word, not once per photo.
    """

    latents: torch.Tensor  # [B, C, h, w]
    weights: torch.Tensor  # [B, 1, h, w]: of the loss, with a mean of 1 for each photo
    noise: torch.Tensor  # [B, C, h, w]
    timesteps: torch.Tensor  # [B]
    template: int


class Word:
    """One word in training, with everything that its training depends on and shares with no other.

    Args:
        rows: for each text encoder, [num_vectors, dim] float32 to start from.
        posteriors: means and deviations, [N, 2, C, h, w], of `latent_posterior` of N photos.
        weights: of the loss at each place of these latents, [N, 2, 1, h, w]; default 1.
        settings: of the optimisation.
        generator: CPU; the only source of chance (order, mirroring, templates, noise, timesteps).
        device: where the rows are trained.
        scale_loss: for a model in float16, through whose layers small gradients underflow.

    Attributes:
        step: optimiser steps done.
        loss, rate: loss and learning rate of the last step.
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
    ):
        from diffusers.optimization import get_scheduler

        self.rows = [nn.Parameter(each.detach().clone().to(device)) for each in rows]
        self.posteriors, self.settings, self.generator = posteriors, settings, generator
        self.weights = torch.ones_like(posteriors[0][:, :, :1]) if weights is None else weights
        self.step, self.loss, self.rate, self.diverged = 0, math.nan, math.nan, None
        self.queue: list[int] = []  # what is left of this pass over the photos
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
        """Whether all steps are done."""
        return self.step >= self.settings.max_train_steps

    @property
    def is_running(self) -> bool:
        """Whether there are steps left to do."""
        return not self.is_done and self.diverged is None

    def trained_rows(self) -> list[torch.Tensor]:
        """The rows as they are now: for each text encoder, [num_vectors, dim] on the CPU."""
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
        mean, deviation, weights = (
            part[photos, mirrored] for part in (*self.posteriors, self.weights)
        )
        latents = mean + deviation * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        return Draw(latents, weights, noise, timesteps, template)

    def advance(self, loss: float) -> None:
        """One optimiser step, whose gradients are there; none where the loss is not finite.

        Where a float16 gradient overflowed, the step is counted and the rows stay.
        """
        self.loss, self.rate = loss, self.schedule.get_last_lr()[0]
        if not math.isfinite(loss):
            self.diverged = f"loss is {loss} at step {self.step + 1} (learning rate {self.rate:g})"
            return
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings():  # of a first step that the scaler has skipped
            warnings.simplefilter("ignore", UserWarning)
            self.schedule.step()
        self.step += 1
        if self.is_done and not all(each.isfinite().all() for each in self.rows):
            self.diverged = f"rows are not finite after step {self.step}"

    def state_dict(self) -> dict:
        """Everything that changes in training: with it, another process goes on from here."""
        return {
            "step": self.step,
            "queue": list(self.queue),
            "rows": self.trained_rows(),
            "generator": self.generator.get_state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take the place of the word whose `state_dict` this is."""
        with torch.no_grad():
            for mine, stored in zip(self.rows, state["rows"], strict=True):
                mine.copy_(stored)
        self.step, self.queue = state["step"], list(state["queue"])
        self.generator.set_state(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def train_words(pipeline, noise_scheduler, words: Sequence[Word], prompts: Prompts):
    """Train words together; each comes out as if trained alone, but for rounding.

    A word leaves the batch when its steps are done or its loss is not finite.

    Args:
        pipeline: frozen; its text encoders and UNet give gradients and get none.
        noise_scheduler: a DDPMScheduler with the model's noise levels.
        words: of the same batch size, accumulation and number of vectors.
        prompts: the templates; one is drawn per word and step.

    Yields:
        After each step, the words that took part in it.
    """
    num_templates = len(prompts.ids[0])
    num_timesteps = noise_scheduler.config.num_train_timesteps
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
        yield running


def denoising_losses(
    pipeline,
    noise_scheduler,
    rows: Sequence[Sequence[torch.Tensor]],
    draws: Sequence[Draw],
    prompts: Prompts,
) -> torch.Tensor:
    """Mean squared error of the UNet's prediction for each word's batch, in one pass: [words].

    Weighted by place, where the photos do not fill the square.
    """
    unet = pipeline.unet
    # Not pipeline.device and unet.dtype, which search every part for hooks, in every step.
    device, dtype = (weight := next(unet.parameters())).device, weight.dtype
    latents, weights, noise, timesteps = (
        torch.cat([getattr(draw, part) for draw in draws]).to(device)
        for part in ("latents", "weights", "noise", "timesteps")
    )
    num_vectors = len(rows[0][0])
    ids = prompts.of_words(num_vectors, [draw.template for draw in draws])
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    with words_in_place(pipeline, rows, prompts.first_ids):
        hidden, added = encode_prompts(
            pipeline, [each.to(device) for each in ids], latents.shape[-2:]
        )
    photos = len(draws[0].latents)
    hidden = _for_each_photo(hidden.float(), photos).to(dtype)  # its gradients add up
    added = added and {name: _for_each_photo(each, photos) for name, each in added.items()}
    predicted = unet(noisy.to(dtype), timesteps, hidden, added_cond_kwargs=added).sample
    target = noise_target(noise_scheduler, latents, noise, timesteps)
    errors = functional.mse_loss(predicted.float(), target, reduction="none")
    return (errors * weights).view(len(draws), -1).mean(dim=1)


def _for_each_photo(of_words: torch.Tensor, photos: int) -> torch.Tensor:
    """What belongs to a word, once for each of its photos in a batch: [words * photos, ...]."""
    return of_words.unsqueeze(1).expand(-1, photos, *of_words.shape[1:]).flatten(0, 1)


def encode_prompts(pipeline, ids: Sequence[torch.Tensor], latent_size: Sequence[int]):
    """What the UNet is told about prompts: (hidden states [B, 77, dim], other conditions or None).

    SDXL joins the last but one states of two encoders, and wants the pooled state of the second
    and the image's size (arXiv 2307.01952, sections 2.1 and 2.2). That state is the one which
    transformers pools, as in stock diffusers: at the end of the text, or, where the configuration
    has an `eos_token_id` of 2, at the highest id, which is a new word's last vector.
    """
    encoders = [encoder for _, encoder in text_encoders(pipeline)]
    if len(encoders) == 1:
        return encoders[0](ids[0])[0], None
    states = [encoder(each, output_hidden_states=True) for encoder, each in zip(encoders, ids)]
    hidden = torch.cat([state.hidden_states[-2] for state in states], dim=-1)
    height, width = (int(side) * pipeline.vae_scale_factor for side in latent_size)
    sizes = torch.tensor([height, width, 0, 0, height, width], dtype=hidden.dtype)
    sizes = sizes.to(hidden.device).repeat(len(hidden), 1)
    return hidden, {"text_embeds": states[1][0].to(hidden.dtype), "time_ids": sizes}


@torch.no_grad()
def validation_losses(
    pipeline,
    noise_scheduler,
    words: Sequence[Word],
    generators: Sequence[torch.Generator],
    prompts: Prompts,
) -> list[float]:
    """Denoising loss of each word over fixed photos, noises and timesteps.

    The loss of a training step says little, because it depends on the timesteps drawn far more
    than on the rows. This one is comparable between steps: same generator state, same draws.

    Args:
        generators: one per word, in the same state each time.
    """
    total = VALIDATION_BATCHES * VALIDATION_BATCH_SIZE
    num_timesteps = noise_scheduler.config.num_train_timesteps
    # Evenly over all timesteps; a batch holds early and late ones.
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
