"""The four commands from one list of flags: here, in sbatch lines, and in the batch scripts."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import OF_CLUSTERS, ROOT

from semantic_aug import UserError
from semantic_aug.__main__ import COMMANDS
from semantic_aug.cluster import chain
from semantic_aug.cluster.chain import SECTIONS, commands_of

FINE_TUNE, AGGREGATE, GENERATE, TRAIN = SECTIONS
PUBLISHED = sorted((ROOT / "scripts" / "reproduce").glob("*.args"))
COMMON = ["--dataset", "mvip", "--experiment_name", "thesis", "--num_trials", "8",
          "--examples_per_class", "1", "2", "4", "8", "16"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def parsers():
    """Each command's parser is built once."""
    patch = pytest.MonkeyPatch()
    built = {stage: chain.parser_of(stage) for stage in SECTIONS}
    patch.setattr(chain, "parser_of", built.__getitem__)
    yield
    patch.undo()


def by_stage(*words, **options):
    found = {}
    for each in commands_of(list(map(str, words)), **options):
        found.setdefault(each.stage, []).append(" ".join(each.argv))
    return found


# --- flags -----------------------------------------------------------------------------------


def test_a_flag_goes_to_every_command_that_knows_it():
    found = by_stage(*COMMON, "--num-vectors=4", "--model_path", "m", "--num_synthetic", "5",
                     "--select", "best_val")  # fmt: skip
    trials = "--experiment_name thesis --num_trials 8 --examples_per_class 1 2 4 8 16"
    assert found == {
        FINE_TUNE: [f"--dataset mvip {trials} --num-vectors=4 --model_path m"],
        AGGREGATE: [trials],
        GENERATE: [f"--dataset mvip {trials} --model_path m --num_synthetic 5"],
        TRAIN: [f"--dataset mvip {trials} --num_synthetic 5 --select best_val"],
    }


def test_flags_of_one_command_alone_go_over_the_others():
    found = by_stage(*COMMON, "--seed", 3, "generate:", "--batch_size", 16, "--seed", 4,
                     "train_classifier:", "--learning_rate", "1e-3")  # fmt: skip
    assert found[GENERATE][0].endswith("--seed 3 --batch_size 16 --seed 4")
    assert found[TRAIN][0].endswith("--seed 3 --learning_rate 1e-3")
    assert found[FINE_TUNE][0].endswith("16 --seed 3")


def test_a_file_may_name_a_command_several_times(tmp_path):
    file = tmp_path / "grid.args"
    file.write_text(
        '# A comment that says what deviates.\n--dataset mvip --experiment_name "a b"\n'
        "generate: --aug_name one --num_synthetic 2\n"
        "generate: --aug_name two  # another method\ntrain_classifier: --aug_name two\n"
    )
    found = by_stage(f"@{file}", "--seed", 7, "generate:", "--num_synthetic", 1)
    common = "--dataset mvip --experiment_name a b"
    assert found[GENERATE] == [
        f"{common} --aug_name one --num_synthetic 2 --seed 7 --num_synthetic 1",
        f"{common} --aug_name two --seed 7 --num_synthetic 1",
    ]
    assert found[TRAIN] == [f"{common} --aug_name two --seed 7"]
    assert found[AGGREGATE] == ["--experiment_name a b --seed 7"]
    assert list(by_stage(f"@{file}", stages=[AGGREGATE, TRAIN])) == [AGGREGATE, TRAIN]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_vector", "4"], "no command knows --num_vector"),
        (["--batch_size=4"], "write generate: --batch_size or train_classifier: --batch_size"),
        (["--learning-rate", "1"], "write fine_tune: --learning_rate or train_classifier:"),
        (["mvip"], "got 'mvip', expected a flag such as --dataset, or one of fine_tune:"),
        (["--dataset_args", "super=1"], "--dataset_args: unknown key 'super'; MVIPDataset has:"),
    ],
)
def test_flags_that_cannot_be_placed(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        commands_of([*words, *COMMON])


def test_flags_that_a_command_refuses(capsys):
    with pytest.raises(SystemExit) as ended:
        commands_of([*COMMON, "generate:", "--strength", "much"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("generate_augmentations.py: error: ")
    with pytest.raises(SystemExit):
        commands_of(["--dataset", "mvip"])
    assert "fine_tune.py: error: the following arguments are required: --experiment_name" in (
        capsys.readouterr().err
    )


def test_a_dataset_that_there_is_not():
    with pytest.raises(UserError, match="--dataset: got 'mvpi', expected "):
        commands_of([*COMMON, "--dataset=mvpi"])


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match=r"cannot read .*coc\.args.*: No such file.*coco\.args"):
        commands_of(["@coc.args"])


# --- published experiments -------------------------------------------------------------------


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda path: path.stem)
def test_published_experiments_are_whole(file):
    found = by_stage(f"@{file}")
    assert list(found) == list(SECTIONS)
    names = [re.search(r"--aug_name (\S+)", line) for line in found[GENERATE]]
    made = {name[1] if name else "aug" for name in names}
    assert len(made) == len(found[GENERATE])  # no two in one folder
    for line in found[TRAIN]:
        used = re.search(r"--aug_name (\S+)", line)
        assert "--num_synthetic 0" in line or (used[1] if used else "aug") in made
    text = file.read_text()
    assert "# Differences from the publication:" in text
    assert not re.search(r"(?<![\w.:])/(home|projects|work|data|tmp)\b", text)  # nobody's paths


@pytest.mark.parametrize("name", ["coco", "pascal", "spurge"])
def test_the_papers_grids_have_its_trials(name):
    (line,) = by_stage(f"@{ROOT}/scripts/reproduce/{name}.args")[FINE_TUNE]
    args = chain.parser_of(FINE_TUNE).parse_args(shlex.split(line))
    assert (args.dataset, args.num_trials) == (name, 8)
    assert args.examples_per_class == [1, 2, 4, 8, 16]
    assert (args.max_train_steps, args.train_batch_size, args.resolution) == (1000, 4, 512)


# --- here ------------------------------------------------------------------------------------


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """A project whose commands note that they ran; fine-tune does what a file `say` says."""
    scripts = tmp_path / "root" / "scripts" / "slurm"
    shutil.copytree(ROOT / "scripts" / "slurm", scripts)
    (tmp_path / "root" / "semantic_aug").mkdir()
    (tmp_path / "root" / "semantic_aug" / "__main__.py").write_text(STUB)
    monkeypatch.setattr(chain, "ROOT", tmp_path / "root")
    monkeypatch.setattr(chain, "PYTHONPATH", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


STUB = """
import pathlib, signal, sys, time
name = sys.argv[1]
with open("ran", "a") as file:
    print(*sys.argv[1:], file=file)
say = pathlib.Path("say")
if name == "fine-tune" and say.exists():
    def stop(*_):
        print("leaves a checkpoint", flush=True)
        raise SystemExit(75)
    if say.read_text() == "late":
        time.sleep(0.5)
        open("starting", "w").close()
        time.sleep(1)
    signal.signal(signal.SIGUSR1, stop)
    if say.read_text().isdigit():
        sys.exit(int(say.read_text()))
    open("started", "w").close()
    time.sleep(20)
"""


def ran(folder):
    return [line.split()[0] for line in (folder / "ran").read_text().splitlines()]


def test_run_runs_all_and_ends_at_the_first_that_fails(stubs, capfd):
    chain.main(["run", *COMMON])
    assert ran(stubs) == [stage.replace("_", "-") for stage in SECTIONS]
    assert set(ran(stubs)) < set(COMMANDS)
    assert "--examples_per_class 1 2 4 8 16" in (stubs / "ran").read_text().splitlines()[1]
    (stubs / "ran").unlink()
    (stubs / "say").write_text("3")
    with pytest.raises(SystemExit) as ended:
        chain.main(["run", *COMMON])
    assert ended.value.code == 3
    assert ran(stubs) == ["fine-tune"]


def test_run_says_what_it_would_run(stubs, capsys):
    chain.main(["run", "--stages", "aggregate", "generate", "--dry_run", *COMMON])
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[:2] for line in lines] == [
        ["python", "aggregate_embeddings.py"],
        ["python", "generate_augmentations.py"],
    ]
    assert not (stubs / "ran").exists()


# --- sbatch ----------------------------------------------------------------------------------


def submit(*words):
    chain.main(["submit", *map(str, words)])


def test_the_sbatch_lines(workdir, capsys, monkeypatch):
    monkeypatch.setenv("EXTRA_SBATCH", "--account=my-group --mem=16G")
    submit("--dry_run", *COMMON, "--array", "16", "train_classifier:", "--batch_size=64", "--",
           "--gpus-per-task=1", "--time=4:00:00")  # fmt: skip
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    extra = ["--account=my-group", "--mem=16G", "--gpus-per-task=1", "--time=4:00:00"]
    before = None
    for stage, line in zip(SECTIONS, lines, strict=True):
        script = line.index(str(ROOT / "scripts" / "slurm" / f"{stage}.sh"))
        flags, argv = line[:script], line[script + 1 :]
        assert flags[:3] == ["sbatch", "--parsable", f"--job-name=thesis-{stage}"]
        assert flags[-4:] == extra
        assert ("--array=0-15" in flags) == (stage != AGGREGATE)
        tail = "%j" if stage == AGGREGATE else "%A_%a"
        assert f"--output=output/thesis/slurm/{stage}-{tail}.log" in flags
        dependency = [flag for flag in flags if flag.startswith("--dependency")]
        assert dependency == ([f"--dependency=afterok:{before}"] if before else [])
        assert ("--kill-on-invalid-dep=yes" in flags) == bool(before)
        assert argv[:2] == (COMMON[2:4] if stage == AGGREGATE else COMMON[:2])
        before = f"{stage.upper()}_ID"
    assert lines[-1][-1] == "--batch_size=64"
    assert not list(workdir.iterdir())  # nothing is written


def test_loras_are_a_step_behind_all_words(capsys, workdir):
    submit("--dry_run", *COMMON, "--array=4", "fine_tune:", "--lora_rank=8")
    words, loras, merging, *_ = capsys.readouterr().out.splitlines()
    assert "--job-name=thesis-fine_tune " in words and "--lora_rank=8" in words
    assert "--job-name=thesis-fine_tune_lora " in loras
    assert "--dependency=afterok:FINE_TUNE_ID " in loras
    assert loras.partition(".sh ")[2] == words.partition(".sh ")[2]  # the same command again
    assert "--dependency=afterok:FINE_TUNE_LORA_ID " in merging and "-aggregate " in merging


@pytest.mark.parametrize("name", ["--experiment-name x", "--experiment_name=x"])
@pytest.mark.parametrize("output", ["--output-dir=elsewhere", "--output_dir elsewhere"])
def test_the_folder_is_that_of_the_flags_in_either_spelling(fakes, capsys, name, output):
    submit("--dataset=mvip", *name.split(), *output.split())
    assert capsys.readouterr().out.endswith("python -m semantic_aug.status elsewhere/x\n")
    assert (fakes / "elsewhere/x/slurm").is_dir()
    assert not (fakes / "output").exists()
    assert "--output=elsewhere/x/slurm/fine_tune-%j.log" in calls(fakes)[0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("16", "0-15"), ("1", "0-0"), ("40%8", "0-39%8"), ("3-9:2", "3-9:2"), ("0-7%2", "0-7%2")],
)
def test_arrays(given, expected):
    assert chain.array_flag(given) == expected


@pytest.mark.parametrize("given", ["0", "1,3,7", "-4", "many", "4-", ""])
def test_arrays_that_are_none(given):
    with pytest.raises(UserError, match="expected a number of tasks, such as 16 or 16%4"):
        chain.array_flag(given)


def fake(folder: Path, name: str, text: str) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {name} \"$@\" >> '{folder}/calls'\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def fakes(workdir, monkeypatch):
    """Programs of SLURM that note how they are called; sbatch gives the ids 1, 2, 3 ..."""
    fake(workdir, "sbatch", f"grep -c ^sbatch '{workdir}/calls'")
    fake(workdir, "scancel", "exit 0")
    fake(workdir, "scontrol", "exit 0")
    monkeypatch.setenv("PATH", f"{workdir / 'bin'}:{os.environ['PATH']}")
    return workdir


def calls(folder):
    path = folder / "calls"
    return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_stage_waits_for_all_of_the_one_before(fakes, tmp_path, capsys):
    file = tmp_path / "two.args"
    file.write_text(f"{shlex.join(COMMON)} generate: --aug_name one generate: --aug_name two")
    submit(f"@{file}", "--array=2")
    out = capsys.readouterr().out.splitlines()
    assert out[:-1] == ["fine_tune: job 1", "aggregate: job 2", "generate: job 3",
                        "generate: job 4", "train_classifier: job 5"]  # fmt: skip
    assert out[-1] == "to follow them: python -m semantic_aug.status output/thesis"
    found = [re.findall(r"--dependency=\S+", " ".join(line)) for line in calls(fakes)]
    assert found == [[]] + [[f"--dependency=afterok:{ids}"] for ids in ("1", "2", "2", "3:4")]
    assert (fakes / "output/thesis/slurm").is_dir()  # where the logs go


def test_a_refused_job_takes_back_those_before_it(fakes, capsys):
    fake(fakes, "sbatch", f"""n=$(grep -c ^sbatch '{fakes}/calls')
if [ $n = 3 ]; then echo 'sbatch: error: invalid account' >&2; exit 1; fi
echo "$n;cluster\"""")  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        submit(*COMMON)
    assert ended.value.code == 2
    assert "error: nothing is submitted: sbatch: error: invalid account" in capsys.readouterr().err
    assert calls(fakes)[-1] == ["scancel", "1", "2"]
    assert "--dependency=afterok:1" in calls(fakes)[1]  # without the cluster's name


def test_no_sbatch_here(workdir, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(workdir))
    with pytest.raises(SystemExit) as ended:
        submit(*COMMON)
    assert ended.value.code == 2
    assert "there is no sbatch here" in capsys.readouterr().err
    assert not list((workdir / "output").glob("*"))  # nothing is left


def test_a_missing_folder_of_the_dataset_is_named(workdir, capsys, monkeypatch):
    monkeypatch.delenv("MVIP_DIR", raising=False)
    submit("--dry_run", *COMMON)
    assert "on this node, data root data/mvip is not a folder: pass" in capsys.readouterr().err
    (workdir / "data/mvip").mkdir(parents=True)
    submit("--dry_run", *COMMON)
    assert "data root" not in capsys.readouterr().err


def test_arrays_are_not_for_a_run_here(capsys):
    with pytest.raises(SystemExit) as ended:
        chain.main(["run", *COMMON, "--array=4"])
    assert ended.value.code == 2
    assert "are for submit" in capsys.readouterr().err


# --- batch scripts ---------------------------------------------------------------------------


def environ(folder, **more):
    ours = {"DA_FUSION_ROOT": str(folder / "root"), "SLURM_JOB_ID": "7"}
    outside = {k: v for k, v in os.environ.items() if not k.startswith(OF_CLUSTERS)}
    return {**outside, **ours, "ACTIVATE": f"PATH='{folder}/bin':$PATH", **more}


def start(folder, **more):
    """A batch script as SLURM starts it: a copy elsewhere."""
    copy = folder / "slurm_script"
    shutil.copy(ROOT / "scripts" / "slurm" / "fine_tune.sh", copy)
    return subprocess.Popen(
        ["bash", copy, "--experiment_name", "a b"], env=environ(folder, **more), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder,
    )  # fmt: skip


@pytest.fixture
def job(stubs):
    """What batch scripts call: a Python, and a `scontrol` that notes how it is called."""
    fake(stubs, "scontrol", "exit 0")
    (stubs / "bin" / "python").symlink_to(sys.executable)
    return stubs


def wait_for_file(path):
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("status", [0, 2, 75])
def test_a_job_has_the_status_of_its_command(job, status):
    (job / "say").write_text(str(status))
    process = start(job)
    text, _ = process.communicate(timeout=20)
    assert process.returncode == status, text
    assert (job / "ran").read_text() == "fine-tune --experiment_name a b\n"
    assert text.startswith("job 7, run 1 on ")
    assert not calls(job)  # nobody asked it to end: no requeue


@pytest.mark.parametrize("when", ["at work", "late"])
def test_a_job_that_is_asked_to_end_goes_back_into_the_queue(job, when):
    (job / "say").write_text(when)
    process = start(job)
    wait_for_file(job / ("started" if when == "at work" else "starting"))
    process.send_signal(signal.SIGUSR1)
    text, _ = process.communicate(timeout=20)
    assert process.returncode == 75, text
    assert "leaves a checkpoint" in text
    assert text.endswith("asked to end: goes back into the queue\n")
    assert calls(job) == [["scontrol", "requeue", "7"]]


def test_a_task_of_an_array_takes_nobody_else_back_into_the_queue(job):
    """The last task's own id is the array's, and would requeue all of them."""
    (job / "say").write_text("at work")
    process = start(job, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3")
    wait_for_file(job / "started")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert calls(job) == [["scontrol", "requeue", "7_3"]]


def test_what_a_launcher_has_started_is_asked_too(job):
    """A launcher that gives its process a session of its own, as accelerate launch does."""
    (job / "say").write_text("at work")
    fake(job, "launch", 'setsid --wait python "$@"')
    process = start(job, LAUNCH="launch")
    wait_for_file(job / "started")
    process.send_signal(signal.SIGUSR1)
    text, _ = process.communicate(timeout=20)
    assert process.returncode == 75, text
    assert "leaves a checkpoint" in text
    assert calls(job)[-1] == ["scontrol", "requeue", "7"]


def test_a_job_is_not_requeued_for_ever(job):
    (job / "say").write_text("at work")
    process = start(job, SLURM_RESTART_COUNT="50")
    wait_for_file(job / "started")
    process.send_signal(signal.SIGUSR1)
    text, _ = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "has been requeued 50 times: it needs a longer --time" in text
    assert ["scontrol", "requeue", "7"] not in calls(job)


def test_what_starts_the_commands_can_be_chosen(job):
    process = start(job, LAUNCH="echo launched")
    text, _ = process.communicate(timeout=20)
    assert text.splitlines()[1] == "launched -m semantic_aug fine-tune --experiment_name a b"


@pytest.mark.parametrize("stage", SECTIONS)
def test_batch_scripts_are_no_sites_own(stage):
    text = (ROOT / "scripts" / "slurm" / f"{stage}.sh").read_text()
    (name,) = re.findall(r'^run_stage (\S+) "\$@"$', text, re.MULTILINE)
    assert name == stage.replace("_", "-") and name in COMMANDS
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", text, re.MULTILINE))
    assert options == {
        "ntasks": "1", "requeue": "", "open-mode": "append", "signal": "B:USR1@60",
    }  # fmt: skip


def test_a_login_node_without_the_packages_is_one_line(tmp_path):
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho Traceback >&2\nexit 1\n")
    bare.chmod(0o755)
    ended = subprocess.run(
        ["bash", ROOT / "scripts/slurm/submit.sh", "--dry_run"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "VENV": str(tmp_path / "absent")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("submit.sh: Python has no torch: ")
    assert ended.stderr.count("\n") == 1
