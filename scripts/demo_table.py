"""Print the result of demo.sh: accuracies, and a sentence about the gain over RandAugment.

python scripts/demo_table.py output/demo 6 2
"""

import sys
from pathlib import Path

import pandas as pd


def main() -> None:
    out, many, few = Path(sys.argv[1]) / "results", *sys.argv[2:]
    methods = {
        "real": "real photos",
        "randaugment": "real photos, RandAugment",
        "words": f"and {few} edit(s) of each, learned words",
        "names": f"and {few} edit(s) of each, class names",
        "recipe": f"and {many} edits of each, class names",
    }
    tables = {name: pd.read_csv(out / name / "summary.csv") for name in methods}
    differences = pd.read_csv(out / "recipe" / "comparison.csv")
    for shots in sorted(tables["real"].examples_per_class.unique()):
        rows = {name: of_test(table, shots) for name, table in tables.items()}
        trials = int(rows["real"].num_trials)
        interval = ", 95 % interval" * (trials > 2)
        print(f"\n{shots} photo(s) per class, {trials} trial(s): test accuracy{interval}")
        for name, row in rows.items():
            half = f" ± {50 * (row.ci95_high - row.ci95_low):.1f}" * (trials > 2)
            print(f"{methods[name]:<50} {100 * row.mean_accuracy:6.1f}{half} %")
        found = of_test(differences[differences.other == "randaugment"], shots)
        said = f"{100 * found.difference:+.1f} points over RandAugment"
        if trials > 2:
            low, high = 100 * found.ci95_low, 100 * found.ci95_high
            said += f", 95 % interval {low:+.1f} to {high:+.1f}"
            if low < 0 < high:
                said += " (zero is in it: more trials are needed)"
        print(f"The last row: {said}, {trials} trial(s)")


def of_test(table: pd.DataFrame, shots: int) -> pd.Series:
    return table[(table.split == "Test") & (table.examples_per_class == shots)].iloc[0]


if __name__ == "__main__":
    main()
