"""Ending when a scheduler asks for it, and going on later as if nothing had been."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from diffusers import PNDMScheduler

import fine_tune
import generate_augmentations
from semantic_aug.cli.command import command
from semantic_aug.experiment.interrupts import (
    SIGNALS,
    TRY_AGAIN,
    Stopped,
    end_at_once_by_ctrl_c,
    stop_deferred,
    stoppable,
)
from semantic_aug.experiment.processes import Reporter, read_processes
from semantic_aug.synthesis.records import read_records
from semantic_aug.words import session, training


def send(number=signal.SIGUSR1):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_ends_with_a_status_of_its_own_and_one_line(number, capsys):
    cleaned = []

    @command
    def main(argv=None):
        try:
            send(number)
            raise AssertionError("the signal has had no effect")
        finally:
            send(number)  # another one does not disturb the cleaning up
            cleaned.append(True)

    before = {each: signal.getsignal(each) for each in SIGNALS}
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == TRY_AGAIN == 75
    name = signal.Signals(number).name
    assert capsys.readouterr().err == f"ended by {name}; the same command goes on from here\n"
    assert cleaned
    assert {each: signal.getsignal(each) for each in SIGNALS} == before


COMMANDS = (
    "fine_tune.py", "fine_tune_upstream.py", "aggregate_embeddings.py",
    "generate_augmentations.py", "train_classifier.py", "-m semantic_aug.report",
)  # fmt: skip


def interrupted(folder, package, *words):
    """Status, stdout and stderr of a command to which Ctrl-C comes as it imports a package."""
    (folder / f"{package}.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"
    )
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=15,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_while_packages_are_imported_is_one_line(tmp_path, command):
    flags = ["--experiment_name=e", f"--output_dir={tmp_path}"]
    if command != "aggregate_embeddings.py":
        flags += ["--dataset=folder", f"--data_dir={tmp_path}"]
    ended = interrupted(tmp_path, "torch", *command.split(), *flags)
    assert ended == (130, "", "interrupted; the same command goes on from what is written\n")


@pytest.mark.parametrize("command", [*COMMANDS, "-m semantic_aug.status", "-m semantic_aug"])
def test_ctrl_c_before_a_command_knows_its_flags_is_one_line(tmp_path, command):
    """The parser of all commands imports difflib, and --help needs nothing that takes longer."""
    ended = interrupted(tmp_path, "difflib", *command.split(), "--help")
    assert ended == (130, "", "interrupted; the same command goes on from what is written\n")


def test_ctrl_c_in_a_command_is_an_exception_again():
    handler = signal.getsignal(signal.SIGINT)
    try:
        end_at_once_by_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is not handler
        with pytest.raises(KeyboardInterrupt), stoppable():
            send(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as behind nohup
        end_at_once_by_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


def test_a_deferred_end_comes_after_the_block():
    done = []
    with stoppable(), pytest.raises(Stopped), stop_deferred() as asked:
        assert not asked()
        send()
        assert asked()
        done.append(True)
    assert done
    with stoppable():
        with pytest.raises(Stopped), stop_deferred():
            send()
        send()  # nothing more comes of it
    with stoppable(), stop_deferred() as asked:  # what was before is forgotten
        assert not asked()


def test_a_deferred_ctrl_c_comes_after_the_block_and_a_second_at_once():
    with pytest.raises(KeyboardInterrupt), stop_deferred() as asked:
        send(signal.SIGINT)
        assert asked()
    reached = []
    with pytest.raises(KeyboardInterrupt), stop_deferred():
        send(signal.SIGINT)
        reached.append("after the first")
        send(signal.SIGINT)
        reached.append("after the second")
    assert reached == ["after the first"]
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_deferred() as asked:
            send(signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, handler)


def ends(main, *argv):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, argv)))
    assert ended.value.code == TRY_AGAIN


def experiment(workdir, name):
    return workdir / "output" / name


def after(calls, monkeypatch, number=signal.SIGUSR1):
    """Send a signal when work has been counted so often."""
    counted, original = [], Reporter.count

    def count(self, images):
        counted.append(images)
        if len(counted) == calls:
            send(number)
        original(self, images)

    monkeypatch.setattr(Reporter, "count", count)


def words_of(folder):
    return {p.parent.name: p.read_bytes() for p in folder.glob("fine-tuned/*/*/learned*")}


def test_fine_tuning_leaves_a_checkpoint_at_any_step(photos, small_model, workdir, monkeypatch):
    flags = [
        "--dataset=folder", f"--data_dir={photos}", f"--model_path={small_model}",
        "--resolution=32", "--initializer_token=motor", "--max_train_steps=7",
        "--checkpointing_steps=100", "--train_batch_size=2", "--report_to=none",
    ]  # fmt: skip
    fine_tune.main([*flags, "--experiment_name=whole"])
    expected = words_of(experiment(workdir, "whole"))
    assert len(expected) == 3
    with monkeypatch.context() as patch:
        after(3, patch)
        ends(fine_tune.main, *flags, "--experiment_name=e")
    folder = experiment(workdir, "e")
    assert not words_of(folder)
    assert len(list(folder.glob("fine-tuned/*/*/checkpoint-3.pt"))) == 3
    (process,) = read_processes(folder)
    assert (process.state, process.trials) == ("stopped", ["seed=0_ex=1"])
    fine_tune.main([*flags, "--experiment_name=e"])
    assert words_of(folder) == expected  # to the last bit
    assert not list(folder.glob("fine-tuned/*/*/checkpoint*"))


@pytest.mark.slow
def test_images_of_validation_stop_between_denoising_steps(
    photos, small_model, workdir, monkeypatch
):
    """Once between steps of training, once at the end; nothing is missing afterwards."""
    flags = [
        "--dataset=folder", f"--data_dir={photos}", f"--model_path={small_model}",
        "--classes", "cat", "toy train", "--max_train_steps=2", "--train_batch_size=1",
        "--report_to=none", "--validation_prompt=a photo of a *", "--validation_steps=1",
        "--num_validation_images=2",
    ]  # fmt: skip
    monkeypatch.setattr(session, "VALIDATION_IMAGE_STEPS", 3)
    monkeypatch.setattr(training, "VALIDATION_BATCHES", 1)
    done, original = [], PNDMScheduler.step
    each = 4  # steps of PNDM in an image

    def step(self, *args, **kwargs):
        done.append(None)
        if len(done) == stop_at:
            send()
        return original(self, *args, **kwargs)

    def run(name, stop=0):
        nonlocal stop_at
        stop_at = stop
        done.clear()
        argv = [*flags, f"--experiment_name={name}"]
        ends(fine_tune.main, *argv) if stop else fine_tune.main(argv)
        return len(done)

    def written(name):
        root = experiment(workdir, name) / "fine-tuned"
        return {p.relative_to(root): p.read_bytes() for p in root.glob("*/*/**/*") if p.is_file()}

    stop_at = 0
    monkeypatch.setattr(PNDMScheduler, "step", step)
    assert run("whole") == 2 * 2 * 2 * each  # two validations of two words with two images
    expected = written("whole")
    assert len(expected) == 2 * (1 + 1 + 4)  # word, losses, images

    assert run("e", 2 * each + 2) == 2 * each + 2  # within the second word's first image
    there = {path.name for path in written("e")}
    assert there == {"checkpoint-1.pt", "loss.csv", "000001-000.png", "000001-001.png"}
    at_the_end = 4 * each + each + 1  # those of step 1 again, and the first of step 2
    assert run("e", at_the_end) == at_the_end
    there = {path.name for path in written("e")}
    assert "checkpoint-2.pt" in there and "learned_embeds.safetensors" not in there
    assert {"000001-001.png", "000002-000.png"} < there and "000002-001.png" not in there
    assert run("e") == 4 * each
    assert written("e") == expected


def test_generation_keeps_what_is_computed(photos, small_model, workdir, monkeypatch):
    flags = [
        "--dataset=folder", f"--data_dir={photos}", f"--model_path={small_model}",
        "--resolution=32", "--num_inference_steps=2", "--num_synthetic=4", "--batch_size=2",
    ]  # fmt: skip

    def images(name):
        folder = experiment(workdir, name) / "aug/seed=0_ex=1"
        return {path.name: path.read_bytes() for path in folder.glob("*.png")}

    generate_augmentations.main([*flags, "--experiment_name=whole"])
    with monkeypatch.context() as patch:
        after(2, patch, signal.SIGTERM)  # two of six blocks are on disk, and one is computed
        ends(generate_augmentations.main, *flags, "--experiment_name=e")
    folder = experiment(workdir, "e") / "aug/seed=0_ex=1"
    there = read_records(folder)
    assert {record["file_name"] for record in there} == set(images("e"))
    assert len(there) == 6
    assert (folder / "metadata.jsonl").read_text().count("\n") == 6
    generate_augmentations.main([*flags, "--experiment_name=e"])
    assert images("e") == images("whole")
    lines = [path.read_text().splitlines() for path in (folder / "records").iterdir()]
    assert sum(map(len, lines)) == 12  # nothing twice
    assert [process.state for process in read_processes(experiment(workdir, "e"))] == [
        "stopped",
        "done",
    ]
