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

IMAGES_OF = "synthetic images of "  # keys of config.json that belong to one trial each
EVALUATION_PHOTOS = "evaluation photos"  # which older results do not record
ELSEWHERE_PHOTOS = "elsewhere"  # which changes no other result
# Methods may differ in these settings if their images are compared.
OF_IMAGES = ("aug_name", "num_synthetic")
# Methods may differ in these settings if only one of two methods has images.
OF_USE = ("utilization", "synthetic_probability")

log = logging.getLogger(__name__)


def write_summary(
    folder: Path, method: str, experiment: Path, aug_names: Sequence[str]
) -> list[dict]:
    """Derive summary.csv from all result files of a method. Returns its rows.

    Beside accuracy and interval: `gain`, the mean difference to the method `real` (`real-supcon` by
    that objective) in the trials that both have; seconds of one trial by stage, as far as they are
    known; and `gain_per_minute`, in points of accuracy per minute of all these stages; and
    `borrowed_words`, of how many trials the images were made with words of another trial, which
    config.json names as well. What is unknown is empty.

    Args:
        experiment: where the seconds of its stages lie.
        aug_names: the sets of images the method uses; none for real photos only.
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
            "images of %s were made with words of %s: words learned from photos that a trial does "
            "not have make its result optimistic",
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
    """For each trial, the other trial whose words its images use, as far as known.

    A single set with words of another trial suffices; else all sets have to be known.
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
            log.warning("%s has no results %s: it was made without --elsewhere", name, ELSEWHERE)
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
        log.warning("%s was made with other settings: %s; not images alone make the difference",
                    name, ", ".join(differing))  # fmt: skip


def _value(settings: Mapping, key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "not recorded"
