"""The wheel: it holds all that the commands need, and they run in whichever folder."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from semantic_aug.__main__ import COMMANDS


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from what git would give to others."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    kinds = [
        "*.py",
        "*.toml",
        "*.txt",
        "*.html",
        "*.typed",
        "*.args",
        "*.sh",
        "LICENSE",
        "README.md",
    ]
    listed = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z", *kinds]
    for name in subprocess.run(listed, capture_output=True, check=True).stdout.split(b"\0"):
        path = Path(os.fsdecode(name))
        if name and path.parts[0] not in ("tests", "benchmarks", "sample"):
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes((ROOT / path).read_bytes())
    line = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(out), str(source)]
    subprocess.run(line, check=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_data_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {str(p.relative_to(ROOT)) for p in (ROOT / "semantic_aug").rglob("*.py")}
    scripts = {p.name for p in ROOT.glob("*.py")} - {"setup.py", "fine_tune_upstream.py"}
    data = {f"semantic_aug/report/{name}.html" for name in ("masks", "page")}
    data.add("semantic_aug/py.typed")
    data.add("semantic_aug/augmentations/places.txt")
    for folder, ending in (("reproduce", "args"), ("slurm", "sh")):
        paths = (ROOT / "scripts" / folder).glob(f"*.{ending}")
        data |= {f"semantic_aug/scripts/scripts/{folder}/{path.name}" for path in paths}
    assert names == package | data | {f"semantic_aug/scripts/{name}" for name in scripts}


@pytest.mark.slow
def test_an_installation_runs_all_stages_from_another_folder(
    wheel, photos, small_model, resnet, tmp_path
):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pins = ["-c", str(ROOT / "requirements.txt")]
    install = [python, "-m", "pip", "install", "-q", f"{wheel}[all]", *pins]
    subprocess.run(list(map(str, install)), check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environ |= {"HF_HUB_OFFLINE": "1", "PATH": f"{python.parent}:{environ['PATH']}"}

    def run(*words) -> str:
        line = ["semantic-aug", *map(str, words)]
        done = subprocess.run(
            line, cwd=elsewhere, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name in COMMANDS:
        assert "usage: " in run(name, "--help")
    e = ["--experiment_name=e"]
    of = [*e, "--dataset=folder", f"--data_dir={photos}"]
    model = [f"--model_path={small_model}", "--device=cpu"]
    said = run("fine-tune", *of, *model, "--max_train_steps=1", "--report_to=none")
    assert "next: semantic-aug aggregate --experiment_name=e\n" in said
    assert "next: semantic-aug generate --experiment_name=e " in run("aggregate", *e)
    run("generate", *of, *model, "--num_synthetic=1", "--num_inference_steps=2")
    head = [f"--classifier_backbone={resnet}", "--num_epochs=1", "--iterations_per_epoch=1"]
    assert "results: output/e/results/aug" in run("train-classifier", *of, *head)
    assert "seed=0_ex=1.html" in run("report", *of)
    assert (elsewhere / "output/e/report/seed=0_ex=1.html").is_file()
    assert "train_classifier" in run("status", "output/e")
    assert "3 classes" in run("check", "folder", "--data_dir", photos)
    said = run("run", "@" + str(ROOT / "scripts/reproduce/pascal.args"), "--dry_run")
    assert said.splitlines()[0].startswith("semantic-aug fine-tune ")
    assert "/site-packages/semantic_aug/scripts/scripts/slurm/" in run(
        "submit", *of, "--dry_run", "train_classifier:", *head
    )
