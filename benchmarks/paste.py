"""Pasting objects on other photos of the trial: this project against a plain loop, on the sample.

    python benchmarks/paste.py            # 6 classes x 4 photos x 16 variants of 224 x 224 pixels
    python benchmarks/paste.py --quick    # within a minute

The plain loop makes one image after the other, in floating point. It reads both photos, paints over
the object of the other photo every time, and adds shadow and object. It draws the same places, and
the images of both sides are compared. Photos of the sample are enlarged as they are read, and the
time of saving images does not count. All work is done on one core, and images per second refer to
its CPU time. `pasted` is our rate without the time of `emptying`, which each photo needs once.
`layouts` is this rate for objects that also change in size, turn, place and colour.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from common import ROOT, compare, report_side, run_side, threads

K, SEED, BATCH_SIZE = 4, 0, 16
SHADOW, REACH = 0.4, 0.05  # darkness; reach as a share of the object's size
LAYOUTS = {"layout_scale": (0.6, 1.1), "layout_rotate": 20, "layout_shift": 0.2,
           "layout_mirror": True, "layout_colour": 0.3}  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default=str(ROOT / "sample/mvip"))
    parser.add_argument("--classes", type=int, default=6)
    parser.add_argument("--variants", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=224, help="along a side of a photo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="3 classes, 4 variants, 1 round")
    parser.add_argument("--work", help="folder for what is made (default: a temporary one)")
    parser.add_argument("--side", choices=("plain", "ours", "layouts"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.classes, args.variants, args.rounds = 3, 4, 1
    threads()
    if args.side:
        report_side(run(args))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = args.work or folder
        keys = ("data_dir", "classes", "variants", "pixels")
        arguments = [f"--{key}={getattr(args, key)}" for key in keys] + [f"--work={work}"]
        result = compare(__file__, ("plain", "ours"), args.rounds, arguments)
        result["mean_difference"] = mean_difference(Path(work) / "plain", Path(work) / "ours")
        layouts = run_side(__file__, "layouts", arguments)
    images, runs = K * args.classes * args.variants, result.pop("rounds")
    for side, found in runs.items():
        processor = statistics.median(run["processor"] for run in found)
        result[f"{side}_images_per_s"] = round(images / processor, 1)
    for name, found in (("pasted", runs["ours"]), ("layouts", [layouts])):
        pasting = statistics.median(run["processor"] - run["emptying"] for run in found)
        result[f"{name}_images_per_s"] = round(images / pasting, 1)
    result["emptying_s"] = round(statistics.median(run["emptying"] for run in runs["ours"]), 2)
    print(json.dumps(result | {"images": images, "photos": K * args.classes}))


def run(args) -> dict:
    """A side's wall-clock and CPU seconds; its images are saved afterwards.

    `emptying` is the CPU time for painting objects over.
    """
    from semantic_aug.augmentations import paste
    from semantic_aug.synthesis.jobs import make_jobs
    from semantic_aug.synthesis.making import compute

    dataset = enlarged_photos(args)
    jobs = make_jobs(range(len(dataset)), args.variants)
    emptied, emptying = paste.emptied, []

    def timed_emptying(photo, mask):
        started = time.process_time()
        found = emptied(photo, mask)
        emptying.append(time.process_time() - started)
        return found

    paste.emptied = timed_emptying
    began, processor = time.perf_counter(), time.process_time()
    if args.side == "plain":
        made = [(job, plain_image(dataset, job)) for job in jobs]
    else:
        augmentation = paste.Paste(shadow=SHADOW, **(LAYOUTS if args.side == "layouts" else {}))
        augmentation.bind(dataset)
        blocks = [jobs[start : start + BATCH_SIZE] for start in range(0, len(jobs), BATCH_SIZE)]
        made = [
            (job, image)
            for block in blocks
            for job, image, _ in compute(dataset, augmentation, block, dataset.sources(), SEED)
        ]
    found = {
        "seconds": time.perf_counter() - began,
        "processor": time.process_time() - processor,
        "emptying": sum(emptying),
    }
    paste.emptied = emptied
    folder = Path(args.work) / args.side
    folder.mkdir(parents=True, exist_ok=True)
    for job, image in made:
        image.save(folder / job.file_name)
    return found


def enlarged_photos(args):
    """The trial, its photos and masks enlarged."""
    import numpy as np
    from PIL import Image

    from semantic_aug.datasets.mvip import MVIPDataset

    size = (args.pixels, args.pixels)

    class Enlarged(MVIPDataset):
        def get_image_by_idx(self, idx):
            return super().get_image_by_idx(idx).resize(size, Image.Resampling.BICUBIC)

        def get_mask_by_idx(self, idx):
            mask = Image.fromarray(super().get_mask_by_idx(idx))
            return np.asarray(mask.resize(size, Image.Resampling.NEAREST))

    return Enlarged(
        split="train", data_dir=args.data_dir, seed=SEED, examples_per_class=K,
        num_classes=args.classes,
    )  # fmt: skip


def plain_image(dataset, job):
    """The object of a photo, its edge softened, on another photo, with a shadow beneath it."""
    import numpy as np
    import torch
    from PIL import Image
    from scipy import ndimage

    from semantic_aug.augmentations import paste
    from semantic_aug.synthesis.jobs import job_generator

    generator = job_generator(SEED, dataset.sources()[job.index], job.repeat)
    torch.rand(8, generator=generator, dtype=torch.float64)  # a layout that changes nothing
    others = [index for index in range(len(dataset)) if index != job.index]
    other = others[int(torch.randint(len(others), (), generator=generator))]
    photo = np.asarray(dataset.get_image_by_idx(job.index), np.float64)
    alpha = (dataset.get_mask_by_idx(job.index) != 0).astype(np.float64)
    place = paste.emptied(dataset.get_image_by_idx(other), dataset.get_mask_by_idx(other))
    (rows,), (columns,) = alpha.any(axis=1).nonzero(), alpha.any(axis=0).nonzero()
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    reach = REACH * (height * width) ** 0.5
    darker = np.clip((np.arange(len(alpha)) - rows[0]) / height, 0, 1)[:, None]
    shadow = ndimage.shift(SHADOW * darker * alpha, (round(reach), 0), order=0)
    lit = 1 - ndimage.gaussian_filter(shadow, reach)[..., None]
    soft = np.minimum(alpha, ndimage.uniform_filter(alpha, 3))[..., None]
    result = soft * photo + (1 - soft) * lit * np.asarray(place, np.float64)
    return Image.fromarray(np.rint(result).astype(np.uint8))


def mean_difference(folder: Path, other: Path) -> float:
    """The mean difference between the pixels of both folders' images, of 255."""
    import numpy as np
    from PIL import Image

    means = []
    for path in folder.glob("*.png"):
        one, two = (np.asarray(Image.open(p), np.float64) for p in (path, other / path.name))
        means.append(np.abs(one - two).mean())
    return round(statistics.mean(means), 2)


if __name__ == "__main__":
    main()
