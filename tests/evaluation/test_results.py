"""Result files, statistics over trials, and the pictures made of them."""

import math
import re
import shutil

import numpy as np
import pytest
from conftest import write_trial
from matplotlib.container import ErrorbarContainer
from scipy import stats

from semantic_aug.evaluation.plots import (
    COLOURS,
    accuracy_figure,
    confusion_counts,
    confusion_figure,
    per_class_figure,
    plot_results,
)
from semantic_aug.evaluation.results import (
    TEST,
    VALIDATION,
    confidence_interval,
    confusion_file,
    is_finished,
    paired_differences,
    paired_p_value,
    read_results,
    results_file,
    summarise,
)
from semantic_aug.experiment.names import Trial


def test_the_selected_epoch_is_summarised(tmp_path):
    for seed, accuracy in enumerate((0.5, 0.7, 0.9)):
        write_trial(tmp_path, seed, 2, accuracy, selected=seed)
    rows = {row["split"]: row for row in summarise(read_results(tmp_path), "m")}
    assert rows[TEST]["mean_accuracy"] == pytest.approx(0.7)
    assert rows[VALIDATION]["mean_accuracy"] == pytest.approx(0.6)
    assert rows[TEST]["num_trials"] == 3
    assert rows[TEST]["values"] == pytest.approx({0: 0.5, 1: 0.7, 2: 0.9})
    half = 4.302653 * 0.2 / math.sqrt(3)
    ends = (rows[TEST]["ci95_low"], rows[TEST]["ci95_high"])
    assert ends == pytest.approx((0.7 - half, 0.7 + half), abs=1e-6)


# --- what counts -----------------------------------------------------------------------------


def lines_of(path):
    return path.read_text().splitlines(keepends=True)


def cut(share):
    def damage(results, confusions):
        content = results.read_bytes()
        results.write_bytes(content[: int(share * len(content))])

    return damage


def without(name, pattern):
    """Lines that match are gone from one of the two files."""

    def damage(results, confusions):
        path = {"results": results, "confusions": confusions}[name]
        kept = [line for line in lines_of(path) if not re.search(pattern, line)]
        assert len(kept) < len(lines_of(path))
        path.write_text("".join(kept))

    return damage


def replaced(name, old, new):
    def damage(results, confusions):
        path = {"results": results, "confusions": confusions}[name]
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return damage


def twice(results, confusions):
    results.write_text("".join(lines_of(results) + lines_of(results)[1:]))


DAMAGES = {
    "half of it": (cut(0.5), "cut short"),
    "empty": (cut(0), "cut short"),
    "rows twice": (twice, "twice in epoch 0"),
    "no last row": (without("results", "Accuracy Na,Test"), "Test rows and confusion"),
    "no test": (without("results", ",Test$"), "Test rows and confusion"),
    "no loss of a class": (without("results", "Loss Na,Test"), "Test rows and confusion"),
    "no calibration error": (without("results", "ECE,Validation"), "Validation rows and confusion"),
    "one row of training": (
        without("results", "^0,2,1,.*Loss Na,Training"),
        "Training are missing",
    ),
    "no last epoch": (without("results", "^0,2,1,.*Training"), "rows of whole epochs"),
    "none selected": (without("results", "Selected"), "0 selected epochs"),
    "another trial": (replaced("results", "0,2,0,", "4,2,0,"), "it has rows of seed=4_ex=2"),
    "another split": (replaced("results", "Training", "Trial"), "'Trial' is no split"),
    "no number": (replaced("results", "0,2,0,", "0,2,x,"), "invalid literal"),
    "huge number": (
        replaced("results", "0,2,0,", "0,2,99999999999999999999,"),
        "rows of whole epochs",
    ),
    "no UTF-8": (lambda results, _: results.write_bytes(b"\xff\xfe\n"), "can't decode"),
    "no table": (lambda results, _: results.write_text("value\n1\n"), "lacks columns"),
    "no confusions": (lambda _, confusions: confusions.unlink(), "confusion_0_2.csv is missing"),
    "half of them": (lambda _, confusions: cut(0.5)(confusions, None), "confusion_0_2.csv"),
    "no last of them": (without("confusions", "^Test,NA,NA"), "Test rows and confusion"),
    "none of test": (without("confusions", "^Test"), "Test rows and confusion"),
    "of another class": (replaced("confusions", "Test,NA,NA", "Test,NA,x"), "Test rows and"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_result_does_not_count_and_is_named(tmp_path, caplog, kind):
    for seed in (0, 1):
        write_trial(tmp_path, seed, 2, 0.5)
    trial, (damage, said) = Trial(0, 2), DAMAGES[kind]
    assert is_finished(tmp_path, trial) and not caplog.records
    damage(results_file(tmp_path, trial), confusion_file(tmp_path, trial))
    assert not is_finished(tmp_path, trial)
    assert "results_0_2.csv does not count" in caplog.text and said in caplog.text
    assert list(read_results(tmp_path)) == [Trial(1, 2)]


def leave_out(splits, folder, trial):
    """As where the dataset does not have these splits."""
    for path in (results_file(folder, trial), confusion_file(folder, trial)):
        lines = [s for s in lines_of(path) if not re.search(splits, s) or "Selected" in s]
        path.write_text("".join(lines))


def test_results_of_large_seeds_and_of_fewer_splits_count(tmp_path, caplog):
    seed = 10**30
    for k, lacking in ((1, "Test"), (2, "Test|Validation"), (4, "no split")):
        write_trial(tmp_path, seed, k, 0.5)
        leave_out(lacking, tmp_path, Trial(seed, k))
        assert is_finished(tmp_path, Trial(seed, k))
    shutil.copy(results_file(tmp_path, Trial(seed, 1)), tmp_path / "results_007_1.csv")
    found = read_results(tmp_path)
    assert list(found) == [Trial(seed, k) for k in (1, 2, 4)]
    assert not caplog.records
    by_split = {row["split"]: row for row in summarise(found, "m")}
    assert by_split[TEST]["values"] == {seed: 0.5}
    assert paired_differences(found, found)[0]["values"] == {seed: 0.0}


# --- statistics ------------------------------------------------------------------------------


def test_differences_are_taken_within_trials(tmp_path):
    ours, theirs = (0.5, 0.7, 0.9, 0.6), (0.42, 0.66, 0.8)
    for seed, accuracy in enumerate(ours):
        write_trial(tmp_path / "a", seed, 1, accuracy)
    for seed, accuracy in enumerate(theirs):
        write_trial(tmp_path / "b", seed, 1, accuracy)
    write_trial(tmp_path / "b", 0, 2, 0.5)  # no trial of the other
    both = [read_results(tmp_path / name) for name in ("a", "b")]
    rows = paired_differences(*both)
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
    assert row["values"] == pytest.approx({0: 0.08, 1: 0.04, 2: 0.1})
    back = paired_differences(*reversed(both))[1]
    assert back["difference"] == pytest.approx(-row["difference"])
    assert back["p_value"] == pytest.approx(row["p_value"])


def test_statistics_of_few_or_equal_trials():
    assert math.isnan(paired_p_value([0.1])) and math.isnan(confidence_interval([0.1])[0])
    assert paired_p_value([0.0, 0.0]) == 1
    # Two of 240 images in both trials, once the files have rounded: no tiny p from two trials.
    assert math.isnan(paired_p_value([0.5416667 - 0.5333333, 0.5625 - 0.5541667]))
    assert confidence_interval([0.5, 0.5]) == (0.5, 0.5)


def test_confusions_are_summed_over_trials_and_names_stay_texts(tmp_path):
    names = ["007", "NA", "z"]
    for seed in (0, 1):
        write_trial(tmp_path, seed, 2, 0.75 + seed / 8)
    counts = confusion_counts(read_results(tmp_path).values(), names, TEST)
    assert counts.tolist() == [[1625, 375, 0], [375, 1625, 0], [0, 0, 0]]
    texts = [text.get_text() for text in confusion_figure(counts, names, "t").axes[0].texts]
    assert texts == ["81", "19", "19", "81"]


def test_accuracy_has_a_log_axis_a_band_and_a_line_for_each_method(tmp_path):
    tables = {}
    for number, method in enumerate(("a", "b")):
        for seed in range(3):
            for k in (1, 2, 4):
                write_trial(tmp_path / method, seed, k, 0.4 + 0.1 * number + 0.05 * seed)
        tables[method] = summarise(read_results(tmp_path / method), method)
    axes = accuracy_figure(tables, TEST).axes[0]
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4"]
    lines = {line.get_label(): line for line in axes.lines if line.get_label() in tables}
    assert lines["b"].get_ydata().tolist() == pytest.approx([0.55] * 3)
    assert lines["a"].get_linestyle() != lines["b"].get_linestyle()
    assert lines["a"].get_marker() != lines["b"].get_marker()
    plot_results({"a": tmp_path / "a", "b": tmp_path / "b"}, tmp_path / "out", ["007", "NA"])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "accuracy.png", "confusion.png", "per_class.png"
    }  # fmt: skip
    plot_results({"none": tmp_path / "none"}, tmp_path / "nothing", ["007"])
    assert not (tmp_path / "nothing").exists()


def bands_and_points(axes) -> tuple[int, list]:
    """How many intervals are drawn, and the values of small open marks."""
    bars = [bar for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
    marks = [line for line in axes.lines if line.get_fillstyle() == "none"]
    return len(bars), [y for line in marks for y in line.get_ydata()]


@pytest.mark.parametrize("values", [(0.3,), (0.25, 0.9), (0.2, 0.3, 1.0)])
def test_few_trials_are_drawn_as_points_and_axes_end_at_0_and_100(tmp_path, values):
    for k in (1, 4):
        for seed, value in enumerate(values):
            write_trial(tmp_path, seed, k, value)
    results = read_results(tmp_path)
    axes = accuracy_figure({"m": summarise(results, "m")}, TEST).axes[0]
    enough = len(values) == 3
    assert bands_and_points(axes) == (2 * enough, 2 * list(values) if len(values) == 2 else [])
    low, high = axes.get_ylim()
    assert 0 <= low < min(values) and np.mean(values) < high <= 1
    (lines,) = [line for line in axes.lines if line.get_label() == "m"]
    assert lines.get_ydata() == pytest.approx([np.mean(values)] * 2)
    of_one = [result for trial, result in results.items() if trial.examples_per_class == 1]
    axes = per_class_figure({"m": of_one}, ["007", "NA"], 1, TEST).axes[0]
    dots = [x for line in axes.lines if line.get_marker() == "o" for x in line.get_xdata()]
    assert dots == (2 * list(values) if len(values) == 2 else [])
    assert axes.get_xlim() == (0, 1)


def test_a_method_without_evaluated_photos_has_no_pictures(tmp_path):
    write_trial(tmp_path, 0, 1, 0.5)
    leave_out("Test|Validation", tmp_path, Trial(0, 1))
    plot_results({"m": tmp_path}, tmp_path / "out", ["007", "NA"])
    assert not (tmp_path / "out").exists()


def test_the_first_colours_differ_in_grey():
    def grey(colour):
        red, green, blue = (int(colour[n : n + 2], 16) for n in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    levels = sorted(grey(colour) for colour in COLOURS[:4])
    assert np.diff(levels).min() > 20
