"""Textual inversion (arXiv 2208.01618): rows for new words, trained in a frozen Stable Diffusion.

The rows are the only parameters. A photo is noised, the UNet predicts the noise under a prompt
that holds the new word, and the squared error moves the word's rows (equation 2 of the paper).
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from semantic_aug import UserError
from semantic_aug.embeddings import expand_token, vector_tokens

# The neutral contexts of the published method, for an object and for a style.
OBJECT_TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)
STYLE_TEMPLATES = (
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dirty painting in the style of {}",
    "a dark painting in the style of {}",
    "a picture in the style of {}",
    "a cool painting in the style of {}",
    "a close-up painting in the style of {}",
    "a bright painting in the style of {}",
    "a good painting in the style of {}",
    "a rendition in the style of {}",
    "a nice painting in the style of {}",
    "a small painting in the style of {}",
    "a weird painting in the style of {}",
    "a large painting in the style of {}",
)
TEMPLATES = {"object": OBJECT_TEMPLATES, "style": STYLE_TEMPLATES}


class TrainingDiverged(RuntimeError):
    """The loss is no longer finite."""


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
    prompts = [expand_token(t.format(token), token, num_vectors) for t in templates]
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


# --- photos ----------------------------------------------------------------------------------


@torch.no_grad()
def latent_posteriors(vae, photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the VAE's posterior of photos and of their mirror images.

    The encoder is frozen, so that once is enough; each step draws from the posterior anew.

    Args:
        photos: [N, 3, H, W] in [-1, 1].

    Returns:
        Two tensors [N, 2, C, h, w], scaled as the UNet expects them; mirrored ones at [:, 1].
    """
    means, deviations = [], []
    for photo in photos:
        pair = torch.stack([photo, photo.flip(-1)]).to(vae.device, vae.dtype)
        posterior = vae.encode(pair).latent_dist
        means.append(posterior.mean.float())
        deviations.append(posterior.std.float())
    scale = vae.config.scaling_factor
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return (torch.stack(means) - shift) * scale, torch.stack(deviations) * scale


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


def photo_order(num_photos: int, generator: torch.Generator) -> Iterator[int]:
    """Endless passes over the photos, each in a new random order."""
    while True:
        yield from torch.randperm(num_photos, generator=generator).tolist()


def train_rows(
    pipeline,
    noise_scheduler,
    rows: torch.Tensor,
    first_id: int,
    prompt_ids: torch.Tensor,
    posteriors: tuple[torch.Tensor, torch.Tensor],
    settings: TrainingSettings,
    generator: torch.Generator,
    on_step: Callable[[int, float, float, torch.Tensor], None] = lambda *_: None,
) -> torch.Tensor:
    """Train the rows of one word.

    Args:
        pipeline: frozen; its text encoder and UNet give gradients and get none.
        noise_scheduler: a DDPMScheduler with the model's noise levels.
        rows: [num_vectors, dim] float32 to start from.
        first_id: token id of the first row.
        prompt_ids: [templates, 77]; one template is drawn per photo and step.
        posteriors: as `latent_posteriors` returns them.
        generator: CPU; the only source of chance (order, mirroring, templates, noise, timesteps).
        on_step: called after each optimiser step with its number from 1, the loss, the learning
            rate, and the rows.

    Returns:
        The trained rows, [num_vectors, dim] float32 on the CPU.

    Raises:
        TrainingDiverged: the loss is NaN or infinite.
    """
    from diffusers.optimization import get_scheduler

    unet, text_encoder = pipeline.unet, pipeline.text_encoder
    device, dtype = unet.device, unet.dtype
    parameter = nn.Parameter(rows.to(device))
    optimizer = torch.optim.AdamW(
        [parameter],
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        eps=settings.adam_epsilon,
    )
    schedule = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.max_train_steps,
    )
    # Gradients that pass through float16 layers underflow unless the loss is scaled up.
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    order = photo_order(len(posteriors[0]), generator)
    accumulation = settings.gradient_accumulation_steps
    with rows_in_place(text_encoder, parameter, first_id):
        for step in range(1, settings.max_train_steps + 1):
            total = 0.0
            for _ in range(accumulation):
                loss = _denoising_loss(
                    unet, text_encoder, noise_scheduler, prompt_ids, posteriors, order,
                    settings.train_batch_size, generator,
                )  # fmt: skip
                scaler.scale(loss / accumulation).backward()
                total += loss.item() / accumulation
            rate = schedule.get_last_lr()[0]
            if not math.isfinite(total):
                raise TrainingDiverged(
                    f"loss is {total} at step {step} (learning rate {rate:g}, "
                    f"{str(dtype).removeprefix('torch.')})"
                )
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            on_step(step, total, rate, parameter)
    trained = parameter.detach().float().cpu()
    if not trained.isfinite().all():
        raise TrainingDiverged(f"rows are not finite after step {settings.max_train_steps}")
    return trained


def _denoising_loss(
    unet, text_encoder, scheduler, prompt_ids, posteriors, order, batch_size, generator
) -> torch.Tensor:
    """Mean squared error of the UNet's prediction on one random batch."""
    device, dtype = unet.device, unet.dtype
    photos = torch.tensor([next(order) for _ in range(batch_size)])
    mirrored = torch.randint(2, (batch_size,), generator=generator)
    templates = torch.randint(len(prompt_ids), (batch_size,), generator=generator)
    steps = scheduler.config.num_train_timesteps
    timesteps = torch.randint(steps, (batch_size,), generator=generator).to(device)
    shape = (batch_size, *posteriors[0].shape[2:])
    draw, noise = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    mean, deviation = (part[photos, mirrored].to(device) for part in posteriors)
    latents = mean + deviation * draw
    noisy = scheduler.add_noise(latents, noise, timesteps)
    hidden = text_encoder(prompt_ids[templates].to(device))[0]
    predicted = unet(noisy.to(dtype), timesteps, hidden.to(dtype)).sample
    target = noise_target(scheduler, latents, noise, timesteps)
    return functional.mse_loss(predicted.float(), target)
