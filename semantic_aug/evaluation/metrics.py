"""Metrics of a classifier on labelled pictures."""

from dataclasses import dataclass

import torch

CALIBRATION_BINS = 15


@dataclass(frozen=True, eq=False)
class Scores:
    """Mean loss and accuracy of each class, [num_classes]; nan for a class without a picture."""

    loss: torch.Tensor
    accuracy: torch.Tensor

    @property
    def mean_loss(self) -> float:
        return float(self.loss.nanmean())

    @property
    def mean_accuracy(self) -> float:
        """The mean over classes, in [0, 1]; all classes count equally."""
        return float(self.accuracy.nanmean())


@dataclass(frozen=True, eq=False)
class Evaluation(Scores):
    """All metrics of a whole split.

    Attributes:
        top1: share of pictures whose true class is the most likely class, in [0, 1].
        top5: share of pictures whose true class is among the five most likely classes, in [0, 1].
        macro_f1: mean F1 over the classes that occur or are predicted, in [0, 1].
        calibration_error: expected calibration error (ECE), in [0, 1].
        confusion: [num_classes, num_classes] int64: pictures of class i (row) predicted as class j.
    """

    top1: float
    top5: float
    macro_f1: float
    calibration_error: float
    confusion: torch.Tensor


def class_scores(
    losses: torch.Tensor, hits: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> Scores:
    """Mean loss and accuracy of each class.

    Args:
        losses: [N].
        hits: [N] bool, whether the prediction is right.
        labels: [N] int64, on the CPU.
    """
    return Scores(*_class_means(losses, hits, labels, num_classes))


def _class_means(losses, hits, labels, num_classes) -> tuple[torch.Tensor, torch.Tensor]:
    count = torch.bincount(labels, minlength=num_classes)
    loss = torch.bincount(labels, losses.cpu().double(), num_classes) / count
    accuracy = torch.bincount(labels, hits.cpu().double(), num_classes) / count
    return loss, accuracy  # 0 / 0 is nan


def evaluation(logits: torch.Tensor, labels: torch.Tensor) -> Evaluation:
    """All metrics of predictions.

    Args:
        logits: [N, num_classes]; -inf for a class that is never predicted.
        labels: [N] int64, on the CPU.
    """
    num_classes = logits.shape[1]
    target = labels.to(logits.device)
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    # Of equal logits the first class wins, on every device.
    order = logits.argsort(dim=1, descending=True, stable=True)[:, :5]
    found = (order == target[:, None]).cpu()
    predicted, hits = order[:, 0].cpu(), found[:, 0]
    confidence = logits.softmax(dim=1).amax(dim=1).cpu()
    pairs = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    confusion = pairs.reshape(num_classes, num_classes)
    return Evaluation(
        *_class_means(losses, hits, labels, num_classes),
        top1=float(hits.double().mean()),
        top5=float(found.any(dim=1).double().mean()),
        macro_f1=macro_f1(confusion),
        calibration_error=calibration_error(confidence, hits),
        confusion=confusion,
    )


def macro_f1(confusion: torch.Tensor) -> float:
    """Mean F1 over the classes that occur or are predicted, as in scikit-learn.

    Args:
        confusion: [num_classes, num_classes] counts; rows are the true classes.
    """
    true, predicted = confusion.sum(dim=1), confusion.sum(dim=0)
    f1 = 2 * confusion.diagonal().double() / (true + predicted)
    return float(f1[true + predicted > 0].mean())


def calibration_error(confidence: torch.Tensor, hits: torch.Tensor) -> float:
    """Expected calibration error (arXiv 1706.04599, equation 3), with 15 bins of equal width.

    Args:
        confidence: [N] probability of the predicted class, in [0, 1].
        hits: [N] bool, whether the prediction is right.
    """
    bins = (confidence.double() * CALIBRATION_BINS).long().clamp(0, CALIBRATION_BINS - 1)
    distance = torch.bincount(bins, hits.double() - confidence.double(), CALIBRATION_BINS)
    return float(distance.abs().sum() / len(confidence))
