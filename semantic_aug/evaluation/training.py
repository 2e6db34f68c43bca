"""A trial's classifier, a linear head on a backbone: training and evaluation.

This module does not touch the global random state. All random numbers of a trial, from the head's
initial weights to the last rotation, come from a CPU generator that the trial seeds.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from semantic_aug import UserError, stable_hash
from semantic_aug.evaluation.backbone import Backbone
from semantic_aug.evaluation.contrastive import Checkpoint, train_contrastively
from semantic_aug.evaluation.features import LabelledFeatures, cached_features
from semantic_aug.evaluation.heads import Head, make_head
from semantic_aug.evaluation.metrics import Evaluation, Scores, class_scores, evaluation
from semantic_aug.evaluation.sampling import Examples, draw_epoch
from semantic_aug.evaluation.standard_augmentation import augment
from semantic_aug.evaluation.views import Views
from semantic_aug.experiment.names import Trial
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.settings.classification import (
    BEST_VAL,
    FROZEN,
    LAST,
    SUPCON,
    TrainingOptions,
)

DIVERGED = 1000  # times the loss of guessing


@dataclass(frozen=True, eq=False)
class TrainedTrial:
    """The result of training a trial.

    Attributes:
        head: with the weights after the selected epoch; a trained backbone has them too.
        history: for every epoch, the training scores, of each batch before its step; and the
            scores of the whole validation split after the epoch, None without this split.
        selected: number of the epoch to report, from 0.
        contrastive: mean loss of every epoch of the contrastive stage; empty without that stage.
    """

    head: Head
    history: list[tuple[Scores, Evaluation | None]]
    selected: int
    contrastive: list[float] = field(default_factory=list)

    @property
    def validation(self) -> Evaluation | None:
        return self.history[self.selected][1]


def trial_generator(trial: Trial) -> torch.Generator:
    """The random stream of a trial, the same for all methods, so that they draw the same photos."""
    seed = stable_hash("classifier", trial.seed, trial.examples_per_class)
    return torch.Generator().manual_seed(seed)


def train_trial(
    examples: Examples,
    validation: Callable[[], LabelledFeatures] | None,
    backbone: Backbone,
    options: TrainingOptions,
    trial: Trial,
    num_classes: int,
    cache: Path | None = None,
    negatives: Examples | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainedTrial:
    """Train a head, and the trained part of the backbone, on a trial.

    With the objective `supcon`, the backbone is trained first and then frozen. Without random
    augmentation, a frozen backbone processes every picture only once for all epochs; with
    `options.views`, it processes this number of random views of every picture.

    Args:
        validation: gives the validation features of the current backbone; None without a
            validation split.
        cache: folder of cached features of images or views.
        negatives: the hard negatives of the contrastive stage, if any.
        checkpoint: of the contrastive stage, to resume after a killed process.

    Raises:
        UserError: an image cannot be read, or the loss is no longer finite.
    """
    backbone.reset()
    contrastive: list[float] = []
    if options.objective == SUPCON:
        for each in filter(None, (examples, negatives)):
            each.images.hold()
        with _dropout_of(trial, backbone):
            contrastive = train_contrastively(
                examples, negatives, backbone, options, trial, checkpoint or Checkpoint()
            )
        backbone, cache = backbone.frozen(), None  # each trial has its own features
        validation = validation and functools.cache(validation)
    generator = trial_generator(trial)
    trained = torch.zeros(num_classes, dtype=torch.bool)
    trained[examples.labels] = True
    head = make_head(backbone.num_features, trained, backbone.device, generator)
    groups = [{"params": head.linear.parameters(), "lr": options.learning_rate}]
    if backbone.trained:
        own = {"params": backbone.trained_parameters(), "lr": options.backbone_learning_rate}
        groups.append(own)
    optimizer = torch.optim.Adam(groups)
    names = tuple(options.augmentation)
    is_kept = not backbone.trained and (not names or options.views is not None)
    views = Views(names, options.views or 1, trial.seed)
    if is_kept:
        features = _whole_features(backbone, examples, trial, cache, views)
    else:
        examples.images.hold()

    def batches(draws: torch.Tensor) -> Iterator[tuple]:
        """(features, partner, share) of every batch."""
        if is_kept:
            for rows in views.draw(draws, generator).to(features.device):
                yield features[rows], None, None
            return
        for pixels in examples.images.batches(draws):
            images = pixels.to(backbone.device).float() / 255
            mixture = augment(names, images, generator)
            yield backbone(mixture.images), mixture.partner, mixture.share

    history: list[tuple[Scores, Evaluation | None]] = []
    selected, best = 0, None
    bar = progress_bar(total=options.num_epochs, desc=trial.name, unit="epoch")
    with bar as progress, one_thread() if is_kept else _dropout_of(trial, backbone):
        for epoch in range(options.num_epochs):
            draws = draw_epoch(examples, options, generator, epoch)
            with backbone.training():
                scores = _train_epoch(head, optimizer, draws, examples.labels, batches(draws))
            validated = None if validation is None else evaluate(head, validation())
            if _has_diverged(scores, *([validated] if validated else [])):
                raise UserError(_diverged(trial, epoch, scores.mean_loss, options))
            history.append((scores, validated))
            if options.select == LAST:
                selected = epoch
            else:
                rank = (validated.mean_accuracy, -validated.mean_loss)  # type: ignore[union-attr]
                if best is None or rank > best:
                    selected, best = epoch, rank
                    weights = _copy(head.linear.state_dict()), backbone.weights()
            said = {"val": f"{validated.mean_accuracy:.1%}"} if validated else {}
            progress.set_postfix(loss=f"{scores.mean_loss:.3f}", **said, refresh=False)
            progress.update()
    if options.select == BEST_VAL:
        head.linear.load_state_dict(weights[0])
        backbone.restore(weights[1])
    return TrainedTrial(head, history, selected, contrastive)


def _whole_features(backbone, examples: Examples, trial: Trial, cache, views) -> torch.Tensor:
    title = f"{trial.name} features"
    features, read = cached_features(backbone, examples.images, title, cache, views)
    if not read.all():
        examples.images.read(int((~read).nonzero()[0]))  # raises an error that names the image
    return features


def _has_diverged(*scores: Scores) -> bool:
    """Whether a loss is not finite, or more than `DIVERGED` times the loss of guessing."""
    losses = [each.mean_loss for each in scores]
    return not all(loss < DIVERGED * math.log(1 + len(scores[0].loss)) for loss in losses)


def _diverged(trial: Trial, epoch: int, loss: float, options: TrainingOptions) -> str:
    rates = f"--learning_rate {options.learning_rate:g}"
    if options.finetune != FROZEN and options.objective != SUPCON:
        rates += f" and --backbone_learning_rate {options.backbone_learning_rate:g}"
    return (
        f"{trial.name}: training diverges at {rates}: its loss is {loss:.3g} in epoch {epoch}; "
        "choose a smaller rate"
    )


def _copy(weights: dict) -> dict:
    return {key: tensor.clone() for key, tensor in weights.items()}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within the block, torch uses a single thread: a head's steps are too small for several.

    On busy cores threads wait for each other: two threads took up to a hundred times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _dropout_of(trial: Trial, backbone: Backbone) -> Iterator[None]:
    """Within the block, the global random state, which dropout uses, is seeded by the trial."""
    if not backbone.trained:
        yield
        return
    devices = [backbone.device] if backbone.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stable_hash("dropout", trial.seed, trial.examples_per_class))
        yield


def _train_epoch(
    head: Head,
    optimizer: torch.optim.Optimizer,
    draws: torch.Tensor,
    labels: torch.Tensor,
    batches: Iterator[tuple],
) -> Scores:
    losses, hits = [], []
    for indices, (features, partner, share) in zip(draws, batches):
        target = labels[indices].to(head.trained.device)
        logits = head(features)
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        if share is not None:
            other = torch.nn.functional.cross_entropy(logits, target[partner], reduction="none")
            loss = share * loss + (1 - share) * other
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.detach())  # reading the value would wait for the device
        hits.append(logits.argmax(dim=1) == target)
    shown = labels[draws.flatten()]
    return class_scores(torch.cat(losses), torch.cat(hits), shown, len(head.trained))


def evaluate(head: Head, split: LabelledFeatures) -> Evaluation:
    """All metrics of a split, over the photos of `known_logits`."""
    return evaluation(*known_logits(head, split))


@torch.no_grad()
def known_logits(head: Head, split: LabelledFeatures) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N, num_classes] and labels [N] of the photos whose classes the head was trained on.

    Raises:
        UserError: the split has no trained class.
    """
    known = head.trained.cpu()[split.labels]
    if not known.any():
        raise UserError("all photos to evaluate on belong to classes without a training image")
    features = split.features[known.to(split.features.device)]
    return head(features), split.labels[known]
