"""Result files of the classifier: CSV files for each trial, and a summary over trials.

Plotting scripts of the field use the same columns and metric names. A trial's result counts only
if both its files are complete, which their content shows.
"""

import contextlib
import csv
import io
import logging
import math
import operator
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from semantic_aug.evaluation.metrics import Evaluation, Scores
from semantic_aug.experiment.files import atomic_path
from semantic_aug.experiment.names import Trial

RESULT_SPLITS = ("Training", "Validation", "Test", "Elsewhere")
TRAINING, VALIDATION, TEST, ELSEWHERE = RESULT_SPLITS
ONCE = (TEST, ELSEWHERE)  # evaluated only after the selected epoch, which they do not influence
RESULT_COLUMNS = ("seed", "examples_per_class", "epoch", "value", "metric", "split")
CONFUSION_COLUMNS = ("split", "true", "predicted", "count")
SUMMARY_FILE, COMPARISON_FILE = "summary.csv", "comparison.csv"
WHOLE_SPLIT = {  # metrics of a whole split, besides Loss and Accuracy
    "Top-1": "top1",
    "Top-5": "top5",
    "Macro F1": "macro_f1",
    "ECE": "calibration_error",
}
CONTRASTIVE = "Contrastive Loss"  # of Training, in the epochs of the first stage
SELECTED = "Selected"  # a row of this metric names the reported epoch
ENOUGH = 3  # trials for a meaningful interval

log = logging.getLogger(__name__)


# --- one trial -------------------------------------------------------------------------------


def results_file(folder: Path, trial: Trial) -> Path:
    """The path of a trial's results; see `is_finished`."""
    return folder / f"results_{trial.seed}_{trial.examples_per_class}.csv"


def confusion_file(folder: Path, trial: Trial) -> Path:
    """The path of a trial's confusion matrices."""
    return folder / f"confusion_{trial.seed}_{trial.examples_per_class}.csv"


def checkpoint_file(folder: Path, trial: Trial) -> Path:
    """The path of a trial's contrastive checkpoint, which exists until the trial is finished."""
    return folder / f"contrastive_{trial.seed}_{trial.examples_per_class}.pt"


def metric_names(class_names: Sequence[str]) -> list[str]:
    """Class names in metrics: in title case, or unchanged if titles would be equal."""
    meeting = Counter(name.title() for name in class_names)
    return [name.title() if meeting[name.title()] == 1 else name for name in class_names]


def score_rows(
    trial: Trial,
    epoch: int,
    split: str,
    scores: Scores,
    names: Sequence[str],
    labels: Iterable[int],
) -> list[tuple]:
    """Rows of a result file: the means over classes, then every class of `labels`.

    A class that no batch of a training epoch showed has an empty value there.
    """
    values = [("Loss", scores.mean_loss), ("Accuracy", scores.mean_accuracy)]
    if isinstance(scores, Evaluation):
        values += [(metric, getattr(scores, name)) for metric, name in WHOLE_SPLIT.items()]
    for label in sorted(labels):
        values.append((f"Loss {names[label]}", float(scores.loss[label])))
        values.append((f"Accuracy {names[label]}", float(scores.accuracy[label])))
    return [
        (trial.seed, trial.examples_per_class, epoch, value, metric, split)
        for metric, value in values
    ]


def contrastive_rows(trial: Trial, losses: Sequence[float]) -> list[tuple]:
    """The mean loss of every epoch of the contrastive stage, which has its own epoch numbers."""
    return [
        (trial.seed, trial.examples_per_class, epoch, loss, CONTRASTIVE, TRAINING)
        for epoch, loss in enumerate(losses)
    ]


def selected_row(trial: Trial, epoch: int) -> tuple:
    """The row that names the reported epoch."""
    return (trial.seed, trial.examples_per_class, epoch, 1, SELECTED, VALIDATION)


def write_results(path: Path, rows: Iterable[Sequence]) -> None:
    """Write the rows of a trial atomically."""
    write_table(path, pd.DataFrame(rows, columns=RESULT_COLUMNS))


def write_confusions(
    path: Path, evaluations: dict[str, Evaluation], class_names: Sequence[str]
) -> None:
    """Write the confusion counts by split, without pairs that do not occur.

    Columns: split, true, predicted, count.
    """
    rows = [
        (split, class_names[true], class_names[predicted], int(scores.confusion[true, predicted]))
        for split, scores in evaluations.items()
        for true, predicted in scores.confusion.nonzero().tolist()
    ]
    write_table(path, pd.DataFrame(rows, columns=CONFUSION_COLUMNS))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file with seven digits; the same numbers give the same bytes."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.7g", lineterminator="\n")


# --- finished trials -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Result:
    """The reported results of a finished trial.

    Attributes:
        values: of the selected epoch, by split and metric.
        confusions: counts by split and by (true, predicted) class.
    """

    values: dict[str, dict[str, float]]
    confusions: dict[str, dict[tuple[str, str], int]]


def is_finished(folder: Path, trial: Trial) -> bool:
    """Whether the results of a trial exist and are complete."""
    return read_result(folder, trial) is not None


def read_results(folder: Path) -> dict[Trial, Result]:
    """The results of every finished trial, in the order of seeds."""
    found = {trial: read_result(folder, trial) for trial in trials_with_files(folder)}
    return {trial: result for trial, result in found.items() if result is not None}


def trials_with_files(folder: Path) -> list[Trial]:
    """The trials with a result file, complete or not."""
    found = []
    for path in folder.glob("results_*.csv"):
        name = re.fullmatch(r"results_(-?\d+)_(\d+)\.csv", path.name)
        trial = name and Trial(int(name[1]), int(name[2]))
        if trial and results_file(folder, trial) == path:  # not 007
            found.append(trial)
    return sorted(found)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every result file; they change when a file is written."""
    found = {}
    for path in folder.glob("results_*.csv"):
        with contextlib.suppress(FileNotFoundError):  # another process removed the file
            found[path.name] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def read_result(folder: Path, trial: Trial) -> Result | None:
    """The results of a trial; None if they are missing or incomplete.

    The files alone show whether they are complete: every epoch has the same rows, a row names the
    selected epoch, and its accuracies agree with the confusions. A warning names any fault.
    """
    path, other = results_file(folder, trial), confusion_file(folder, trial)
    if not os.path.lexists(path):
        return None
    try:
        values = _read_selected(path, trial)
        confusions = _read_confusions(other)
        for split in (VALIDATION, *ONCE):
            if not _agree(values[split], confusions[split]):
                raise ValueError(f"its {split} rows and {other.name} differ")
    except (FileNotFoundError, ValueError, csv.Error) as error:
        reason = str(error)
        if isinstance(error, FileNotFoundError):
            reason = f"{Path(error.filename).name} is missing"
        log.warning(
            "%s does not count, and the command that made it makes it again: %s", path, reason
        )
        return None
    return Result(values, confusions)


def _read_selected(path: Path, trial: Trial) -> dict[str, dict[str, float]]:
    """Values of the selected epoch, by split and metric.

    Raises:
        ValueError: rows are missing, duplicate, or of another trial.
    """
    found: dict[str, dict[int, dict[str, float]]] = {split: {} for split in RESULT_SPLITS}
    own, selected = (str(trial.seed), str(trial.examples_per_class)), []
    before: list[int] = []
    for seed, k, epoch, value, metric, split in _read_rows(path, RESULT_COLUMNS):
        if (seed, k) != own:
            raise ValueError(f"it has rows of seed={seed}_ex={k}")
        if split not in RESULT_SPLITS:
            raise ValueError(f"{split!r} is no split")
        if metric == SELECTED:
            selected.append(int(epoch))
            continue
        if metric == CONTRASTIVE:
            before.append(int(epoch))
            continue
        values = found[split].setdefault(int(epoch), {})
        if metric in values:
            raise ValueError(f"it has {metric} of {split} twice in epoch {epoch}")
        values[metric] = float(value or "nan")  # empty if no batch contains the class
    if len(selected) != 1:
        raise ValueError(f"it names {len(selected)} selected epochs, expected 1")
    epochs = found[TRAINING].keys()
    if epochs != {*range(len(epochs))} or selected[0] not in epochs:
        raise ValueError("rows of whole epochs are missing")
    if before != [*range(len(before))]:
        raise ValueError(f"rows of {CONTRASTIVE} are missing")
    for split, by_epoch in found.items():
        wanted = {selected[0]} if split in ONCE else epochs
        if by_epoch.keys() not in (wanted, set()) or len({*map(frozenset, by_epoch.values())}) > 1:
            raise ValueError(f"rows of {split} are missing")
    return {split: by_epoch.get(selected[0], {}) for split, by_epoch in found.items()}


def _read_confusions(path: Path) -> dict[str, dict[tuple[str, str], int]]:
    """The confusion counts by split and (true, predicted).

    Raises:
        ValueError: a row is invalid or duplicate.
    """
    found: dict[str, dict[tuple[str, str], int]] = {split: {} for split in RESULT_SPLITS}
    for split, true, predicted, count in _read_rows(path, CONFUSION_COLUMNS):
        if split not in RESULT_SPLITS or (true, predicted) in found[split] or int(count) < 1:
            raise ValueError(f"{path.name} has a wrong row: {split},{true},{predicted},{count}")
        found[split][true, predicted] = int(count)
    return found


def _read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """These columns of a file that `write_table` wrote, as texts: a class may be called 007 or NA.

    Raises:
        ValueError, csv.Error: the file has another format, or is truncated.
    """
    content = path.read_bytes().decode("utf-8-sig")  # spreadsheets add a byte order mark
    if not content.endswith("\n"):
        raise ValueError(f"{path.name} is cut short")
    head, *rows = csv.reader(io.StringIO(content, newline=""))
    if not {*columns} <= {*head}:
        raise ValueError(f"{path.name} lacks columns, expected {', '.join(columns)}")
    pick = operator.itemgetter(*map(head.index, columns))
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"{path.name} has a line of {len(row)} values, expected {len(head)}")
        yield pick(row)


def _agree(values: Mapping[str, float], confusions: Mapping[tuple[str, str], int]) -> bool:
    """Whether the metrics of a split are complete and agree with its confusions."""
    if not values and not confusions:
        return True  # the split does not exist, or was not evaluated
    shown: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for (true, predicted), count in confusions.items():
        shown[true] += count
        right[true] += count * (true == predicted)
    names = {name: name if f"Accuracy {name}" in values else name.title() for name in shown}
    expected = {f"Accuracy {names[name]}": right[name] / shown[name] for name in shown}
    expected["Accuracy"] = sum(expected.values()) / max(1, len(shown))
    expected["Top-1"] = right.total() / max(1, shown.total())
    others = {"Loss", *WHOLE_SPLIT, *(f"Loss {name}" for name in names.values())}
    return values.keys() == expected.keys() | others and all(
        math.isclose(values[metric], share, rel_tol=0, abs_tol=1e-6)  # files have seven digits
        for metric, share in expected.items()
    )


# --- all trials of a method ------------------------------------------------------------------


def accuracies(results: Mapping[Trial, Result], split: str) -> dict[int, dict[int, float]]:
    """Mean accuracy over classes by examples per class, then by seed, in ascending order."""
    found: dict[int, dict[int, float]] = {}
    for trial in sorted(results, key=lambda trial: (trial.examples_per_class, trial.seed)):
        values = results[trial].values[split]
        if values:
            found.setdefault(trial.examples_per_class, {})[trial.seed] = values["Accuracy"]
    return found


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of a mean over trials; nan for a single trial."""
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    mean = float(np.mean(values))
    half = stats.t.ppf(0.975, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return mean - half, mean + half


def summarise(results: Mapping[Trial, Result], method: str) -> list[dict]:
    """One row per number of examples and split: accuracy over trials, with its interval.

    `values` has the accuracy of each trial, by its seed. For two trials, Student's interval is
    about twelve times as wide as their difference: for fewer than `ENOUGH` trials, show `values`.
    """
    rows: list[dict[str, Any]] = []
    for split in RESULT_SPLITS:
        for k, values in accuracies(results, split).items():
            numbers = [*values.values()]
            low, high = confidence_interval(numbers)
            rows.append({
                "method": method,
                "examples_per_class": k,
                "split": split,
                "num_trials": len(numbers),
                "mean_accuracy": float(np.mean(numbers)),
                "std_accuracy": float(np.std(numbers, ddof=1)) if len(numbers) > 1 else math.nan,
                "ci95_low": low,
                "ci95_high": high,
                "values": values,
            })  # fmt: skip
    rows.sort(key=lambda row: row["examples_per_class"])
    return rows


# --- two methods -----------------------------------------------------------------------------


def paired_differences(
    results: Mapping[Trial, Result], others: Mapping[Trial, Result]
) -> list[dict]:
    """The paired differences between two methods in the trials that both have finished.

    One row per number of examples and split (all but Training): the mean difference of mean
    accuracy, Student's 95 % interval of it, the two-sided p-value of the paired t-test, and
    `values`, the difference of each trial by its seed.
    """
    rows: list[dict[str, Any]] = []
    for split in (VALIDATION, *ONCE):
        theirs = accuracies(others, split)
        for k, mine in accuracies(results, split).items():
            other = theirs.get(k, {})
            values = {seed: mine[seed] - other[seed] for seed in mine if seed in other}
            if not values:
                continue
            numbers = [*values.values()]
            low, high = confidence_interval(numbers)
            rows.append({
                "examples_per_class": k,
                "split": split,
                "num_trials": len(numbers),
                "difference": float(np.mean(numbers)),
                "ci95_low": low,
                "ci95_high": high,
                "p_value": paired_p_value(numbers),
                "values": values,
            })  # fmt: skip
    rows.sort(key=lambda row: row["examples_per_class"])
    return rows


def paired_p_value(differences: Sequence[float]) -> float:
    """The two-sided p-value of the t-test that the mean difference is 0.

    nan for a single trial, and if all differences are equal: the test would divide by zero, and
    rounding in the result files would decide.
    """
    found = np.asarray(differences, dtype=float)
    if len(found) < 2:
        return math.nan
    if np.ptp(found) < 1e-6:  # result files have seven digits
        return 1.0 if abs(found[0]) < 1e-6 else math.nan
    return float(stats.ttest_1samp(found, 0.0).pvalue)
