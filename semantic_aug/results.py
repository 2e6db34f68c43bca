"""Result files of the classifier: one CSV per trial, and a summary over trials.

The columns and the names of metrics are those that the field's plotting scripts use.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from scipy import stats

from semantic_aug.classifier import Scores
from semantic_aug.experiment import Trial, atomic_path

TRAINING, VALIDATION, TEST = "Training", "Validation", "Test"
RESULT_COLUMNS = ("seed", "examples_per_class", "epoch", "value", "metric", "split")
SUMMARY_FILE = "summary.csv"

log = logging.getLogger(__name__)


def results_file(folder: Path, trial: Trial) -> Path:
    """Where the results of one trial lie; the file is there only when the trial is finished."""
    return folder / f"results_{trial.seed}_{trial.examples_per_class}.csv"


def metric_names(class_names: Sequence[str]) -> list[str]:
    """How metrics name classes: in title case, or as they are where titles would meet."""
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
    for label in sorted(labels):
        values.append((f"Loss {names[label]}", float(scores.loss[label])))
        values.append((f"Accuracy {names[label]}", float(scores.accuracy[label])))
    return [
        (trial.seed, trial.examples_per_class, epoch, value, metric, split)
        for metric, value in values
    ]


def write_results(path: Path, rows: Iterable[Sequence]) -> None:
    """Write the rows of one trial, or nothing."""
    _write(path, pd.DataFrame(rows, columns=RESULT_COLUMNS))


def _write(path: Path, table: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.7g", lineterminator="\n")


def final_accuracies(folder: Path) -> pd.DataFrame:
    """Mean accuracy at the last epoch of every finished trial: one row per trial and split.

    Columns: seed, examples_per_class, split, value.
    """
    found = []
    for path in sorted(folder.glob("results_*.csv")):
        if not re.fullmatch(r"results_-?\d+_\d+\.csv", path.name):
            continue
        try:
            table = pd.read_csv(path)
            table = table[table["metric"] == "Accuracy"].astype({"value": float, "epoch": int})
            last = table.sort_values("epoch", kind="stable").groupby("split", sort=False).tail(1)
            found.append(last[["seed", "examples_per_class", "split", "value"]])
        except (KeyError, ValueError):
            log.warning("%s is no result file: left out of the summary", path)
    return pd.concat(found) if found else pd.DataFrame(columns=list(RESULT_COLUMNS))


def write_summary(folder: Path, method: str) -> list[dict]:
    """Derive `summary.csv` from all result files of a method. Returns its rows.

    The interval is Student's, over trials; deviation and interval of a single trial are empty.
    """
    rows = []
    for (k, split), values in final_accuracies(folder).groupby(["examples_per_class", "split"]):
        count, mean, std = len(values), values["value"].mean(), values["value"].std(ddof=1)
        half = stats.t.ppf(0.975, count - 1) * std / math.sqrt(count) if count > 1 else math.nan
        rows.append({
            "method": method,
            "examples_per_class": int(k),
            "split": split,
            "num_trials": count,
            "mean_accuracy": mean,
            "std_accuracy": std,
            "ci95_low": mean - half,
            "ci95_high": mean + half,
        })  # fmt: skip
    order = (TRAINING, VALIDATION, TEST)
    rows.sort(key=lambda row: (row["examples_per_class"], order.index(row["split"])))
    _write(folder / SUMMARY_FILE, pd.DataFrame(rows))
    return rows
