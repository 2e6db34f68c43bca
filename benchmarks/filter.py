"""The quality gate on the sample: which images it marks, and what a classifier gains from it.

    python benchmarks/filter.py --sheet filter.webp

A classifier of the trial's photos scores edits of four strengths, from hardly changed to drawn
anew. The script prints one JSON object: for each strength, the share of marked images; then
validation and test accuracy with real photos only, with all images, and without the marked images.
For each class, the sheet shows a photo, the images with the lowest and with the highest scores.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

from common import ROOT, threads

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
SHOWN = 5  # images of each class, of the worst and of the best


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_trials", type=int, default=3)
    parser.add_argument("--examples_per_class", type=int, default=4)
    parser.add_argument("--variants", type=int, default=8)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--quantile", type=float, default=0.5)
    parser.add_argument("--sheet", help="WebP picture of the first trial")
    parser.add_argument("--work", help="folder for what is made (default: a temporary one)")
    args = parser.parse_args(argv)
    threads()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(run(args, Path(args.work or temporary)), indent=2, ensure_ascii=False))


def run(args, work: Path) -> dict:
    import generate_augmentations
    import train_classifier
    from semantic_aug.experiment.names import Trial

    common = ["--dataset=mvip", f"--data_dir={ROOT / 'sample/mvip'}", "--experiment_name=filter",
              f"--output_dir={work}", f"--num_trials={args.num_trials}",
              f"--examples_per_class={args.examples_per_class}"]  # fmt: skip
    backbone = ROOT / "sample/backbone"
    generate_augmentations.main([
        *common, f"--model_path={ROOT / 'sample/model'}", "--aug=real-guidance",
        f"--num_synthetic={args.variants}", f"--num_inference_steps={args.steps}",
        "--guidance_scale=4", "--batch_size=16", "--strength", *STRENGTHS,
        "--filter=classifier", f"--filter_model={backbone}", f"--filter_quantile={args.quantile}",
    ])  # fmt: skip
    quick = [f"--classifier_backbone={backbone}", "--num_epochs=10", "--iterations_per_epoch=50",
             "--learning_rate=1e-3", "--augmentation=none"]  # fmt: skip
    methods = {"real": ["--num_synthetic=0"], "all": ["--ignore_filter"], "kept": []}
    for method, flags in methods.items():
        train_classifier.main([*common, *quick, f"--method={method}", *flags])
    trials = [Trial(seed, args.examples_per_class) for seed in range(args.num_trials)]
    folders = [work / "filter/aug" / trial.name for trial in trials]
    if args.sheet:
        draw(folders[0], trials[0], Path(args.sheet))
    accuracies = {name: accuracy(work / "filter/results" / name) for name in methods}
    return {"marked of each strength": marked_shares(folders), "accuracy": accuracies}


def marked_shares(folders) -> dict[float, float]:
    """The share of the images of each strength that is not kept."""
    from semantic_aug.synthesis.records import read_records, read_scores

    marked = defaultdict(list)
    for folder in folders:
        scores = read_scores(folder)
        for record in read_records(folder):
            marked[record["strength"][0]].append(not scores[record["file_name"]]["kept"])
    return {strength: round(sum(m) / len(m), 3) for strength, m in sorted(marked.items())}


def accuracy(folder: Path) -> dict[str, str]:
    """Mean and 95 % interval, in percent, of each split."""
    import pandas

    summary = pandas.read_csv(folder / "summary.csv")
    return {
        row["split"]: f"{100 * row['mean_accuracy']:.1f} "
        f"± {100 * (row['ci95_high'] - row['mean_accuracy']):.1f}"
        for _, row in summary.iterrows()
        if row["split"] != "Training"
    }


def draw(folder: Path, trial, sheet: Path) -> None:
    """Worst and best images of every class."""
    from semantic_aug.datasets import build_dataset
    from semantic_aug.images.reading import read_image
    from semantic_aug.images.sheet import contact_sheet
    from semantic_aug.synthesis.records import read_records, read_scores

    dataset = build_dataset(
        "mvip", "train", data_dir=ROOT / "sample/mvip", seed=trial.seed,
        examples_per_class=trial.examples_per_class,
    )  # fmt: skip
    scores, of_class = read_scores(folder), defaultdict(list)
    for record in read_records(folder):
        score = scores[record["file_name"]]["score"]
        of_class[record["class_name"]].append((score, record["file_name"]))
    rows = []
    for name, images in of_class.items():
        names = [file_name for _, file_name in sorted(images)]
        groups = [
            [read_image(folder / n) for n in some] for some in (names[:SHOWN], names[-SHOWN:])
        ]
        rows.append((name, [[dataset.get_image_by_idx(dataset.indices([name])[0])], *groups]))
    picture = contact_sheet(rows, ["photo", "lowest scores", "highest scores"], 64)
    picture.save(sheet, quality=88, method=6)  # a sixth of the bytes of a PNG


if __name__ == "__main__":
    main()
