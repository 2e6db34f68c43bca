"""The best --fit for learning words: losses on photos that no word has seen, and a sheet of edits.

    python benchmarks/fit.py --data_dir data/caltech-101 --model_path sample/model \\
        --classes helicopter chair lamp watch --out /tmp/fit

Words are learned with each fit. Each word is then judged on validation photos in all three fits,
with the same noises, by the loss on the photo alone. (Generation pads photos.) The sheet shows
edits of training photos with each word.
"""

import argparse
import itertools
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import fine_tune
from semantic_aug.augmentations.textual_inversion import TextualInversion
from semantic_aug.datasets import build_dataset
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.diffusion.loading import load_pipeline, noise_scheduler_of
from semantic_aug.experiment.names import EMBEDDINGS_FILE
from semantic_aug.images.sheet import contact_sheet
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.settings.generation import FITS
from semantic_aug.words.embeddings import placeholder_token, read_embeddings
from semantic_aug.words.prompts import tokenise
from semantic_aug.words.rows import initial_rows, initializer_id
from semantic_aug.words.session import PhotoKey, encode_photo
from semantic_aug.words.training import TrainingSettings, Word, validation_losses


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="caltech101")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--classes", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--examples_per_class", type=int, default=4)
    parser.add_argument("--max_train_steps", type=int, default=100)
    parser.add_argument("--train_batch_size", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=5e-3)
    parser.add_argument("--num_vectors", type=int, default=4)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    for fit in FITS:
        fine_tune.main([
            "--dataset", args.dataset, "--data_dir", args.data_dir, "--model_path", args.model_path,
            "--classes", *args.classes, "--num_trials", args.seeds, "--experiment_name", fit,
            "--examples_per_class", args.examples_per_class, "--num_vectors", args.num_vectors,
            "--max_train_steps", args.max_train_steps, "--learning_rate", args.learning_rate,
            "--train_batch_size", args.train_batch_size, "--output_dir", args.out,
            "--report_to", "none", "--fit", fit,
        ])  # fmt: skip
    info = inspect_model(args.model_path)
    pipeline = load_pipeline(info, torch.device("cpu"), torch.float32)
    losses = judge(args, info, pipeline)
    print("words learned with | photos judged as: " + " | ".join(FITS))
    for learned in ("start", *FITS):
        means = [statistics.mean(losses[learned, shown].values()) for shown in FITS]
        print(f"{learned:18} | " + " | ".join(f"{mean:.4f}" for mean in means))
    for one, other in itertools.combinations(FITS, 2):
        pairs = losses[one, "pad"], losses[other, "pad"]
        gains = [1000 * (pairs[1][key] - pairs[0][key]) for key in pairs[0]]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        print(
            f"photos padded: {one} is below {other} by {statistics.mean(gains):.2f} thousandths, "
            f"standard error {error:.2f}"
        )
    draw(args, pipeline)


def word_file(args, fit: str, seed: int, name: str) -> Path:
    trial = f"seed={seed}_ex={args.examples_per_class}"
    return args.out / fit / "fine-tuned" / trial / name / EMBEDDINGS_FILE


def judge(args, info, pipeline) -> dict:
    """By (fit of the words, fit of the photos): the loss of each (seed, class)."""
    scheduler = noise_scheduler_of(pipeline)
    prompts = tokenise(pipeline, ["a photo of a {}"], "<word>", args.num_vectors)
    photos = build_dataset(args.dataset, "val", data_dir=args.data_dir)
    settings = TrainingSettings(1, 1, 1, 1.0, "constant", 0)
    table = pipeline.text_encoder.get_input_embeddings().weight
    losses = {}
    for shown, name in itertools.product(FITS, args.classes):
        options = FineTuning(fit=shown, resolution=info.resolution)
        means, deviations, weights = (
            torch.stack(parts)
            for parts in zip(*(
                encode_photo(options, pipeline, PhotoKey(photos, idx))
                for idx in photos.indices([name])
            ))
        )  # fmt: skip
        start = table[initializer_id(pipeline.tokenizer, None, name)]
        for learned, seed in itertools.product(("start", *FITS), range(args.seeds)):
            if learned == "start":
                generator = torch.Generator().manual_seed(seed)
                rows = initial_rows(start, args.num_vectors, generator)
            else:
                (rows,) = read_embeddings(word_file(args, learned, seed, name)).values()
            word = Word([rows], (means, deviations), settings, torch.Generator(), weights=weights)
            generators = [torch.Generator().manual_seed(seed)]
            (loss,) = validation_losses(pipeline, scheduler, [word], generators, prompts)
            losses.setdefault((learned, shown), {})[seed, name] = loss
    return losses


def draw(args, pipeline) -> None:
    """A sheet of photos and their edits, by the fit with which the word was learned."""
    few = {"seed": 0, "examples_per_class": args.examples_per_class}
    photos = build_dataset(args.dataset, "train", data_dir=args.data_dir, **few)
    rows = []
    for name in args.classes:
        chosen = photos.indices([name])[:2]
        images = [photos.get_image_by_idx(idx) for idx in chosen]
        metadata = [photos.get_metadata_by_idx(idx) for idx in chosen]
        groups = [images]
        for fit in FITS:
            path = word_file(args, fit, 0, name)
            edit = TextualInversion(path, pipeline, strength=args.strength, guidance_scale=5.0)
            generators = [torch.Generator().manual_seed(0) for _ in chosen]
            groups.append(edit.augment(images, [0] * len(chosen), metadata, generators)[0])
        rows.append((placeholder_token(name), groups))
    contact_sheet(rows, ["photos", *FITS], cell=128).save(args.out / "fit.png")


if __name__ == "__main__":
    main()
