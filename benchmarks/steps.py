"""How many steps a word needs on the embedded sample: losses on photos that no word has seen.

    python benchmarks/steps.py            # 8 classes, 400 steps at two learning rates
    python benchmarks/steps.py --quick    # within a minute

Trains words once per learning rate, keeps them at several steps, and measures them on the photos
of the validation split over fixed noises. The last line is one JSON object: for each learning rate
{step: mean loss}. Step 0 means the initial words.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from common import ROOT, threads
from words import NUM_VECTORS, SEED, K, class_names, load_model, losses_on_validation_photos


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "sample/model"))
    parser.add_argument("--data_dir", default=str(ROOT / "sample/mvip"))
    parser.add_argument("--quick", action="store_true", help="3 classes, 20 steps, one rate")
    args = parser.parse_args(argv)
    args.device, args.precision, args.classes = "cpu", "no", 3 if args.quick else 8
    steps, every, rates = (20, 10, ("5e-3",)) if args.quick else (400, 50, ("1e-3", "5e-3"))
    threads()
    import fine_tune
    from semantic_aug.words.embeddings import read_embeddings

    found = {}
    for rate in rates:
        with tempfile.TemporaryDirectory() as folder:
            fine_tune.main([
                "--dataset=mvip", f"--data_dir={args.data_dir}", f"--output_dir={folder}",
                "--experiment_name=steps", f"--model_path={args.model}", f"--seed={SEED}",
                f"--examples_per_class={K}", f"--num_vectors={NUM_VECTORS}",
                f"--learning_rate={rate}", f"--max_train_steps={steps}", f"--save_steps={every}",
                "--report_to=none", "--device=cpu", "--classes", *class_names(args),
            ])  # fmt: skip
            words = Path(folder) / "steps" / "fine-tuned" / f"seed={SEED}_ex={K}"
            rows = {0: None}
            for step in range(every, steps + 1, every):
                rows[step] = {}
                for name in class_names(args):
                    file = f"learned_embeds-steps-{step}.safetensors"
                    path = words / name.replace(" ", "_") / file
                    (rows[step][name],) = read_embeddings(path).values()
        losses = losses_on_validation_photos(args, load_model(args), rows)
        found[rate] = {step: round(statistics.mean(each), 5) for step, each in losses.items()}
        print(f"learning rate {rate}: {found[rate]}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
