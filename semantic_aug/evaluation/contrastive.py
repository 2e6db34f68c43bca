"""Supervised contrastive learning (arXiv 2004.11362), which trains a backbone before the head.

Hard negatives are images that look like a class but do not belong to the class. They repel only
the photos of that class. They are never positives, and the head is not trained on them.
"""

import dataclasses
import io
import itertools
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from kornia import color, enhance
from kornia.geometry import transform as geometry

from semantic_aug import UserError, stable_hash
from semantic_aug.evaluation.backbone import Backbone
from semantic_aug.evaluation.heads import ProjectionHead
from semantic_aug.evaluation.sampling import Examples, draw_epoch, draw_negatives
from semantic_aug.evaluation.standard_augmentation import flip_rotate
from semantic_aug.experiment.checked_files import read_checked, write_checked
from semantic_aug.experiment.names import Trial
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.settings.classification import TrainingOptions

VIEWS = 2  # of each image; they are positives of each other
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
CHECKPOINT_SECONDS = 60  # between two checkpoints, at least

log = logging.getLogger(__name__)


# --- the loss --------------------------------------------------------------------------------


def supervised_contrastive_loss(
    anchors: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    negatives: torch.Tensor | None = None,
    negative_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean of equation 2 ("out") of arXiv 2004.11362 over the anchors with a positive.

    The positives P(i) of anchor i are the other anchors with its label. The denominator sums over
    A(i): all other anchors, and the hard negatives with the label of i.

    Args:
        anchors: [A, D] embeddings of length 1; each is also in A(i) of all other anchors.
        labels: [A] int64.
        temperature: divides similarities, which are in [-1, 1].
        negatives: [H, D] embeddings of length 1.
        negative_labels: [H] int64, the class that each negative looks like.

    Returns:
        A float32 scalar for embeddings of any type; 0 if no anchor has a positive.
    """
    # Own implementation: pytorch-metric-learning's loss is 0 for a batch of a single class.
    itself = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    positive = (labels[:, None] == labels) & ~itself
    has_positive = positive.any(dim=1)
    positive = positive[has_positive]
    similarity = (anchors[has_positive] @ anchors.T).float() / temperature
    similarity = similarity.masked_fill(itself[has_positive], -math.inf)
    others = similarity
    if negatives is not None and negative_labels is not None:
        near = (anchors[has_positive] @ negatives.T).float() / temperature
        near = near.masked_fill(labels[has_positive][:, None] != negative_labels, -math.inf)
        others = torch.cat([similarity, near], dim=1)
    log_share = similarity - others.logsumexp(dim=1, keepdim=True)
    of_anchor = -log_share.where(positive, 0).sum(dim=1) / positive.sum(dim=1)
    return of_anchor.sum() / max(1, len(of_anchor))


# --- views -----------------------------------------------------------------------------------


def random_view(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random view of each image; everything is drawn per image.

    A view is a crop of 0.6 to 1 of the area, with an aspect ratio of 3/4 to 4/3, resized to the
    full size. It is mirrored with probability 0.5 and rotated by up to 15 degrees. With
    probability 0.8 brightness, contrast and saturation (factors in 1 ± 0.4) and hue (± 0.1 of the
    circle) change in this order. With probability 0.2 the view is grey.

    Args:
        images: [B, 3, H, W] float in [0, 1].
        generator: on the CPU; gives twelve numbers per image on any device.
    """
    draws = torch.rand((10, len(images)), generator=generator)
    images = flip_rotate(_random_part(images, draws[:4]), generator)
    factors = (0.6 + 0.8 * draws[4:7]).to(images)
    hue = (2 * math.pi * (0.2 * draws[7] - 0.1)).to(images)
    jittered = enhance.adjust_brightness_accumulative(images, factors[0])
    jittered = enhance.adjust_contrast_with_mean_subtraction(jittered, factors[1])
    jittered = enhance.adjust_saturation_with_gray_subtraction(jittered, factors[2])
    jittered = enhance.adjust_hue(jittered, hue).clamp(0, 1)
    is_jittered, is_grey = (draws[8] < 0.8).to(images.device), (draws[9] < 0.2).to(images.device)
    images = torch.where(is_jittered[:, None, None, None], jittered, images)
    grey = color.rgb_to_grayscale(images).expand_as(images)
    return torch.where(is_grey[:, None, None, None], grey, images)


def _random_part(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """A rectangle of each image, enlarged to the full size; `draws` is [4, B] in [0, 1)."""
    height, width = images.shape[2:]
    area, ratio = 0.6 + 0.4 * draws[0], (4 / 3) ** (2 * draws[1] - 1)
    across, down = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left, top = draws[2] * (1 - across) * (width - 1), draws[3] * (1 - down) * (height - 1)
    right, bottom = left + across * (width - 1), top + down * (height - 1)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    boxes = torch.stack([torch.stack(corner, dim=1) for corner in corners], dim=1)
    return geometry.crop_and_resize(images, boxes.to(images), (height, width))


# --- the stage -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of the stage, for resuming after a killed process.

    Attributes:
        path: of the file; None for no checkpoint.
        identity: of everything that the stage depends on; only an equal identity is resumed.
    """

    path: Path | None = None
    identity: str = ""

    def write(self, state: dict) -> None:
        if self.path is not None:
            content = io.BytesIO()
            torch.save({"identity": self.identity, "state": state}, content)
            write_checked(self.path, content.getvalue())

    def read(self) -> dict | None:
        """The state to resume from, or None."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            content = io.BytesIO(read_checked(self.path))
            found = torch.load(content, map_location="cpu", weights_only=True)
            if found["identity"] == self.identity:
                return found["state"]
            log.warning("%s has other settings or another device: the trial begins anew", self.path)
            return None
        except Exception as error:  # on broken files, the unpickler raises any kind of exception
            log.warning("%s cannot be read (%s): the trial begins anew", self.path, error)
            return None

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def train_contrastively(
    examples: Examples,
    negatives: Examples | None,
    backbone: Backbone,
    options: TrainingOptions,
    trial: Trial,
    checkpoint: Checkpoint,
) -> list[float]:
    """Train the trainable part of a backbone with the contrastive loss.

    Each batch holds two views of each drawn image, and a view of a hard negative of its photo.
    The optimiser is SGD with momentum and a cosine schedule.

    Args:
        negatives: hard negatives of the same photos, as `load_negatives` gives them.

    Returns:
        The mean loss of each epoch; the loss of a batch is computed before its step.

    Raises:
        UserError: an image cannot be read, or the loss is no longer finite.
    """
    options = dataclasses.replace(options, num_epochs=options.contrastive_epochs)
    # Two streams: the draws of photos are the same with and without hard negatives.
    generator, aside = (
        torch.Generator().manual_seed(stable_hash(word, trial.seed, trial.examples_per_class))
        for word in ("contrastive", "hard negatives")
    )
    projection = ProjectionHead(backbone.num_features, generator).to(backbone.device)
    parameters = [*backbone.trained_parameters(), *projection.parameters()]
    optimizer = torch.optim.SGD(parameters, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    losses: list[float] = []

    def state() -> dict:
        return {
            "losses": losses,
            "backbone": backbone.weights(),
            "projection": projection.state_dict(),
            "optimizer": optimizer.state_dict(),
            "streams": [generator.get_state(), aside.get_state(), _dropout_state(backbone)],
        }

    if (found := checkpoint.read()) is not None:
        losses = found["losses"]
        backbone.restore(found["backbone"])
        projection.load_state_dict(found["projection"])
        optimizer.load_state_dict(found["optimizer"])
        generator.set_state(found["streams"][0])
        aside.set_state(found["streams"][1])
        _set_dropout_state(backbone, found["streams"][2])
    saved = time.monotonic()
    bar = progress_bar(
        total=options.num_epochs, initial=len(losses), desc=f"{trial.name} contrast", unit="epoch"
    )
    with bar as progress:
        for epoch in range(len(losses), options.num_epochs):
            draws = draw_epoch(examples, options, generator, epoch)
            near = None if negatives is None else draw_negatives(examples, negatives, draws, aside)
            batches = _batches(examples, negatives, draws, near, backbone.device)
            of_steps = []
            with backbone.training():
                for step, (images, hard) in enumerate(batches):
                    done = (epoch * len(draws) + step) / (options.num_epochs * len(draws))
                    for group in optimizer.param_groups:
                        group["lr"] = options.contrastive_learning_rate * _cosine(done)
                    views = [random_view(images, generator) for _ in range(VIEWS)]
                    views += [random_view(hard.images, aside)] if hard else []
                    embeddings = projection(backbone(torch.cat(views)))
                    own = VIEWS * len(images)
                    loss = supervised_contrastive_loss(
                        embeddings[:own],
                        examples.labels[draws[step]].repeat(VIEWS).to(backbone.device),
                        options.contrastive_temperature,
                        embeddings[own:] if hard else None,
                        hard.labels if hard else None,
                    )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    of_steps.append(loss.detach())
            losses.append(float(torch.stack(of_steps).double().mean()))
            with torch.no_grad():  # the loss does not show the last step
                features = backbone(images)
            if not (math.isfinite(losses[-1]) and features.isfinite().all()):
                raise UserError(
                    f"{trial.name}: training diverges at --contrastive_learning_rate "
                    f"{options.contrastive_learning_rate:g}: its loss is {losses[-1]:.3g} in epoch "
                    f"{epoch}; choose a smaller rate"
                )
            progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            progress.update()
            if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                checkpoint.write(state())
                saved = time.monotonic()
    return losses


class _Hard(NamedTuple):
    """The hard negatives of a batch: [H, 3, H, W] in [0, 1], and the classes they look like."""

    images: torch.Tensor
    labels: torch.Tensor


def _batches(
    examples: Examples,
    negatives: Examples | None,
    draws: torch.Tensor,
    near: torch.Tensor | None,
    device: torch.device,
) -> Iterator[tuple[torch.Tensor, _Hard | None]]:
    """The images of every batch, float in [0, 1], and its hard negatives, if any."""

    def shown(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.to(device).float() / 255

    images = map(shown, examples.images.batches(draws))
    if negatives is None or near is None:
        yield from zip(images, itertools.repeat(None))
        return
    rows = [row[row >= 0] for row in near]
    hard = map(shown, negatives.images.batches([row for row in rows if len(row)]))
    for batch, row in zip(images, rows):
        yield batch, _Hard(next(hard), negatives.labels[row].to(device)) if len(row) else None


def _cosine(done: float) -> float:
    """1 at the start, 0 at the end."""
    return (1 + math.cos(math.pi * done)) / 2


def _dropout_state(backbone: Backbone) -> torch.Tensor:
    """The state of the global stream that dropout uses on this device."""
    if backbone.device.type == "cuda":
        return torch.cuda.get_rng_state(backbone.device)
    return torch.get_rng_state()


def _set_dropout_state(backbone: Backbone, state: torch.Tensor) -> None:
    if backbone.device.type == "cuda":
        torch.cuda.set_rng_state(state, backbone.device)
    else:
        torch.set_rng_state(state)
