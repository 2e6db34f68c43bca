"""summary.csv of a method: its accuracy, its gain over real photos, and its cost."""

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from semantic_aug.evaluation.results import (
    COMPARISON_FILE,
    ELSEWHERE,
    SUMMARY_FILE,
    Result,
    paired_differences,
    read_results,
    summarise,
    write_table,
)
from semantic_aug.experiment.config import read_config, write_config
from semantic_aug.experiment.names import BORROWED_WORDS, Trial
from semantic_aug.experiment.timing import AGGREGATE, FINE_TUNE, GENERATE, TRAIN, seconds_per_trial
from semantic_aug.settings.classification import CROSS_ENTROPY, baseline

IMAGES_OF = "synthetic images of "  # start of the keys of config.json that belong to a single trial
EVALUATION_PHOTOS = "evaluation photos"  # older results do not record this key
ELSEWHERE_PHOTOS = "elsewhere"  # this key changes no other result
# Methods may differ in these settings if their images are compared.
OF_IMAGES = ("aug_name", "num_synthetic")
# Methods may differ in these settings if only one of two methods has images.
OF_USE = ("utilization", "synthetic_probability")

log = logging.getLogger(__name__)


def write_summary(
    folder: Path, method: str, experiment: Path, aug_names: Sequence[str]
) -> list[dict]:
    """Derive summary.csv from all result files of a method. Returns its rows.

    Columns after the accuracy and its interval; unknown values are empty:

    - gain: mean difference to the method `real` (for supervised contrastive learning:
      `real-supcon`), over the trials that both methods have finished;
    - fine_tune_seconds, generate_seconds, train_seconds: of a trial, by stage;
    - gain_per_minute: points of accuracy per minute of these stages together;
    - borrowed_words: the number of trials whose images were made with words of another trial.
      config.json names these trials too.

    Args:
        experiment: the folder of the experiment, which holds the seconds of its stages.
        aug_names: the sets of images that the method uses; none for real photos only.
    """
    results = read_results(folder)
    rows, gains = summarise(results, method), {}
    trained = (read_config(folder) or {}).get("settings", {})
    alone = baseline(trained.get("objective", CROSS_ENTROPY))
    if method != alone:
        gains = {
            (row["examples_per_class"], row["split"]): row["difference"]
            for row in paired_differences(results, read_results(folder.parent / alone))
        }
    words = _words_of([experiment / name for name in aug_names], results)
    config = read_config(folder)
    if words and config:
        write_config(folder, config["settings"], config["arguments"], {BORROWED_WORDS: words})
    borrowed = {trial: name for trial, name in words.items() if name is not None}
    if borrowed:
        log.warning(
            "images of %s were made with words of %s: results are optimistic if words were learned "
            "from photos that the trial does not have",
            ", ".join(borrowed),
            ", ".join(dict.fromkeys(borrowed.values())),
        )
    for row in rows:
        k = row["examples_per_class"]
        trials = [Trial(seed, k).name for seed in row["values"]]
        known = not aug_names or words.keys() >= {*trials}
        seconds = seconds_per_trial(experiment, method, aug_names, k)
        gain = gains.get((k, row["split"]), math.nan)
        minutes = sum(seconds.values()) / 60
        row |= {
            "gain": gain,
            "fine_tune_seconds": _sum(seconds, FINE_TUNE, AGGREGATE),
            "generate_seconds": _sum(seconds, GENERATE),
            "train_seconds": _sum(seconds, TRAIN),
            "gain_per_minute": 100 * gain / minutes if minutes else math.nan,
            BORROWED_WORDS: sum(name in borrowed for name in trials) if known else math.nan,
        }
    _write(folder / SUMMARY_FILE, rows)
    return rows


def _words_of(sets: Sequence[Path], trials: Iterable[Trial]) -> dict[str, str | None]:
    """For each trial that is known, the other trial whose words its images use, or None.

    A single set with words of another trial suffices; None requires that all sets are known.
    """
    found = {}
    for trial in trials:
        configs = [read_config(images / trial.name) or {} for images in sets]
        noted = [each[BORROWED_WORDS] for each in configs if BORROWED_WORDS in each]
        borrowed = dict.fromkeys(name for name in noted if name is not None)
        if borrowed or (sets and len(noted) == len(sets)):
            found[trial.name] = ", ".join(borrowed) or None
    return found


def _write(path: Path, rows: Sequence[Mapping]) -> None:
    """Write the rows without the trials' values, which are in the result files."""
    write_table(path, pd.DataFrame(rows).drop(columns="values", errors="ignore"))


def _sum(seconds: Mapping[str, float], *stages: str) -> float:
    known = [seconds[stage] for stage in stages if stage in seconds]
    return sum(known) if known else math.nan


def write_comparison(folder: Path, method: str, others: Mapping[str, Path]) -> list[dict]:
    """Derive comparison.csv: a method against others, paired by trial. Returns its rows.

    Columns: method, other, and the columns of `paired_differences`.
    """
    rows, mine = [], read_results(folder)
    for name, other in others.items():
        _name_differences(folder, name, other)
        theirs = read_results(other)
        pairs = paired_differences(mine, theirs)
        if not pairs:
            log.warning("%s and %s have finished no trial in common", method, name)
        elif ELSEWHERE in _splits(mine) - _splits(theirs):
            log.warning("%s has no %s results: it was made without --elsewhere", name, ELSEWHERE)
        rows += [{"method": method, "other": name, **row} for row in pairs]
    _write(folder / COMPARISON_FILE, rows)
    return rows


def _splits(results: Mapping[Trial, Result]) -> set[str]:
    return {split for each in results.values() for split, found in each.values.items() if found}


def _name_differences(folder: Path, name: str, other: Path) -> None:
    """Name the settings in which two methods differ, except the settings of their images."""
    mine, theirs = ((read_config(each) or {}).get("settings", {}) for each in (folder, other))
    aside = OF_IMAGES if mine.get("aug_name") and theirs.get("aug_name") else OF_IMAGES + OF_USE
    both = mine.keys() & theirs.keys()
    differing = [
        f"{key} (here {_value(mine, key)}, there {_value(theirs, key)})"
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key) != theirs.get(key)
        and key not in aside
        and not key.startswith(IMAGES_OF)
        # Compare a trial's settings only if both methods have the trial.
        and (key in both or not re.search(r"seed=-?\d+_ex=\d+$", key))
        and (key in both or key not in (EVALUATION_PHOTOS, ELSEWHERE_PHOTOS))
    ]
    if differing:
        log.warning("%s was made with other settings: %s; not only images make the difference",
                    name, ", ".join(differing))  # fmt: skip


def _value(settings: Mapping, key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "not recorded"
