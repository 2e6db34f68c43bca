"""Calibration of the confidence by a temperature, fitted on val photos."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from semantic_aug.evaluation.metrics import calibration_error
from semantic_aug.evaluation.results import write_table
from semantic_aug.experiment.names import Trial

COLDEST, HOTTEST = 0.01, 100.0  # where the search for a temperature ends
HALVINGS = 40  # of this interval, on a logarithmic scale

log = logging.getLogger(__name__)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The T whose softmax(logits / T) has the least loss (Guo et al. 2017, arXiv 1706.04599).

    The loss is convex in 1 / T, so bisection of its slope finds the unique minimum. For n photos,
    the target is (n + 1) / (n + 2) for the true class, and the other classes share the rest
    equally (Platt, 1999). If all of a few photos are predicted correctly, the minimum would
    otherwise be at T = 0, where every prediction is certain.

    Args:
        logits: [N, num_classes]; -inf for a class that is never predicted.
        labels: [N] on the CPU, without such classes.

    Returns:
        T in [`COLDEST`, `HOTTEST`], in six digits; 1 for a single class.
    """
    known = logits.isfinite().all(dim=0).cpu()
    columns = known.cumsum(0) - 1
    values, target = logits.detach().cpu().double()[:, known], columns[labels]
    number, classes = values.shape
    if classes < 2:
        return 1.0
    share = (number + 1) / (number + 2)
    wanted = torch.full_like(values, (1 - share) / (classes - 1))
    wanted[torch.arange(number), target] = share
    aim = float((wanted * values).sum(dim=1).mean())

    def slope(temperature: float) -> float:
        """The derivative of the loss by 1 / T: the expected logit minus the target logit."""
        expected = ((values / temperature).softmax(dim=1) * values).sum(dim=1)
        return float(expected.mean()) - aim

    low, high = COLDEST, HOTTEST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        if slope(middle) > 0:
            low = middle  # the minimum is at a higher temperature
        else:
            high = middle
    return float(f"{(low * high) ** 0.5:.6g}")


def at_end(temperature: float) -> bool:
    """Whether the search ended at a bound, without a minimum."""
    return temperature in (COLDEST, HOTTEST)


def say_at_end(name: str, temperature: float) -> None:
    """Log a notice if the temperature is at a bound and calibrates nothing."""
    if at_end(temperature):
        why = (
            "its answers on held-out photos are no better than chance"
            if temperature == HOTTEST
            else "its scores of the classes hardly differ"
        )
        log.warning(
            "%s: probabilities are not calibrated: the search for a temperature ended at its "
            "limit, %g, since %s",
            name, temperature, why,
        )  # fmt: skip


def calibrated_error(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> float:
    """The ECE of softmax(logits / T); see `calibration_error`."""
    confidence, predicted = (logits.cpu().double() / temperature).softmax(dim=1).max(dim=1)
    return calibration_error(confidence, predicted == labels)


def calibration_file(folder: Path, trial: Trial) -> Path:
    """The path of a trial's calibration, beside its results."""
    return folder / f"calibration_{trial.seed}_{trial.examples_per_class}.csv"


def write_calibration(
    folder: Path,
    trial: Trial,
    temperature: float,
    errors: Mapping[str, tuple[float, float]],
    fitted: bool,
) -> None:
    """Write the temperature, the ECE of each split without and with it, and whether it calibrates.

    Args:
        fitted: whether there were val photos to fit it on.
    """
    calibrated = "yes" if fitted and not at_end(temperature) else "no"
    rows = [
        (trial.seed, trial.examples_per_class, split, temperature, *both, calibrated)
        for split, both in errors.items()
    ]
    names = ["seed", "examples_per_class", "split", "temperature", "ece", "ece_calibrated"]
    names += ["calibrated"]
    write_table(calibration_file(folder, trial), pd.DataFrame(rows, columns=names))
