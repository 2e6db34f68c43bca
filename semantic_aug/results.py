"""Result files of the classifier: CSV files for each trial, and a summary over trials.

The columns and the names of metrics are those that the field's plotting scripts use.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from semantic_aug.experiment import Trial, atomic_path
from semantic_aug.metrics import Evaluation, Scores

REAL = "real"  # the method's name where no synthetic images are used; others' gain is over it
TRAINING, VALIDATION, TEST = SPLITS = ("Training", "Validation", "Test")
RESULT_COLUMNS = ("seed", "examples_per_class", "epoch", "value", "metric", "split")
SUMMARY_FILE, COMPARISON_FILE = "summary.csv", "comparison.csv"
WHOLE_SPLIT = {  # metrics of a split that is evaluated whole, beside Loss and Accuracy
    "Top-1": "top1",
    "Top-5": "top5",
    "Macro F1": "macro_f1",
    "ECE": "calibration_error",
}
SELECTED = "Selected"  # a row of this metric names the epoch that is reported

log = logging.getLogger(__name__)


# --- one trial -------------------------------------------------------------------------------


def results_file(folder: Path, trial: Trial) -> Path:
    """Where the results of one trial lie; the file is there only when the trial is finished."""
    return folder / f"results_{trial.seed}_{trial.examples_per_class}.csv"


def confusion_file(folder: Path, trial: Trial) -> Path:
    """Where the confusion matrices of one trial lie."""
    return folder / f"confusion_{trial.seed}_{trial.examples_per_class}.csv"


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
    if isinstance(scores, Evaluation):
        values += [(metric, getattr(scores, name)) for metric, name in WHOLE_SPLIT.items()]
    for label in sorted(labels):
        values.append((f"Loss {names[label]}", float(scores.loss[label])))
        values.append((f"Accuracy {names[label]}", float(scores.accuracy[label])))
    return [
        (trial.seed, trial.examples_per_class, epoch, value, metric, split)
        for metric, value in values
    ]


def selected_row(trial: Trial, epoch: int) -> tuple:
    """The row that names the epoch which is reported."""
    return (trial.seed, trial.examples_per_class, epoch, 1, SELECTED, VALIDATION)


def write_results(path: Path, rows: Iterable[Sequence]) -> None:
    """Write the rows of one trial, or nothing."""
    write_table(path, pd.DataFrame(rows, columns=RESULT_COLUMNS))


def write_confusions(
    path: Path, evaluations: dict[str, Evaluation], class_names: Sequence[str]
) -> None:
    """How often a class was taken for another, by split; pairs that do not occur are left out.

    Columns: split, true, predicted, count.
    """
    rows = [
        (split, class_names[true], class_names[predicted], int(scores.confusion[true, predicted]))
        for split, scores in evaluations.items()
        for true, predicted in scores.confusion.nonzero().tolist()
    ]
    write_table(path, pd.DataFrame(rows, columns=["split", "true", "predicted", "count"]))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A CSV file with seven digits, the same bytes for the same numbers."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.7g", lineterminator="\n")


# --- all trials of a method ------------------------------------------------------------------


def selected_results(folder: Path) -> pd.DataFrame:
    """What is reported of every finished trial, at the selected epoch (else the last).

    Columns: seed, examples_per_class, split, metric, value.
    """
    found = [_selected(table) for table in _tables(folder)]
    columns = ["seed", "examples_per_class", "split", "metric", "value"]
    return pd.concat(found)[columns] if found else pd.DataFrame(columns=columns)


def _tables(folder: Path) -> Iterator[pd.DataFrame]:
    for path in sorted(folder.glob("results_*.csv")):
        if not re.fullmatch(r"results_-?\d+_\d+\.csv", path.name):
            continue
        try:
            table = pd.read_csv(path)
            yield table.astype({"value": float, "epoch": int, "seed": int})[list(RESULT_COLUMNS)]
        except (KeyError, ValueError):
            log.warning("%s is no result file: left out of the summary", path)


def _selected(table: pd.DataFrame) -> pd.DataFrame:
    chosen = table.loc[table["metric"] == SELECTED, "epoch"]
    table = table[table["metric"] != SELECTED]
    epoch = chosen.iloc[0] if len(chosen) else table["epoch"].max()
    return table[table["epoch"] == epoch]


def accuracies(folder: Path, split: str) -> pd.Series:
    """Mean accuracy by (examples_per_class, seed) of every finished trial."""
    table = selected_results(folder)
    table = table[(table["metric"] == "Accuracy") & (table["split"] == split)]
    return table.set_index(["examples_per_class", "seed"])["value"].sort_index()


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of a mean over trials; nan for a single one."""
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    mean = float(np.mean(values))
    half = stats.t.ppf(0.975, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return mean - half, mean + half


def summarise(folder: Path, method: str) -> list[dict]:
    """One row per number of examples and split: accuracy over trials, with its interval."""
    rows = []
    table = selected_results(folder)
    table = table[table["metric"] == "Accuracy"]
    for (k, split), values in table.groupby(["examples_per_class", "split"]):
        low, high = confidence_interval(values["value"])
        rows.append({
            "method": method,
            "examples_per_class": int(k),
            "split": split,
            "num_trials": len(values),
            "mean_accuracy": values["value"].mean(),
            "std_accuracy": values["value"].std(ddof=1),
            "ci95_low": low,
            "ci95_high": high,
        })  # fmt: skip
    rows.sort(key=lambda row: (row["examples_per_class"], SPLITS.index(row["split"])))
    return rows


# --- two methods -----------------------------------------------------------------------------


def paired_differences(folder: Path, other: Path) -> list[dict]:
    """How much better a method is than another in the trials that both have finished.

    One row per number of examples and split (Validation, Test): the mean difference of mean
    accuracy, Student's 95 % interval of it, and the two-sided p-value of the paired t-test.
    """
    rows = []
    for split in (VALIDATION, TEST):
        difference = (accuracies(folder, split) - accuracies(other, split)).dropna()
        for k, values in difference.groupby(level=0):
            low, high = confidence_interval(values)
            rows.append({
                "examples_per_class": int(k),
                "split": split,
                "num_trials": len(values),
                "difference": values.mean(),
                "ci95_low": low,
                "ci95_high": high,
                "p_value": paired_p_value(values),
            })  # fmt: skip
    rows.sort(key=lambda row: (row["examples_per_class"], SPLITS.index(row["split"])))
    return rows


def paired_p_value(differences: Sequence[float]) -> float:
    """Two-sided, of the t-test that the mean difference is 0.

    nan for a single trial, and where all trials differ alike: then the test divides by zero, and
    the digits that result files leave away would decide.
    """
    differences = np.asarray(differences, dtype=float)
    if len(differences) < 2:
        return math.nan
    if np.ptp(differences) < 1e-6:  # result files have seven digits
        return 1.0 if abs(differences[0]) < 1e-6 else math.nan
    return float(stats.ttest_1samp(differences, 0.0).pvalue)
