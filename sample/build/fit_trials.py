"""Does `semantic-aug fit` keep its promise, and choose well? One trial, or several.

    python sample/build/fit_trials.py --out rows.csv --work FOLDER --trials 0 1 2 3 4 5 6 7

A trial runs `fit` within --minutes on a plain folder with four photos of each common kind
(plain_folder.py), without masks and splits. Then every candidate that `fit` tried is trained on all
photos, and judged twice. sample/same_places has further photos of the same parts in the same
places, for which the promise holds. The test photos of sample/mvip show other parts elsewhere.
--out gets a row for each candidate of each trial; `kept` says whether the accuracy of the chosen
candidate lies within the interval. A trial that has rows in --out is skipped.
"""

import argparse
import csv
import shutil
import sys
import time
from pathlib import Path

from plain_folder import ROOT, plain_folder

sys.path.insert(0, str(ROOT.parent))
from semantic_aug import fit
from semantic_aug.datasets import build_dataset
from semantic_aug.evaluation.features import cached_features
from semantic_aug.evaluation.fold_heads import train_heads
from semantic_aug.evaluation.metrics import evaluation
from semantic_aug.evaluation.pictures import Images
from semantic_aug.stages import fit as stage
from semantic_aug.stages.fitting_scores import options_of, whole_fold

COLUMNS = (
    "trial", "photos", "minutes", "masks", "candidate", "images", "held_out", "elsewhere",
    "same_places", "test", "chosen", "expected", "low", "high", "kept", "seconds",
)  # fmt: skip


def sets_to_test():
    """Photos with the label of the same folder name, as the classifier has it."""
    return {
        "same_places": build_dataset("folder", "train", data_dir=ROOT / "same_places",
                                     dataset_args=[f"splits={table_of_all()}"]),
        "test": build_dataset("mvip", "test", data_dir=ROOT / "mvip"),
    }  # fmt: skip


def table_of_all():
    """A table that takes all photos of sample/same_places together."""
    path = Path(ARGS.work) / "same_places.csv"
    files = sorted(path.relative_to(ROOT / "same_places") for path in ROOT.glob("same_places/*/*"))
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["source,split", *(f"{file.as_posix()},train" for file in files)]
    path.write_text("\n".join(lines) + "\n")
    return path.resolve()


def run_trial(trial):
    """The rows of a trial."""
    folder = Path(ARGS.work) / f"trial-{trial}"
    shutil.rmtree(folder / "photos", ignore_errors=True)
    masks = folder / "masks" if ARGS.masks else None
    plain_folder(folder / "photos", ARGS.photos, trial, masks)
    seen = {}
    write_result = stage.write_result

    def keep(experiment, photos, settings, backbone, tried, left_out):
        seen.update(photos=photos, settings=settings, backbone=backbone, tried=tried)
        return write_result(experiment, photos, settings, backbone, tried, left_out)

    stage.write_result = keep
    started = time.monotonic()
    found = fit(
        folder / "photos", output_dir=str(folder), experiment_name="fitted", minutes=ARGS.minutes,
        mask_dir=masks, masker=ARGS.masker, device=ARGS.device,
        classifier_backbone=str(ROOT / "backbone"),
        model=str(ROOT / "model"), prompt=str(ROOT / "prompts.txt"), guidance_scale=5,
        num_inference_steps=10, batch_size=16,
    )  # fmt: skip
    seconds = time.monotonic() - started
    stage.write_result = write_result
    names, tests = list(seen["photos"].dataset.class_names), sets_to_test()
    for row, each in zip(found.table.to_dict(orient="records"), seen["tried"]):
        (head,) = train_heads(
            each.material, [whole_fold(seen["photos"])], options_of(seen["settings"]),
            seen["settings"].seed,
        )  # fmt: skip
        scores = {
            name: accuracy(head, seen["backbone"], data, names) for name, data in tests.items()
        }
        chosen = bool(row["chosen"])
        yield {
            "trial": trial, "photos": ARGS.photos, "minutes": ARGS.minutes,
            "masks": "made" if ARGS.masker else ARGS.masks,
            "candidate": row["candidate"], "images": row["images"], "held_out": row["accuracy"],
            "elsewhere": row["elsewhere"], **scores, "chosen": chosen,
            "expected": found.accuracy, "low": found.low, "high": found.high,
            "kept": found.low <= scores["same_places"] <= found.high if chosen else "",
            "seconds": round(seconds),
        }  # fmt: skip


def accuracy(head, backbone, data, names):
    """Mean over classes."""
    images = Images(data, range(len(data)), backbone.image_size)
    features, _ = cached_features(backbone, images, data.split)
    labels = [names.index(data.class_names[data.get_label_by_idx(n)]) for n in range(len(data))]
    import torch

    with torch.no_grad():
        return evaluation(head(features), torch.tensor(labels)).mean_accuracy


def main():
    out = Path(ARGS.out)
    done = set()
    if out.exists():
        with open(out, newline="") as file:
            done = {int(row["trial"]) for row in csv.DictReader(file)}
    for trial in ARGS.trials:
        if trial in done:
            continue
        rows = list(run_trial(trial))
        with open(out, "a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if not done:
                writer.writeheader()
            writer.writerows(rows)
        done.add(trial)
        for row in rows:
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--trials", type=int, nargs="+", default=[0])
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--device")
    parser.add_argument("--masks", action="store_true", help="give the masks too")
    parser.add_argument("--masker", help="a model that makes masks, such as sample/masker")
    ARGS = parser.parse_args()
    main()
