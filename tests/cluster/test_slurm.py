"""The whole chain on the sample: through a real SLURM, from one launch, from eight at once.

All of them must give what a plain local run gives, to the byte.
"""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import slurm
from conftest import OF_CLUSTERS, ROOT
from slurm import wait_for

pytestmark = pytest.mark.slurm

CLASSES = ["ball_bearing", "hex_nut", "spur_gear", "washer"]
FLAGS = [
    "--dataset", "mvip", "--data_dir", ROOT / "sample/mvip", "--classes", *CLASSES,
    "--model_path", ROOT / "sample/model", "--examples_per_class", "1", "2",
    "fine_tune:", "--max_train_steps", "40", "--train_batch_size", "1", "--classes_per_step", "2",
    "--checkpointing_steps", "10", "--report_to", "none",
    "generate:", "--num_synthetic", "2", "--num_inference_steps", "6", "--batch_size", "4",
    "train_classifier:", "--classifier_backbone", ROOT / "sample/backbone", "--num_epochs", "2",
    "--iterations_per_epoch", "4", "--augmentation", "none",
]  # fmt: skip
COMMANDS = (
    "fine_tune.py", "aggregate_embeddings.py", "generate_augmentations.py", "train_classifier.py",
)  # fmt: skip
WORDS, IMAGES = 2 * len(CLASSES), 3 * len(CLASSES) * 2


@pytest.fixture(scope="module", autouse=True)
def environ():
    """What all processes here get: one thread each, so that cores do not change a sum."""
    ours = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    ours["ACTIVATE"] = f"PATH={Path(sys.executable).parent}:$PATH"
    outside = {k: v for k, v in os.environ.items() if not k.startswith(OF_CLUSTERS)}
    return outside | ours


@pytest.fixture(scope="module")
def cluster(environ):
    """The environment in which sbatch and so on reach a SLURM of one node."""
    missing = slurm.missing_programs()
    if missing:
        pytest.skip(f"no SLURM here: {', '.join(missing)} missing (apt install slurmctld slurmd "
                    "slurm-client munge)")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:  # munge wants it open to all
        reached = slurm.start(Path(name))
        try:
            yield environ | reached
        finally:
            slurm.stop(Path(name), reached)


def chain(*words, cwd, env, **options):
    line = [sys.executable, "-m", "semantic_aug.chain", *map(str, words)]
    return subprocess.run(line, cwd=cwd, env=env, text=True, check=True, **options)


@pytest.fixture(scope="module")
def local(environ, tmp_path_factory) -> Path:
    """The experiment, run here by one process after the other."""
    folder = tmp_path_factory.mktemp("local")
    chain("run", "--experiment_name", "e", *FLAGS, cwd=folder, env=environ)
    found = contents(folder / "output/e")
    assert sum(name.endswith("learned_embeds.safetensors") for name in found) == WORDS
    assert sum(name.startswith("aug/") and name.endswith(".png") for name in found) == IMAGES
    assert sum("results_" in name for name in found) == 2
    return folder / "output/e"


def contents(experiment: Path) -> dict[str, str]:
    """What a run gives, by file: digests; of config.json the settings, of tables no seconds.

    Left out is what tells of the run itself: who did what when.
    """
    found = {}
    for path in sorted(experiment.rglob("*")):
        name = path.relative_to(experiment).as_posix()
        if path.is_dir() or re.match(r"(processes|slurm|timing|logs)\b|.*/records/", name):
            continue
        content = path.read_bytes()
        if path.name == "config.json":
            content = json.dumps(json.loads(content)["settings"]).encode()
        if path.name == "summary.csv":
            rows = [line.split(",") for line in content.decode().splitlines()]
            kept = [n for n, head in enumerate(rows[0]) if "second" not in head
                    and "minute" not in head]  # fmt: skip
            content = repr([[row[n] for n in kept] for row in rows]).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def records(experiment: Path) -> list[str]:
    """The images in all record files: each once, if nothing was made twice."""
    lines = [
        json.loads(line)
        for path in experiment.glob("aug/*/records/*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return sorted(f"{line['examples_per_class']} {line['file_name']}" for line in lines)


def assert_same(experiment: Path, local: Path) -> None:
    assert contents(experiment) == contents(local)
    assert records(experiment) == records(local)
    assert len(records(local)) == len(set(records(local))) == IMAGES
    assert not list(experiment.rglob("*.tmp"))


# --- SLURM -----------------------------------------------------------------------------------


def submit(folder: Path, env, *words) -> dict[str, str]:
    """Submit the chain; ids of the jobs by stage."""
    line = [ROOT / "scripts/slurm/submit.sh", "--experiment_name", "e", *FLAGS]
    line += [*words, "--", "--time=10"]
    done = subprocess.run(list(map(str, line)), cwd=folder, env=env, text=True, check=True,
                          stdout=subprocess.PIPE)  # fmt: skip
    return dict(re.findall(r"^(\w+): job (\d+)$", done.stdout, re.MULTILINE))


def states(env, job: str) -> dict[str, str]:
    """The state of a job, or of each task of an array, by number."""
    asked = ["scontrol", "show", "job", "--oneliner", job]
    text = subprocess.run(asked, env=env, capture_output=True, text=True).stdout
    found = {}
    for line in text.splitlines():
        values = dict(word.split("=", 1) for word in line.split() if "=" in word)
        found[values.get("ArrayTaskId", "")] = values["JobState"]
        if values.get("Reason") == "DependencyNeverSatisfied":
            found[values.get("ArrayTaskId", "")] = "NEVER"
    return found


ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "NEVER"}


def ended(env, *jobs) -> list[dict[str, str]] | None:
    """The states of jobs, once all have ended."""
    found = [states(env, job) for job in jobs]
    return found if all(set(each.values()) <= ENDED for each in found) else None


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((folder / "output/e/slurm").glob("*")))


def test_an_array_of_three_gives_what_a_local_run_gives(cluster, local, tmp_path):
    jobs = submit(tmp_path, cluster, "--array", "3")
    assert list(jobs) == ["fine_tune", "aggregate", "generate", "train_classifier"]
    found = wait_for(lambda: ended(cluster, *jobs.values()), 1200)
    three = {str(n): "COMPLETED" for n in range(3)}
    assert found == [three, {"": "COMPLETED"}, three, three], logs(tmp_path)
    assert_same(tmp_path / "output/e", local)
    # two trials for three tasks
    assert "nothing to do: shard 2 of 3 has none of 2 trials" in logs(tmp_path)
    status = subprocess.run(
        [sys.executable, "-m", "semantic_aug.status", "output/e"], cwd=tmp_path, env=cluster,
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert re.search(rf"^fine_tune \(words\) +{WORDS} +{WORDS} +0$", status, re.MULTILINE), status
    assert re.search(rf"^generate_augmentations aug \(images\) +{IMAGES} +{IMAGES} +0$", status,
                     re.MULTILINE), status  # fmt: skip


def test_tasks_killed_requeued_and_asked_to_end_then_submitted_again(cluster, local, tmp_path):
    experiment = tmp_path / "output/e"
    jobs = submit(tmp_path, cluster, "--array", "3")
    first = jobs["fine_tune"]

    def slurm_says(*words):
        subprocess.run(words, env=cluster, check=True)

    wait_for(lambda: list(experiment.glob("fine-tuned/*/*/checkpoint-10.pt")), 600)
    slurm_says("scancel", f"{first}_0")
    slurm_says("scontrol", "requeue", f"{first}_1")
    slurm_says("scancel", "--batch", "--signal=USR1", f"{first}_2")  # as --signal=B:USR1 does it
    wait_for(lambda: "asked to end: goes back into the queue" in logs(tmp_path), 300)
    assert "ended by SIGUSR1; the same command goes on from here" in logs(tmp_path)
    found = wait_for(lambda: ended(cluster, first), 900)
    assert found == [{"0": "CANCELLED", "1": "COMPLETED", "2": "COMPLETED"}], logs(tmp_path)
    assert len(re.findall(r", run 2 on ", logs(tmp_path))) == 2
    assert re.search(r": goes on from step \d+ of 40", logs(tmp_path))
    # Dependants run only after success: these never will.
    later = [jobs[stage] for stage in ("aggregate", "generate", "train_classifier")]
    wait_for(lambda: ended(cluster, *later), 60)
    assert not (experiment / "fine-tuned-merged").exists()
    words = {path: path.read_bytes() for path in experiment.glob("fine-tuned/*/*/learned*")}
    assert 0 < len(words) < WORDS
    times = {path: path.stat().st_mtime_ns for path in words}

    jobs = submit(tmp_path, cluster, "--array", "2%2")  # of another size
    found = wait_for(lambda: ended(cluster, *jobs.values()), 1200)
    assert {state for each in found for state in each.values()} == {"COMPLETED"}, logs(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in words} == times  # nothing twice
    assert_same(experiment, local)


def test_sbatch_that_refuses_leaves_nothing_in_the_queue(cluster, tmp_path):
    line = [ROOT / "scripts/slurm/submit.sh", "--experiment_name", "e", *FLAGS]
    line += ["--", "--partition=nowhere"]
    done = subprocess.run(list(map(str, line)), cwd=tmp_path, env=cluster, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 2
    assert "nothing is submitted: " in done.stderr and "partition" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- without SLURM ---------------------------------------------------------------------------


def flags_for(command: str, cwd: Path, env) -> list[str]:
    """What the chain gives to a command."""
    done = chain("run", "--dry_run", "--experiment_name", "e", *FLAGS, cwd=cwd, env=env,
                 stdout=subprocess.PIPE)  # fmt: skip
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    return next(line[2:] for line in lines if line[1] == command)


def test_two_processes_of_one_launch(environ, local, tmp_path):
    accelerate = Path(sys.executable).parent / "accelerate"
    for command in COMMANDS:
        launch = [accelerate, "launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
        line = [*launch, ROOT / command, *flags_for(command, tmp_path, environ)]
        subprocess.run(list(map(str, line)), cwd=tmp_path, env=environ, check=True)
    assert_same(tmp_path / "output/e", local)
    shards = {
        (process["stage"], tuple(process["shard"]))
        for path in (tmp_path / "output/e/processes").glob("*.json")
        for process in [json.loads(path.read_text())]
    }
    for stage in ("fine_tune", "generate_augmentations"):
        assert {(stage, (0, 2)), (stage, (1, 2))} <= shards


def test_eight_processes_start_at_the_same_instant(environ, local, tmp_path):
    """Two of each share, which is the worst case: all is done twice, and comes out once."""
    for command in COMMANDS:
        flags, started = flags_for(command, tmp_path, environ), []
        for number in range(8):
            shard = [f"--shard_index={number % 4}", "--num_shards=4"]
            line = [sys.executable, str(ROOT / command), *flags, *shard]
            started.append(subprocess.Popen(line, cwd=tmp_path, env=environ, text=True,
                                            stdout=subprocess.DEVNULL,
                                            stderr=subprocess.PIPE))  # fmt: skip
        for process in started:
            _, text = process.communicate(timeout=1200)
            assert process.returncode == 0, text
    experiment = tmp_path / "output/e"
    assert contents(experiment) == contents(local)
    assert set(records(experiment)) == set(records(local))
    assert not list(experiment.rglob("*.tmp"))
    for file in experiment.glob("processes/*.json"):
        assert json.loads(file.read_text())["state"] == "done"
