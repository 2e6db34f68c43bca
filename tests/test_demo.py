"""scripts/demo.sh: its fast path from end to end, and what it says when it cannot go on."""

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

METHODS = ("real", "randaugment", "words", "names", "recipe")
WORDS = 12  # common kinds of sample/mvip
PATIENCE = 1800  # seconds, of which a quiet machine needs 180: a slow machine is no failure


@pytest.fixture
def demo(tmp_path):
    """Starts demo.sh with this Python in place of an environment of its own."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    digest = hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest()
    (tmp_path / "venv" / "installed").write_text(f"{digest}  -\n")

    def start(*flags, path=os.environ["PATH"]):
        environment = {
            **os.environ, "PATH": path, "VENV": str(tmp_path / "venv"),
            "OUTPUT_DIR": str(tmp_path / "output"),
        }  # fmt: skip
        process = subprocess.Popen(
            ["bash", str(ROOT / "scripts" / "demo.sh"), *flags], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    started = []
    yield start
    for process in started:
        if process.poll() is None:  # the test has failed, and minutes of work would go on
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_fast_path_interrupted_and_run_again(demo, tmp_path):
    out = tmp_path / "output" / "demo-fast"
    process = demo("--fast")
    deadline = time.time() + PATIENCE
    while not list(out.glob("fine-tuned/*/*/learned_embeds*")):
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert text.splitlines()[-1] == (
        "demo.sh: interrupted or failed; the same command goes on from here"
    )

    text, _ = demo("--fast").communicate(timeout=PATIENCE)
    assert re.search(r"^\d+ words? finished already: skipped$", text, re.MULTILINE)
    words = list(out.glob("fine-tuned/seed=0_ex=2/*/learned_embeds.safetensors"))
    assert len(words) == WORDS
    assert (out / "fine-tuned-merged" / "seed=0_ex=2.safetensors").exists()
    for images, aug, variants in (("names", "real-guidance", 3), ("words", "textual-inversion", 1)):
        folder = out / images / "seed=0_ex=2"
        records = [json.loads(line) for line in (folder / "metadata.jsonl").open()]
        assert len(records) == len(list(folder.glob("*.png"))) == WORDS * 2 * variants
        assert {record["aug"][0] for record in records} == {aug}
        assert {record["strength"][0] for record in records} == {1.0}
    table = re.findall(r"^(?:real|and) .* (\d+\.\d) %$", text, re.MULTILINE)
    assert len(table) == len(METHODS)
    for method, accuracy in zip(METHODS, table, strict=True):
        with open(out / "results" / method / "summary.csv") as file:
            (row,) = (row for row in csv.DictReader(file) if row["split"] == "Test")
        assert f"{100 * float(row['mean_accuracy']):.1f}" == accuracy
        assert float(accuracy) > 100 / WORDS * 2  # far above chance, whatever helps
    (said,) = re.findall(r"The last row: ([+-]\d+\.\d) points over RandAugment, 1 trial", text)
    assert float(said) == pytest.approx(float(table[-1]) - float(table[1]), abs=0.11)
    stages = re.findall(r"^([\w-]+) +\d+$", text, re.MULTILINE)
    assert {"fine_tune", "names", "words", "classify-real", "report"} <= set(stages)
    sheet, page = (
        Path(re.search(rf"^{kind}: (.*)$", text, re.MULTILINE)[1]) for kind in ("pictures", "page")
    )
    lines = [line for line in text.splitlines() if line and "image/s]" not in line]  # but bars
    asked, heads, answer = lines[-3:]
    *_, classifier, photo = asked.split()
    assert (out / "results/recipe/classifier_0_2").samefile(classifier)
    assert heads.split() == ["photo", "class", "probability", "second", "class"]
    assert answer.split()[0] == photo
    assert answer.split()[1] in {path.name for path in (ROOT / "sample/mvip").iterdir()}
    assert page.read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    with Image.open(sheet) as image:
        assert image.width > 500 and image.height > 12 * 64

    before = {path: path.stat().st_mtime_ns for path in out.glob("*/seed*/*.png")}
    again, _ = demo("--fast").communicate(timeout=PATIENCE)
    assert "The demo was finished earlier" in again and "== " not in again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert re.findall(r"^(?:real|and) .* (\d+\.\d) %$", again, re.MULTILINE) == table


@pytest.mark.parametrize("flags", (["--slow"], ["--fast", "--slow"]))
def test_unknown_flag(demo, flags):
    text, _ = demo(*flags).communicate()
    assert text == "usage: bash scripts/demo.sh [--fast]\n"


def test_no_space(demo, tmp_path):
    df = tmp_path / "bin" / "df"
    df.parent.mkdir()
    # There is no room where the output goes, and much elsewhere.
    free = f'[ "$2" = "{tmp_path}" ] && free=10240 || free=90000000'
    df.write_text(f"#!/bin/sh\n{free}\necho Filesystem\necho disk 100000 90000 $free 90% /\n")
    df.chmod(0o755)
    process = demo("--fast", path=f"{df.parent}:{os.environ['PATH']}")
    text, _ = process.communicate()
    assert process.returncode == 2
    assert text == (
        f"demo.sh: 10 MB are free in {tmp_path} and 200 MB are needed; make room and run it again\n"
    )
    assert not (tmp_path / "output").exists()


def test_no_network_during_the_installation(demo, tmp_path):
    (tmp_path / "venv" / "installed").unlink()
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text("#!/bin/sh\necho 'ERROR: no matching distribution' >&2\nexit 1\n")
    process = demo("--fast")
    text, _ = process.communicate()
    assert process.returncode == 2
    assert "the packages could not be installed; see above, then run this again" in text
