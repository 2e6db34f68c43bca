"""Plots of results: accuracy by examples per class, accuracy by class, and confusions.

Colour-blind people can tell the colours apart (Okabe and Ito). The colours also differ in
lightness, lines in dashes and markers, and bars in hatching, so all plots can be read in grey.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from semantic_aug.evaluation.results import (
    ELSEWHERE,
    ENOUGH,
    TEST,
    VALIDATION,
    Result,
    confidence_interval,
    metric_names,
    read_results,
    summarise,
)
from semantic_aug.experiment.files import atomic_path

COLOURS = ("#000000", "#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D31")
MARKERS = "osD^vP*X"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oo")
SMALL, LARGE = 8, 9  # points of type


def plot_results(folders: Mapping[str, Path], folder: Path, class_names: Sequence[str]) -> None:
    """Write accuracy.png and per_class.png of all methods, and confusion.png of the first method.

    The plots show Test, or Validation if the first method has no Test. If the first method has
    Elsewhere, three more plots, such as accuracy_elsewhere.png, show the methods that have it.

    Args:
        folders: the folder of each method's results, by the method's name in the legend.
        folder: the folder of the plots.
    """
    results = {name: read_results(path) for name, path in folders.items()}
    tables = {name: summarise(each, name) for name, each in results.items()}
    splits = {name: {row["split"] for row in rows} for name, rows in tables.items()}
    first = next(iter(folders))
    if there := splits[first] & {TEST, VALIDATION}:
        split = TEST if TEST in there else VALIDATION
        _plot_split(results, tables, folder, class_names, split)
    if ELSEWHERE in splits[first]:
        results = {name: each for name, each in results.items() if ELSEWHERE in splits[name]}
        tables = {name: tables[name] for name in results}
        _plot_split(results, tables, folder, class_names, ELSEWHERE, "_elsewhere")


def _plot_split(results, tables, folder: Path, class_names, split: str, ending: str = "") -> None:
    first = next(iter(results))
    _save(accuracy_figure(tables, split), folder / f"accuracy{ending}.png")
    most = max(row["examples_per_class"] for row in tables[first] if row["split"] == split)
    of_most = {
        name: [each for trial, each in found.items() if trial.examples_per_class == most]
        for name, found in results.items()
    }
    _save(per_class_figure(of_most, class_names, most, split), folder / f"per_class{ending}.png")
    counts, number = confusion_counts(of_most[first], class_names, split), len(of_most[first])
    title = f"{first}: {split.lower()}, {_per_class(most)}, {number} trial{'s'[: number > 1]}"
    _save(confusion_figure(counts, class_names, title), folder / f"confusion{ending}.png")


def accuracy_figure(tables: Mapping[str, Sequence[Mapping]], split: str) -> Figure:
    """Mean accuracy by examples per class (log-2 axis), with bands of 95 % intervals over trials.

    If there are too few trials for an interval, open marks show each trial.

    Args:
        tables: the rows of `summarise`, by method.
        split: the split of the results, such as Test.
    """
    figure, axes = _figure(6.2, 4.0)
    ticks, note = set(), ""
    for number, (method, rows) in enumerate(tables.items()):
        rows = [row for row in rows if row["split"] == split]
        ticks |= {row["examples_per_class"] for row in rows}
        # A small shift of each method keeps intervals from covering each other.
        shift = 2 ** (0.025 * (number - (len(tables) - 1) / 2))
        colour = COLOURS[number % len(COLOURS)]
        # Marks at 0 and 100 % lie on the edge: they are not clipped.
        style = {"color": colour, "marker": MARKERS[number % len(MARKERS)], "clip_on": False}
        x = shift * np.array([row["examples_per_class"] for row in rows], float)
        axes.plot(x, [row["mean_accuracy"] for row in rows], markersize=5, linewidth=1.6,
                  linestyle=DASHES[number % len(DASHES)], label=method, **style)  # fmt: skip
        ends = np.array([
            (row["ci95_low"], row["ci95_high"]) if row["num_trials"] >= ENOUGH else (math.nan,) * 2
            for row in rows
        ]).reshape(-1, 2)  # fmt: skip
        if len(x) > 1:
            axes.fill_between(x, *ends.T, color=colour, alpha=0.13, linewidth=0)
        for at, (low, high) in zip(x, ends):
            if low < high:
                axes.errorbar(at, (low + high) / 2, (high - low) / 2, fmt="none", capsize=2.5,
                              elinewidth=0.8, ecolor=colour)  # fmt: skip
        few = [
            (at, value)
            for at, row in zip(x, rows)
            if 1 < row["num_trials"] < ENOUGH
            for value in row["values"].values()
        ]
        if few:
            axes.plot(*zip(*few), markersize=4, fillstyle="none", linestyle="none", **style)
            note = "\n(open marks: single trials)"
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 1))
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [str(k) for k in sorted(ticks)])
    axes.minorticks_off()
    if len(ticks) == 1:
        axes.set_xlim(min(ticks) / 1.5, max(ticks) * 1.5)
    axes.set_xlabel("labelled photos per class")
    axes.set_ylabel(f"{split.lower()} accuracy, mean over classes{note}")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=SMALL)
    return figure


def per_class_figure(
    results: Mapping[str, Sequence[Result]],
    class_names: Sequence[str],
    examples_per_class: int,
    split: str,
) -> Figure:
    """A bar for each class and method: mean accuracy over trials, with its 95 % interval.

    Classes are in the order of the first method's accuracy. If there are too few trials for an
    interval, dots show each trial.

    Args:
        results: by method, the results of all trials with `examples_per_class`.
    """
    names = {f"Accuracy {name}": own for name, own in zip(metric_names(class_names), class_names)}
    bars: dict[str, dict[str, list[float]]] = {}
    for method, of_trials in results.items():
        bars[method] = {}
        for result in of_trials:
            for metric, value in result.values[split].items():
                if metric in names:
                    bars[method].setdefault(names[metric], []).append(value)
    first = next(iter(bars.values()))
    order = sorted(first, key=lambda name: (np.mean(first[name]), name))
    figure, axes = _figure(6.4, 1.1 + len(order) * max(0.28, 0.14 * len(bars)))
    height, note = 0.82 / len(bars), ""
    for number, (method, values) in enumerate(bars.items()):
        present = [row for row, name in enumerate(order) if name in values]
        means = [np.mean(values[order[row]]) for row in present]
        y = [row + (0.5 * (len(bars) - 1) - number) * height for row in present]
        colour = COLOURS[number % len(COLOURS)]
        style = {"hatch": HATCHES[number % len(HATCHES)], "edgecolor": "white", "linewidth": 0.3}
        axes.barh(y, means, height, color=colour, label=method, **style)
        for row, at, mean in zip(present, y, means):
            numbers = values[order[row]]
            if len(numbers) >= ENOUGH:
                low, high = confidence_interval(numbers)
                axes.errorbar(mean, at, xerr=[[mean - low], [high - mean]], fmt="none",
                              ecolor="#777777", elinewidth=1, capsize=2)  # fmt: skip
            elif len(numbers) > 1:
                axes.plot(numbers, [at] * len(numbers), "o", markersize=3, color="white",
                          markeredgecolor="black", markeredgewidth=0.6, clip_on=False)  # fmt: skip
                note = " (dots: single trials)"
    axes.set_yticks(range(len(order)), order, fontsize=SMALL)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel(f"{split.lower()} accuracy, {_per_class(examples_per_class)}{note}")
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=SMALL, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return figure


def confusion_counts(
    results: Sequence[Result], class_names: Sequence[str], split: str
) -> np.ndarray:
    """The sum of the results' confusion matrices, [C, C]; rows are the true classes."""
    counts = np.zeros((len(class_names),) * 2)
    position = {name: row for row, name in enumerate(class_names)}
    for result in results:
        for (true, predicted), count in result.confusions[split].items():
            counts[position[true], position[predicted]] += count
    return counts


def confusion_figure(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Predictions (columns) in percent of each true class (row); zeros stay blank."""
    shown = [n for n in range(len(counts)) if counts[n].sum() or counts[:, n].sum()]
    names = [class_names[n] for n in shown]
    counts = counts[np.ix_(shown, shown)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.6, 1.6 + 0.36 * len(names))
    figure, axes = _figure(side + 0.5, side)
    # From white to dark blue: the lightness alone shows the share.
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=SMALL)
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class (numbers: % of the class)")
    axes.set_title(title, fontsize=LARGE)
    if len(names) <= 30:
        for row, column in np.argwhere(shares >= 0.005):
            share = shares[row, column]
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center",
                      fontsize=SMALL - 1, color="white" if share > 0.5 else "black")  # fmt: skip
    return figure


def _per_class(number: int) -> str:
    return f"{number} photo{'s'[: number > 1]} per class"


def _figure(width: float, height: float):
    # Without pyplot there is no global state, no window, and nothing to close.
    figure = Figure(figsize=(width, min(height, 40)), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=SMALL)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.xaxis.label.set_fontsize(LARGE)
    axes.yaxis.label.set_fontsize(LARGE)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140 if math.prod(figure.get_size_inches()) < 400
                       else 70, metadata={"Software": None})  # fmt: skip
