"""Benchmarks: every row of on_gpu.sh is there, whatever fails; plain loops make the same images."""

import importlib
import json
import os
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
from conftest import ROOT, build_pipeline

from semantic_aug.augmentations.background import Background
from semantic_aug.augmentations.paste import Paste
from semantic_aug.augmentations.real_guidance import RealGuidance
from semantic_aug.synthesis.jobs import Job, job_generator
from semantic_aug.synthesis.making import compute


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a benchmark by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def on_gpu(benchmark):
    return benchmark("on_gpu")


def difference(image, other) -> float:
    return np.abs(np.asarray(image, float) - np.asarray(other, float)).max()


@pytest.mark.parametrize("method", ["masked", "background"])
def test_the_plain_loop_of_generation_makes_the_images_that_we_make(benchmark, method):
    from diffusers import AutoPipelineForInpainting

    generate, model = benchmark("generate"), build_pipeline()
    args = generate.parse_args(["--mask", f"--method={method}", "--classes=1", "--steps=4"])
    options = {"strength": args.strengths[-1], "num_inference_steps": args.steps}
    aug = Background(model, **options)
    if method == "masked":
        aug = RealGuidance(model, mask=True, **options)
    dataset, indices = generate.photos_of(args)
    jobs = [Job(indices[0], 0), Job(indices[0], 1)]
    ours = [image for _, image, _ in compute(dataset, aug, jobs, dataset.sources(), generate.SEED)]
    inpainting = AutoPipelineForInpainting.from_pipe(model)
    inpainting.set_progress_bar_config(disable=True)
    for job, image in zip(jobs, ours):
        generator = job_generator(generate.SEED, dataset.sources()[job.index], job.repeat)
        plain = generate.plain_image(
            args, inpainting, dataset, job.index, options["strength"], generator
        )
        assert difference(image, plain) <= 1
    assert difference(*ours) > 10


def test_the_plain_loop_of_pasting_makes_the_images_that_we_make(benchmark):
    paste = benchmark("paste")
    dataset = paste.enlarged_photos(Namespace(data_dir=ROOT / "sample/mvip", classes=1, pixels=96))
    aug = Paste(shadow=paste.SHADOW)
    aug.bind(dataset)
    jobs = [Job(0, 0), Job(1, 0), Job(0, 1)]
    for job, image, _ in compute(dataset, aug, jobs, dataset.sources(), paste.SEED):
        assert image.size == (96, 96)
        assert difference(image, paste.plain_image(dataset, job)) <= 4


def test_a_row_that_fails_or_takes_too_long_is_written_and_the_next_follows(on_gpu, tmp_path):
    args = Namespace(out=tmp_path, device="cpu", patience=0.001)

    def refuse():
        raise SystemExit(2)

    on_gpu.measure(args, "words plain", lambda: 1 / 0)
    on_gpu.measure(args, "words", time.sleep, 20)
    on_gpu.measure(args, "classifier frozen", refuse)
    on_gpu.measure(args, "classifier finetuned", lambda: {"epoch_s": 0.5})
    rows = on_gpu.read_rows(args)
    assert [row.get("error") for row in rows] == [
        "ZeroDivisionError: division by zero", "OutOfTime: not ready after 0 s", "SystemExit: 2",
        None,
    ]  # fmt: skip
    assert rows[-1]["epoch_s"] == 0.5 and rows[-1]["peak_mb"] > 0
    assert all(row["took_s"] < 10 for row in rows)


def test_a_group_that_ends_early_leaves_an_error_for_each_row(on_gpu, tmp_path, monkeypatch):
    args = Namespace(out=tmp_path, device="cpu", patience=1, quick=True)
    monkeypatch.setattr(on_gpu.sys, "executable", "false")  # a program that fails at once
    on_gpu.write_row(args, {"row": "words plain", "seconds": 1})
    on_gpu.run_group(args, "words", str(tmp_path), 60)
    on_gpu.run_group(args, "classifier", str(tmp_path), 0)
    errors = {row["row"]: row.get("error") for row in on_gpu.read_rows(args)}
    assert errors == {
        "words plain": None, "words": "its process ended with status 1: ",
        "classifier frozen": "no time was left (0 s)",
        "classifier finetuned": "no time was left (0 s)",
    }  # fmt: skip


def test_the_limits_of_time_add_up_to_less_than_six_minutes(on_gpu):
    assert on_gpu.SECONDS < 360
    assert on_gpu.GROUPS.keys() == on_gpu.MEASURED.keys()
    for limit, rows in on_gpu.GROUPS.values():
        assert all(0 < seconds <= limit for seconds in rows.values())


@pytest.mark.slow
def test_every_row_is_measured_on_the_cpu_with_the_sample(on_gpu, tmp_path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "benchmarks/on_gpu.sh"), "--device", "cpu", "--quick"]
    done = subprocess.run(
        [*command, "--patience", "20"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    rows = {row["row"]: row for row in map(json.loads, lines)}
    assert len(rows) == len(lines)
    assert {name: row["error"] for name, row in rows.items() if "error" in row} == {}
    expected = [name for _, group in on_gpu.GROUPS.values() for name in group]
    assert set(expected) <= rows.keys()
    assert rows["tests"]["passed"] > 15 and rows["tests"]["failed"] == 0
    for name, row in rows.items():
        if name.startswith("generate"):
            assert row["images"] == 4 and row["images_per_s"] > 0
            assert 0 < row["matrix_share"] < 1
        elif name.startswith("words"):
            assert row["photos_per_s"] > 0
        elif name.startswith("classifier"):
            assert row["images_per_s"] > 0
