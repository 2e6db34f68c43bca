"""Print the tables of docs/experiments.md, as Markdown, from the finished part of experiments.sh.

python scripts/experiments_tables.py output/experiments
"""

import sys
from pathlib import Path

import pandas as pd


def read(results: Path, file: str) -> pd.DataFrame:
    """A table of all methods, test split only."""
    tables = [pd.read_csv(path) for path in sorted(results.glob(f"*/{file}"))]
    table = pd.concat(tables, ignore_index=True)
    return table[table.split == "Test"]


def interval(row, middle: str) -> str:
    half = 50 * (row.ci95_high - row.ci95_low)
    sign = "+" if middle == "difference" else ""
    return f"{100 * row[middle]:{sign}.1f} ± {half:.1f}"


def markdown(table: pd.DataFrame) -> str:
    head = [str(name) for name in table.columns]
    lines = [head, ["---"] * len(head), *table.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    results = Path(sys.argv[1]) / "results"
    summary, comparison = read(results, "summary.csv"), read(results, "comparison.csv")

    cells = summary.assign(cell=[interval(row, "mean_accuracy") for _, row in summary.iterrows()])
    wide = cells.pivot(index="method", columns="examples_per_class", values="cell").fillna("")
    print("Test accuracy in percent, mean and 95 % interval, by photos per class:\n")
    print(markdown(wide.reset_index()))

    print("\nPaired differences in points, by trial:\n")
    comparison["difference ± 95 %"] = [
        interval(row, "difference") for _, row in comparison.iterrows()
    ]
    comparison["p"] = comparison.p_value.map("{:.3f}".format)
    columns = ["method", "other", "examples_per_class", "num_trials", "difference ± 95 %", "p"]
    print(markdown(comparison.sort_values(columns[:3])[columns]))

    print("\nSeconds of one trial, and points gained over the real photos per minute:\n")
    seconds = ["fine_tune_seconds", "generate_seconds", "train_seconds"]
    with_views = ("views", "paste", "generated", "background")  # compared with views-real
    summary = summary[~summary.method.str.startswith(with_views)]
    cost = summary[["method", "examples_per_class", *seconds]].round(0)
    cost = (
        cost.astype(object)
        .fillna("")
        .assign(
            gain=summary.gain.map(lambda gain: "" if pd.isna(gain) else f"{100 * gain:+.1f}"),
            gain_per_minute=summary.gain_per_minute.map(
                lambda g: "" if pd.isna(g) else f"{g:+.1f}"
            ),
        )
    )
    print(markdown(cost))


if __name__ == "__main__":
    main()
