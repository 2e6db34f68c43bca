"""The lines that a command prints about results and about comparisons."""

import math
from collections.abc import Iterator, Mapping

from semantic_aug.evaluation.results import ELSEWHERE, ENOUGH, TEST, VALIDATION


def summary_lines(summary: list[dict]) -> Iterator[str]:
    """A line for each number of examples: trials, and accuracies in percent with intervals."""
    cells = {(row["examples_per_class"], row["split"]): row for row in summary}
    splits = {VALIDATION: "val accuracy %", TEST: "test accuracy %"}
    if any(split == ELSEWHERE for _, split in cells):
        splits[ELSEWHERE] = "elsewhere accuracy %"
    heads = ("examples_per_class", "trials", *splits.values())
    lines: list[tuple[str, ...]] = [heads]
    for k in sorted({k for k, _ in cells}):
        number = max(row["num_trials"] for (n, _), row in cells.items() if n == k)
        columns = (_percent(cells.get((k, split))) for split in splits)
        lines.append((str(k), str(number), *columns))
    wide = max(16, *(len(cell) for line in lines for cell in line[2:]))
    for line in lines if cells else []:
        yield "  ".join([f"{line[0]:>18}", f"{line[1]:>6}", *(f"{c:>{wide}}" for c in line[2:])])


def comparison_lines(rows: list[dict]) -> Iterator[str]:
    """A line for each pair of methods, number of examples and split: the difference in points."""
    for row in rows:
        line = (
            f"{row['method']} - {row['other']}, {row['examples_per_class']} per class, "
            f"{row['split'].lower()}: {100 * row['difference']:+.1f} points"
        )
        if row["num_trials"] < ENOUGH:
            yield f"{line} ({_listed(row['values'], '+')})"
            continue
        low, high = 100 * row["ci95_low"], 100 * row["ci95_high"]
        line += f", 95 % interval {low:+.1f} to {high:+.1f}"
        alike = math.isnan(row["p_value"])
        line += ", no p: same difference in all trials" if alike else f", p = {row['p_value']:.2g}"
        yield f"{line} ({row['num_trials']} trials)"


def _percent(row: dict | None) -> str:
    if row is None:
        return "-"
    mean = f"{100 * row['mean_accuracy']:.1f}"
    if row["num_trials"] == 1:
        return mean
    if row["num_trials"] < ENOUGH:
        return _listed(row["values"])
    return f"{mean} ± {100 * (row['ci95_high'] - row['mean_accuracy']):.1f}"


def _listed(values: Mapping[int, float], sign: str = "") -> str:
    """The values in percent of trials that are too few for an interval."""
    if len(values) == 1:
        return "1 trial"
    texts = ", ".join(f"{100 * value:{sign}.1f}" for value in values.values())
    return f"{len(values)} trials: {texts}"
