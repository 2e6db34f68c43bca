"""Generation in earnest: killed again and again, by several at once, 100,000 images."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from semantic_aug.synthesis.records import read_records, read_scores

pytestmark = pytest.mark.slow

SCRIPT = str(ROOT / "generate_augmentations.py")


def start(*flags, experiment="e", **options) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{Path.cwd()}"}
    command = [sys.executable, SCRIPT, "--dataset=folder", "--data_dir=photos", "--device=cpu",
               f"--experiment_name={experiment}", *map(str, flags)]  # fmt: skip
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | options
    return subprocess.Popen(command, env=environment, **options)


def folder_of(experiment: str) -> Path:
    return Path(f"output/{experiment}/aug/seed=0_ex=1")


def contents(folder: Path) -> dict[str, str]:
    """Digest of every image and of metadata.jsonl."""
    names = [p for p in folder.iterdir() if p.suffix == ".png" or p.name == "metadata.jsonl"]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in names}


def recorded(folder: Path) -> list[dict]:
    """All lines of images as they stand in records/, twice if they are there twice."""
    found = []
    for path in (folder / "records").glob("*.jsonl"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                found.append(json.loads(line))
    return [record for record in found if "label" in record]


def assert_sound(folder: Path, count: int) -> None:
    """Every image once, whole, with one record; nothing else."""
    assert len(read_records(folder)) == count
    assert set(Counter(record["file_name"] for record in recorded(folder)).values()) == {1}
    assert len(list(folder.glob("*.png"))) == count
    assert not list(folder.rglob("*.tmp"))


def test_twenty_kills_at_random_moments(photos, small_model, workdir):
    flags = [f"--model_path={small_model}", "--num_synthetic=40", "--batch_size=3",
             "--num_inference_steps=4"]  # fmt: skip
    assert start(*flags, experiment="whole").wait() == 0
    folder, moments = folder_of("cut"), random.Random(1)
    killed_while_making = 0
    for number in range(20):
        process = start(*flags, experiment="cut")
        there = len(list(folder.glob("*.png")))
        wanted = there + moments.randint(1, 5) if number % 5 else 0  # some before the first image
        deadline = time.monotonic() + 600
        while process.poll() is None and len(list(folder.glob("*.png"))) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03 if number % 5 else 6))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed_while_making += number % 5 > 0
        process.wait()
        for path in folder.glob("*.png"):  # whatever has its name is whole
            with Image.open(path) as image:
                image.load()
    assert killed_while_making >= 12
    assert start(*flags, experiment="cut").wait() == 0
    assert_sound(folder, 120)
    assert contents(folder) == contents(folder_of("whole"))


def test_four_shards_at_once(photos, small_model, workdir):
    flags = [f"--model_path={small_model}", "--num_synthetic=20", "--batch_size=3",
             "--num_inference_steps=4"]  # fmt: skip
    assert start(*flags, experiment="whole").wait() == 0
    shards = [
        start(*flags, f"--shard_index={index}", "--num_shards=4", experiment="shared")
        for index in range(4)
    ]
    assert [process.wait() for process in shards] == [0] * 4
    assert_sound(folder_of("shared"), 60)
    assert contents(folder_of("shared")) == contents(folder_of("whole"))
    assert len(list((folder_of("shared") / "records").iterdir())) == 4


STUB = """
from PIL import Image
from semantic_aug.generative_augmentation import Edit, GenerativeAugmentation

class Stub(GenerativeAugmentation):
    def __init__(self, pipeline=None, **_):
        pass

    def augment(self, images, labels, metadata, generators):
        edits = [[Edit("stub", "a photo", 0.5, 7.5, False, False)] for _ in images]
        return [Image.new("RGB", (8, 8), g.initial_seed() % 2**24) for g in generators], edits
"""


def lines_in(folder: Path) -> int:
    """About how many images are recorded, without reading everything."""
    size = sum(path.stat().st_size for path in (folder / "records").glob("*.jsonl"))
    return size // 400


def resident(process) -> float:
    """MB of memory that a process holds; 0 when it has ended."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else 0


def cpu_seconds(process) -> float:
    """What a process has computed until now: unlike the clock, it knows nothing of its rivals."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_hundred_thousand_images(small_model, workdir):
    Path("stub.py").write_text(STUB)
    for split, count in (("train", 100), ("val", 1), ("test", 1)):
        for label in range(10):
            for number in range(count):
                path = Path(f"photos/{split}/class {label}/{number:05d}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (25 * label, number, 99)).save(path)
    flags = [f"--model_path={small_model}", "--aug=stub:Stub", "--examples_per_class=100",
             "--num_synthetic=100", "--batch_size=16"]  # fmt: skip
    folder, measured = Path("output/e/aug/seed=0_ex=100"), {}

    def wait_for(process, wanted: int, name: str) -> None:
        began = time.monotonic()
        while process.poll() is None and lines_in(folder) < wanted:
            time.sleep(0.02)
        measured[name] = round(time.monotonic() - began, 1)
        measured[f"{name} (of the processor)"] = round(cpu_seconds(process), 1)

    process = start(*flags)
    wait_for(process, 1, "start, s")
    wait_for(process, 10_000, "10,000 images, s")
    measured["memory at 10,000, MB"] = round(resident(process))
    wait_for(process, 60_000, "50,000 images more, s")
    measured["memory at 60,000, MB"] = round(resident(process))
    process.kill()
    process.wait()
    before = lines_in(folder)
    with open("log", "w") as log:
        process = start(*flags, stderr=log)
        wait_for(process, before + 100, "resumed after, s")
        wait_for(process, 92_000, "up to 92,000, s")
        measured["memory at 92,000, resumed, MB"] = round(resident(process))
        began = time.monotonic()
        assert process.wait() == 0
        measured["rest, s"] = round(time.monotonic() - began, 1)
    assert "image" in Path("log").read_text()  # progress
    process = start(*flags)
    peak = spent = 0.0
    while process.poll() is None:
        peak, spent = max(peak, resident(process)), max(spent, cpu_seconds(process))
        time.sleep(0.05)
    measured["finished, again, s (of the processor)"] = round(spent, 1)
    measured["memory of that, MB"] = round(peak)
    print("\n" + json.dumps(measured, indent=2))
    assert_sound(folder, 100_000)
    assert not read_scores(folder)
    assert measured["start, s (of the processor)"] < 15
    assert measured["resumed after, s (of the processor)"] < 20
    assert measured["finished, again, s (of the processor)"] < 20
    assert measured["memory at 60,000, MB"] - measured["memory at 10,000, MB"] < 50
