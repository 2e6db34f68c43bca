"""Everything that can be measured on one GPU, in six minutes: see on_gpu.sh, which starts this.

The rows of a group run one by one in a separate process, and each row is written at once. If a row
fails or exceeds its seconds, its error is written, and the next row follows. If a group ends
early, each of its missing rows gets an error. A group's output goes to GROUP.log beside the rows.

Numbers of a generation row: `images_per_s` leaves out start-up, and `steady_images_per_s` leaves
out the first block too. `matrix_share` is the number of operations
of UNet and VAE (counted by torch), as a share of the operations that the card does in large matrix
products of the same type in the same time.
"""

import argparse
import gc
import importlib.util
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from common import ROOT, threads

SECONDS = 350  # for all groups
TYPES = {"fp16": "float16", "bf16": "bfloat16"}
# For each group: its limit in seconds, and the limit of each of its rows. On an H200 the groups
# take about 12, 65, 140, 40 and 40 s, of which imports and first uses take 10 to 20 s each. So
# all of generation is one group, and the row that may take too long comes last.
GROUPS = {
    "machine": (30, {"machine": 10, "matrix rate fp16": 10, "matrix rate bf16": 10}),
    "tests": (90, {"tests": 85}),
    "generate": (190, {
        "generate fp16 plain": 20, "generate fp16 batch 1": 20, "generate fp16 batch 8": 25,
        "generate fp16 batch 32": 30, "generate bf16 batch 8": 25, "generate bf16 batch 32": 30,
        "generate fp16 compiled": 110,
    }),
    "words": (60, {"words plain": 40, "words": 20}),
    "classifier": (60, {"classifier frozen": 30, "classifier finetuned": 30}),
}  # fmt: skip
# For each row of generation: batch size, and variants of each of the four photos of a class.
SIZES = {"plain": (1, 2), "1": (1, 2), "8": (8, 8), "32": (32, 16), "compiled": (8, 10)}
# For each row of words: number of classes, which are learned together, and steps.
WORDS = {"words plain": (1, 10), "words": (4, 20)}
# For each row of the classifier: the trained part of the backbone, epochs, and steps of an epoch.
TRAINED = {"classifier frozen": ("none", 3, 50), "classifier finetuned": ("all", 2, 20)}


class OutOfTime(Exception):
    """A row has exceeded its seconds."""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="output/gpu", help="folder of rows.jsonl and the logs")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="the sample's models, least work")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--patience", type=float, default=1, help="times all limits of time")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--group", choices=GROUPS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    threads()
    if args.group:
        MEASURED[args.group](args)
        return
    Path(args.out).mkdir(parents=True, exist_ok=True)
    rows_file(args).unlink(missing_ok=True)
    deadline = time.monotonic() + SECONDS * args.patience
    with tempfile.TemporaryDirectory() as work:
        for group in args.groups:
            limit = min(GROUPS[group][0] * args.patience, deadline - time.monotonic())
            run_group(args, group, work, limit)
    failed = [row["row"] for row in read_rows(args) if "error" in row]
    print(f"{rows_file(args)}: {len(read_rows(args))} rows, of which {len(failed)} failed")


def run_group(args, group: str, work: str, limit: float) -> None:
    """Run a group in a new process; missing rows get errors."""
    command = [sys.executable, __file__, f"--group={group}", f"--work={work}", f"--out={args.out}",
               f"--device={args.device}", f"--patience={args.patience}"]  # fmt: skip
    before = len(read_rows(args))
    log, error = Path(args.out) / f"{group}.log", f"no time was left ({limit:.0f} s)"
    if limit > 5:
        with open(log, "w") as file:
            process = subprocess.Popen(
                command + ["--quick"] * args.quick, stdout=file, stderr=file, start_new_session=True
            )
            try:
                status = process.wait(limit)
                last = [line for line in log.read_text(errors="replace").splitlines() if line]
                error = f"its process ended with status {status}: {last[-1] if last else ''}"
            except subprocess.TimeoutExpired:
                error = f"its group has had {limit:.0f} s"
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    there = {row["row"] for row in read_rows(args)}
    for name in GROUPS[group][1]:
        if name not in there:
            write_row(args, {"row": name, "error": error})
    for row in read_rows(args)[before:]:
        print(json.dumps(row), flush=True)


# --- rows ------------------------------------------------------------------------------------


def rows_file(args) -> Path:
    return Path(args.out) / "rows.jsonl"


def read_rows(args) -> list[dict]:
    path = rows_file(args)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_row(args, row: dict) -> None:
    with open(rows_file(args), "a") as file:
        file.write(json.dumps(row) + "\n")


def measure(args, name: str, function, *arguments) -> None:
    """Write a row with a function's result, its seconds, and the peak of memory; or its error.

    The peak is the device's memory on a GPU, and the process's memory until then on a CPU.
    """
    import torch

    seconds = next(rows[name] for _, rows in GROUPS.values() if name in rows) * args.patience

    def ring(*_):
        raise OutOfTime(f"not ready after {seconds:.0f} s")

    on_gpu = args.device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before, began = signal.signal(signal.SIGALRM, ring), time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        found = function(*arguments)
    except (Exception, SystemExit) as error:  # a command has said more on stderr
        found = {"error": f"{type(error).__name__}: {error}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() / 2**20
    took = round(time.perf_counter() - began, 2)
    write_row(args, {"row": name, **found, "peak_mb": round(peak), "took_s": took})
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()


# --- machine ---------------------------------------------------------------------------------


def measure_machine(args) -> None:
    measure(args, "machine", machine, args)
    for precision in ("fp16", "bf16"):
        measure(args, f"matrix rate {precision}", matrix_rate, args, precision)


def machine(args) -> dict:
    from importlib.metadata import version

    import torch

    names = ("torch", "diffusers", "transformers", "accelerate", "peft", "kornia")
    card = torch.cuda.get_device_name(args.device) if args.device != "cpu" else "cpu"
    python = sys.version.split()[0]
    return {"device": card, "python": python, **{name: version(name) for name in names}}


def matrix_rate(args, precision: str) -> dict:
    """Teraflops in products of large square matrices."""
    import torch

    side, times, dtype = 8192, 50, getattr(torch, TYPES[precision])
    if args.device == "cpu":  # where all rows compute in float32
        side, times, dtype = 512, 10, torch.float32
    one, other = (torch.randn(side, side, device=args.device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        one @ other
    wait(args)
    began = time.perf_counter()
    for _ in range(times):
        one @ other
    wait(args)
    seconds = time.perf_counter() - began
    return {"teraflops": round(2 * side**3 * times / seconds / 1e12, 4)}


def wait(args) -> None:
    import torch

    if args.device != "cpu":
        torch.cuda.synchronize()


# --- tests -----------------------------------------------------------------------------------


def run_tests(args) -> None:
    """The tests that are marked `gpu`: a row for each test, and a row for all."""
    import pytest

    files = [p for p in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in p.read_text()]
    os.environ["TEST_DEVICE"] = args.device
    os.chdir(ROOT)
    counts = {"passed": 0, "failed": 0, "skipped": 0}

    class Rows:
        def pytest_runtest_logreport(self, report):
            if report.when == "call" or not report.passed:
                if report.when != "teardown":
                    counts[report.outcome] += 1
                row = {"row": f"test {report.nodeid.partition('::')[2]}",
                       "outcome": report.outcome, "took_s": round(report.duration, 2)}  # fmt: skip
                if report.failed:
                    row["error"] = report.longreprtext.splitlines()[-1]
                write_row(args, row)

    def all_of_them():
        status = pytest.main(["-m", "gpu", "-p", "no:cacheprovider", *map(str, sorted(files))],
                             plugins=[Rows()])  # fmt: skip
        return counts | ({"error": f"pytest's status is {int(status)}"} if status else {})

    measure(args, "tests", all_of_them)


# --- generation ------------------------------------------------------------------------------


def measure_generation(args) -> None:
    flops = flops_of(generation_args(args))
    for row in GROUPS["generate"][1]:
        precision, kind = row.split()[1], row.split()[-1]
        batch_size, variants = SIZES[kind]
        options = generation_args(args, precision, variants, batch_size)
        options.compile = kind == "compiled"
        measure(args, row, generation, args, options, precision, flops, kind == "plain")


def generation_args(
    args, precision: str = "fp16", variants: int = 1, batch_size: int = 1
) -> Namespace:
    """The arguments of a side of generate.py: edits of the first class's photos, float32 on a CPU.

    All edits have the same strength, so that every batch is full.
    """
    import generate
    from models import model_folder

    model = "sd14" if args.device != "cpu" else generate.parse_args([]).model
    options = generate.parse_args([f"--device={args.device}"])
    options.precision = precision if args.device != "cpu" else "no"
    options.model, options.work = model_folder(model, args.work, args.device), args.work
    options.classes, options.variants, options.batch_size = 1, variants, batch_size
    options.strengths = (0.5,)
    if args.quick:
        options.variants, options.steps = 1, 4
    return options


def generation(args, options, precision: str, flops: dict, plain: bool = False) -> dict:
    """The result of a side of generate.py, and the number of its images."""
    import generate

    found = (generate.plain if plain else generate.ours)(options)
    seconds, images = found["seconds"], generate.K * options.variants
    row = {"images": images, "images_per_s": round(images / seconds, 3), **found}
    later = images - options.batch_size
    if not plain and later > 0:
        row["steady_images_per_s"] = round(later / (seconds - found["first_block"]), 3)
    passes = images * int(options.steps * options.strengths[0])
    work = 2 * passes * flops["unet"] + images * (flops["encode"] + flops["decode"])
    name = f"matrix rate {precision}"
    rate = next((r.get("teraflops") for r in read_rows(args) if r["row"] == name), None)
    row["teraflops"] = round(work / seconds / 1e12, 4)
    if rate:
        row["matrix_share"] = round(work / seconds / 1e12 / rate, 3)
    return row | {"seconds": round(seconds, 3)}


def flops_of(options: Namespace) -> dict[str, int]:
    """Operations of one sample in the UNet, and of one image in both halves of the VAE."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from words import load_model

    pipeline = load_model(options)
    unet, vae, device = pipeline.unet, pipeline.vae, pipeline.device
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    pixels = side * pipeline.vae_scale_factor

    def random(*size):
        return torch.randn(size, device=device, dtype=unet.dtype)

    latents, text = random(1, unet.config.in_channels, side, side), random(1, 77, width)
    time_step = torch.tensor([500], device=device)
    calls = {
        "unet": lambda: unet(latents, time_step, text),
        "encode": lambda: vae.encode(random(1, 3, pixels, pixels)),
        "decode": lambda: vae.decode(latents),
    }
    found = {}
    for name, call in calls.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
        found[name] = counter.get_total_flops()
    return found


# --- words and the classifier ----------------------------------------------------------------


def measure_words(args) -> None:
    # By its path: a module of the same name is the command.
    path = Path(__file__).with_name("fine_tune.py")
    spec = importlib.util.spec_from_file_location("benchmark_of_words", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    options = benchmark.parse_args([f"--device={args.device}"])
    edits = generation_args(args)
    options.model, options.work, options.precision = edits.model, edits.work, edits.precision
    for row, side in (("words plain", benchmark.plain), ("words", benchmark.ours)):
        classes, steps = WORDS[row]
        options.classes = options.classes_per_step = classes
        options.steps = 2 if args.quick else steps
        measure(args, row, words_row, options, side)


def words_row(options: Namespace, side) -> dict:
    found = side(options)
    photos = options.classes * options.steps * options.batch
    return {"photos": photos, "photos_per_s": round(photos / found["seconds"], 2), **found}


def measure_classifier(args) -> None:
    import classifier
    from models import backbone_folder

    options = classifier.parse_args([f"--device={args.device}"])
    options.backbone = backbone_folder("resnet50" if args.device != "cpu" else options.backbone,
                                       args.work)  # fmt: skip
    options.work, options.augmentation, options.synthetic = args.work, "randaugment", 1
    if args.quick:
        options.batch = 8
    classifier.make_images(options)
    for row, (options.finetune, options.epochs, options.steps) in TRAINED.items():
        if args.quick:
            options.epochs, options.steps = 2, 5
        measure(args, row, classifier_row, args, options)


def classifier_row(args, options: Namespace) -> dict:
    """Seconds of an epoch, without the first epoch, which includes the first use of libraries."""
    import classifier

    from semantic_aug.evaluation import training

    train_epoch, seconds = training._train_epoch, []

    def timed_epoch(*arguments):
        began = time.perf_counter()
        found = train_epoch(*arguments)
        wait(args)
        seconds.append(time.perf_counter() - began)
        return found

    training._train_epoch = timed_epoch
    try:
        classifier.run(options, options.epochs, options.steps)
    finally:
        training._train_epoch = train_epoch
    epoch = statistics.median(seconds[1:])
    images = options.steps * options.batch
    return {"images": images, "epoch_s": round(epoch, 3), "images_per_s": round(images / epoch, 1)}


MEASURED = {
    "machine": measure_machine,
    "tests": run_tests,
    "generate": measure_generation,
    "words": measure_words,
    "classifier": measure_classifier,
}


if __name__ == "__main__":
    main()
