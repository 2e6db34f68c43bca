"""Pictures of results: accuracy over examples per class, accuracy by class, who is taken for whom.

The colours are told apart by colour-blind people (Okabe and Ito) and differ in lightness; lines
differ in dashes and markers too, bars in hatching, so that all can be read in grey.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from semantic_aug.experiment import Trial, atomic_path
from semantic_aug.results import (
    TEST,
    VALIDATION,
    confidence_interval,
    confusion_file,
    metric_names,
    selected_results,
    summarise,
)

COLOURS = ("#000000", "#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D31")
MARKERS = "osD^vP*X"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oo")
SMALL, LARGE = 8, 9  # points of type


def plot_results(folders: Mapping[str, Path], folder: Path, class_names: Sequence[str]) -> None:
    """accuracy.png and per_class.png of all these methods, confusion.png of the first, in `folder`.

    Args:
        folders: where the results of each method lie, by what it is called in the legend.
    """
    first, tables = next(iter(folders)), {n: summarise(f, n) for n, f in folders.items()}
    if not tables[first]:
        return
    split = TEST if any(row["split"] == TEST for row in tables[first]) else VALIDATION
    _save(accuracy_figure(tables, split), folder / "accuracy.png")
    most = max(row["examples_per_class"] for row in tables[first])
    results = {name: selected_results(path) for name, path in folders.items()}
    _save(per_class_figure(results, class_names, most, split), folder / "per_class.png")
    counts, number = confusion_counts(folders[first], class_names, most, split)
    if number:
        title = f"{first}: {split.lower()}, {_per_class(most)}, {number} trial{'s'[: number > 1]}"
        _save(confusion_figure(counts, class_names, title), folder / "confusion.png")


def accuracy_figure(tables: Mapping[str, Sequence[Mapping]], split: str) -> Figure:
    """Mean accuracy over examples per class (log-2 axis); bands are 95 % intervals over trials.

    Args:
        tables: rows of `summarise` by method.
    """
    figure, axes = _figure(6.2, 4.0)
    ticks = set()
    for number, (method, rows) in enumerate(tables.items()):
        rows = [row for row in rows if row["split"] == split]
        ticks |= {row["examples_per_class"] for row in rows}
        # Each method stands a little beside the next, so that intervals can be told apart.
        shift = 2 ** (0.025 * (number - (len(tables) - 1) / 2))
        x = shift * np.array([row["examples_per_class"] for row in rows])
        y, low, high = (
            np.array([row[key] for row in rows])
            for key in ("mean_accuracy", "ci95_low", "ci95_high")
        )
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(x, y, marker=marker, markersize=5, linewidth=1.6, label=method, **style)
        if len(x) > 1:
            axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)
        axes.errorbar(x, y, np.nan_to_num([y - low, high - y]), fmt="none", capsize=2.5,
                      elinewidth=0.8, ecolor=style["color"])  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [str(k) for k in sorted(ticks)])
    axes.minorticks_off()
    if len(ticks) == 1:
        axes.set_xlim(min(ticks) / 1.5, max(ticks) * 1.5)
    axes.set_xlabel("labelled photos per class")
    axes.set_ylabel(f"{split.lower()} accuracy, mean over classes")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=SMALL)
    return figure


def per_class_figure(
    results: Mapping[str, pd.DataFrame],
    class_names: Sequence[str],
    examples_per_class: int,
    split: str,
) -> Figure:
    """A bar per class and method: mean accuracy over trials with its 95 % interval.

    Classes stand in the order of the first method's accuracy.

    Args:
        results: tables of `selected_results` by method.
    """
    names = dict(zip(metric_names(class_names), class_names))
    bars = {}
    for method, table in results.items():
        table = table[(table["examples_per_class"] == examples_per_class)
                      & (table["split"] == split)]  # fmt: skip
        groups = table.groupby("metric")["value"]
        bars[method] = {
            name: group.to_numpy()
            for metric, group in groups
            if (name := names.get(metric.removeprefix("Accuracy "))) and metric != "Accuracy"
            and metric.startswith("Accuracy ")
        }  # fmt: skip
    first = next(iter(bars.values()))
    order = sorted(first, key=lambda name: (first[name].mean(), name))
    figure, axes = _figure(6.4, 1.1 + len(order) * max(0.28, 0.14 * len(bars)))
    height = 0.82 / len(bars)
    for number, (method, values) in enumerate(bars.items()):
        present = [row for row, name in enumerate(order) if name in values]
        means = [values[order[row]].mean() for row in present]
        ends = [confidence_interval(values[order[row]]) for row in present]
        errors = np.nan_to_num([[m - low, high - m] for m, (low, high) in zip(means, ends)]).T
        y = [row + (0.5 * (len(bars) - 1) - number) * height for row in present]
        colour = COLOURS[number % len(COLOURS)]
        style = {"hatch": HATCHES[number % len(HATCHES)], "edgecolor": "white", "linewidth": 0.3}
        axes.barh(y, means, height, color=colour, label=method, **style)
        axes.errorbar(means, y, xerr=errors, fmt="none", ecolor="#777777", elinewidth=1, capsize=2)
    axes.set_yticks(range(len(order)), order, fontsize=SMALL)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel(f"{split.lower()} accuracy, {_per_class(examples_per_class)}")
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=SMALL, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return figure


def confusion_counts(
    folder: Path, class_names: Sequence[str], examples_per_class: int, split: str
) -> tuple[np.ndarray, int]:
    """Sum of all trials' confusion matrices [C, C], rows are the true classes; how many trials."""
    seeds = selected_results(folder)
    seeds = seeds.loc[seeds["examples_per_class"] == examples_per_class, "seed"].unique()
    paths = [confusion_file(folder, Trial(int(seed), examples_per_class)) for seed in seeds]
    paths = [path for path in paths if path.is_file()]
    counts = np.zeros((len(class_names),) * 2)
    position = {name: row for row, name in enumerate(class_names)}
    for path in paths:
        # Texts stay texts: a class may be called 007, or NA.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = table[table["split"] == split]
        for true, predicted, count in table[["true", "predicted", "count"]].itertuples(index=False):
            counts[position[true], position[predicted]] += int(count)
    return counts, len(paths)


def confusion_figure(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Shares of each true class (row) by predicted class; numbers are per cent, 0 left out."""
    shown = [n for n in range(len(counts)) if counts[n].sum() or counts[:, n].sum()]
    names = [class_names[n] for n in shown]
    counts = counts[np.ix_(shown, shown)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.6, 1.6 + 0.36 * len(names))
    figure, axes = _figure(side + 0.5, side)
    # From white to black by way of blue: lightness alone says how large a share is.
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=SMALL)
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class (numbers: % of it)")
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
    # A Figure of its own, not pyplot's: no global state, no window, nothing to close.
    figure = Figure(figsize=(width, min(height, 40)), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=SMALL)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.xaxis.label.set_size(LARGE)
    axes.yaxis.label.set_size(LARGE)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140 if math.prod(figure.get_size_inches()) < 400
                       else 70, metadata={"Software": None})  # fmt: skip
