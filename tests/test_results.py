"""Result files, statistics over trials, and the pictures made of them."""

import math

import numpy as np
import pytest
from scipy import stats

from semantic_aug.experiment import Trial
from semantic_aug.plots import (
    COLOURS,
    accuracy_figure,
    confusion_counts,
    confusion_figure,
    plot_results,
)
from semantic_aug.results import (
    TEST,
    VALIDATION,
    confidence_interval,
    confusion_file,
    paired_differences,
    paired_p_value,
    results_file,
    selected_row,
    summarise,
    write_results,
    write_table,
)


def write_trial(folder, seed, k, accuracy, selected=1):
    """Results of three epochs, of which only the selected one has these accuracies."""
    trial, rows = Trial(seed, k), []
    for epoch in range(3):
        value = accuracy if epoch == selected else 0.123
        rows.append((seed, k, epoch, value - 0.1, "Accuracy", VALIDATION))
        rows += [(seed, k, epoch, value, f"Accuracy {n}", VALIDATION) for n in ("007", "Na")]
    rows.append(selected_row(trial, selected))
    rows.append((seed, k, selected, accuracy, "Accuracy", TEST))
    rows += [(seed, k, selected, accuracy, f"Accuracy {n}", TEST) for n in ("007", "Na")]
    write_results(results_file(folder, trial), rows)


def test_the_selected_epoch_is_summarised(tmp_path):
    for seed, accuracy in enumerate((0.5, 0.7, 0.9)):
        write_trial(tmp_path, seed, 2, accuracy, selected=seed)
    rows = {row["split"]: row for row in summarise(tmp_path, "m")}
    assert rows[TEST]["mean_accuracy"] == pytest.approx(0.7)
    assert rows[VALIDATION]["mean_accuracy"] == pytest.approx(0.6)
    assert rows[TEST]["num_trials"] == 3
    half = 4.302653 * 0.2 / math.sqrt(3)
    ends = (rows[TEST]["ci95_low"], rows[TEST]["ci95_high"])
    assert ends == pytest.approx((0.7 - half, 0.7 + half), abs=1e-6)


def test_differences_are_taken_within_trials(tmp_path):
    ours, theirs = (0.5, 0.7, 0.9, 0.6), (0.42, 0.66, 0.8)
    for seed, accuracy in enumerate(ours):
        write_trial(tmp_path / "a", seed, 1, accuracy)
    for seed, accuracy in enumerate(theirs):
        write_trial(tmp_path / "b", seed, 1, accuracy)
    write_trial(tmp_path / "b", 0, 2, 0.5)  # no trial of the other
    rows = paired_differences(tmp_path / "a", tmp_path / "b")
    assert [(row["examples_per_class"], row["split"]) for row in rows] == [
        (1, VALIDATION),
        (1, TEST),
    ]
    row, expected = rows[1], stats.ttest_rel(ours[:3], theirs)
    assert row["num_trials"] == 3
    assert row["difference"] == pytest.approx(0.22 / 3)
    assert row["p_value"] == pytest.approx(expected.pvalue)
    ends = expected.confidence_interval(0.95)
    assert (row["ci95_low"], row["ci95_high"]) == pytest.approx((ends.low, ends.high))
    back = paired_differences(tmp_path / "b", tmp_path / "a")[1]
    assert back["difference"] == pytest.approx(-row["difference"])
    assert back["p_value"] == pytest.approx(row["p_value"])


def test_statistics_of_few_or_equal_trials():
    assert math.isnan(paired_p_value([0.1])) and math.isnan(confidence_interval([0.1])[0])
    assert paired_p_value([0.0, 0.0]) == 1
    # Two of 240 images in both trials, once the files have rounded: no tiny p from two trials.
    assert math.isnan(paired_p_value([0.5416667 - 0.5333333, 0.5625 - 0.5541667]))
    assert confidence_interval([0.5, 0.5]) == (0.5, 0.5)


def test_confusions_are_summed_over_trials_and_names_stay_texts(tmp_path):
    import pandas as pd

    names = ["007", "NA", "z"]
    for seed in (0, 1):
        write_trial(tmp_path, seed, 2, 0.5)
        rows = [(TEST, "007", "007", 3), (TEST, "007", "NA", 1), (TEST, "NA", "NA", 4),
                (VALIDATION, "z", "z", 9)]  # fmt: skip
        table = pd.DataFrame(rows, columns=["split", "true", "predicted", "count"])
        write_table(confusion_file(tmp_path, Trial(seed, 2)), table)
    counts, number = confusion_counts(tmp_path, names, 2, TEST)
    assert number == 2
    assert counts.tolist() == [[6, 2, 0], [0, 8, 0], [0, 0, 0]]
    texts = [text.get_text() for text in confusion_figure(counts, names, "t").axes[0].texts]
    assert texts == ["75", "25", "100"]


def test_accuracy_has_a_log_axis_a_band_and_a_line_for_each_method(tmp_path):
    tables = {}
    for number, method in enumerate(("a", "b")):
        for seed in range(3):
            for k in (1, 2, 4):
                write_trial(tmp_path / method, seed, k, 0.4 + 0.1 * number + 0.05 * seed)
        tables[method] = summarise(tmp_path / method, method)
    axes = accuracy_figure(tables, TEST).axes[0]
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4"]
    lines = {line.get_label(): line for line in axes.lines if line.get_label() in tables}
    assert lines["b"].get_ydata().tolist() == pytest.approx([0.55] * 3)
    assert lines["a"].get_linestyle() != lines["b"].get_linestyle()
    assert lines["a"].get_marker() != lines["b"].get_marker()
    plot_results({"a": tmp_path / "a", "b": tmp_path / "b"}, tmp_path / "out", ["007", "na"])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"accuracy.png", "per_class.png"}
    plot_results({"none": tmp_path / "none"}, tmp_path / "nothing", ["007"])
    assert not (tmp_path / "nothing").exists()


def test_the_first_colours_differ_in_grey():
    def grey(colour):
        red, green, blue = (int(colour[n : n + 2], 16) for n in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    levels = sorted(grey(colour) for colour in COLOURS[:4])
    assert np.diff(levels).min() > 20
