"""What processes say of themselves, and what status.py makes of it."""

import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import write_trial

from semantic_aug import UserError
from semantic_aug.cluster import status
from semantic_aug.evaluation.results import confusion_file
from semantic_aug.experiment import processes
from semantic_aug.experiment.files import derive, hostname
from semantic_aug.experiment.names import Trial, merged_file
from semantic_aug.experiment.processes import (
    DONE,
    FAILED,
    KILLED,
    RUNNING,
    STOPPED,
    at_work,
    read_processes,
)
from semantic_aug.experiment.timing import AGGREGATE, FINE_TUNE, GENERATE, TRAIN, timed

ONE, TWO = Trial(0, 1), Trial(1, 4)
GONE = 2**22 + 1  # more than Linux gives to a process


def states(folder):
    return [process.state for process in read_processes(folder)]


def test_a_process_says_what_it_does_and_how_it_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with at_work(tmp_path, GENERATE, {ONE: (8, 8), TWO: (4, 4)}, "aug", (3, 4)) as reporter:
        reporter.works_on([TWO])
        (process,) = read_processes(tmp_path)
        assert (process.state, process.trials, process.job) == (RUNNING, [TWO.name], "12_3")
        assert (process.stage, process.method, process.shard) == (GENERATE, "aug", (3, 4))
        assert process.wanted == {ONE.name: [8, 8], TWO.name: [4, 4]}
        reporter.count(2)
    (process,) = read_processes(tmp_path)
    assert (process.state, process.trials, process.images) == (DONE, [], 2)


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (UserError("no\nroom"), FAILED, "no room"),
        (ValueError("a bug"), FAILED, "ValueError: a bug"),
        (SystemExit(1), FAILED, "exit status 1"),
        (KeyboardInterrupt(), STOPPED, ""),
        (processes.Stopped("SIGUSR1"), STOPPED, ""),
    ],
)
def test_how_it_ends(tmp_path, error, state, message):
    with pytest.raises(type(error)), at_work(tmp_path, TRAIN, {ONE: (1, 9)}, "real") as reporter:
        reporter.works_on([ONE])
        raise error
    (process,) = read_processes(tmp_path)
    assert (process.state, process.message, process.trials) == (state, message, [ONE.name])


def test_the_rate_leaves_out_what_was_begun_nobody_knows_when(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    with at_work(tmp_path, GENERATE, {ONE: (90, 90)}, "aug") as reporter:
        now[0] += 60  # a model is loaded
        for _ in range(3):
            now[0] += 4
            reporter.count(8)
    (process,) = read_processes(tmp_path)
    assert (process.images, process.counted, process.seconds) == (24, 16, 8.0)


def test_a_silent_process_was_killed(tmp_path, monkeypatch):
    """Here at once, elsewhere after a while; by the clock of the file system, not of a node."""
    monkeypatch.setattr(processes, "BEAT", 0.05)
    with at_work(tmp_path, FINE_TUNE, {ONE: (1, 1)}):
        (path,) = (tmp_path / "processes").iterdir()
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 5
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert states(tmp_path) == [RUNNING]  # it has written again meanwhile
    text = json.loads(path.read_text()) | {"state": RUNNING}
    path.write_text(json.dumps(text | {"pid": GONE}))
    assert states(tmp_path) == [KILLED]
    path.write_text(json.dumps(text | {"pid": GONE, "host": "elsewhere"}))
    monkeypatch.setattr(processes, "now_at", lambda folder: path.stat().st_mtime + 100)
    assert states(tmp_path) == [RUNNING]
    monkeypatch.setattr(processes, "now_at", lambda folder: path.stat().st_mtime + 200)
    assert states(tmp_path) == [KILLED]


def test_a_beat_and_the_work_write_one_file(tmp_path):
    with at_work(tmp_path, GENERATE, {ONE: (1, 1)}) as reporter:
        with ThreadPoolExecutor(4) as threads:  # each like the one that beats
            written = [threads.submit(reporter.write) for _ in range(200)]
            reporter.works_on([ONE])
        assert [each.result() for each in written] == [None] * 200
        assert [process.trials for process in read_processes(tmp_path)] == [[ONE.name]]


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "paint"}, {"stage": 3}, {"state": "lost"}, {"pid": "12"}, {"pid": 10**30},
        {"host": None}, {"message": 5}, {"job": []}, {"shard": [0]}, {"shard": "01"},
        {"shard": [0, "2"]}, {"shard": 1}, {"wanted": []}, {"wanted": {"first": [1, 1]}},
        {"wanted": {ONE.name: 5}}, {"wanted": {ONE.name: ["1", 1]}}, {"trials": [TWO.name]},
        {"trials": 1}, {"trials": [[]]}, {"images": "many"}, {"counted": 10**400},
        {"seconds": "long"}, {"seconds": float("nan")}, {"seconds": -1}, {"colour": "red"}, "{torn",
        "[]", "[" * 100_000, "\xff",
    ],
    ids=lambda change: f"{change}"[:30],
)  # fmt: skip
def test_a_damaged_file_is_named_and_left_out(tmp_path, caplog, capsys, change):
    with at_work(tmp_path, GENERATE, {ONE: (1, 1)}, "aug") as reporter:
        reporter.works_on([ONE])
        path = reporter.path
    whole = json.loads(path.read_text()) | {"trials": [ONE.name], "state": RUNNING}
    text = change if isinstance(change, str) else json.dumps(whole | change)
    path.with_name("1.json").write_text(text, encoding="latin-1")
    assert states(tmp_path) == [DONE]
    assert f"{path.with_name('1.json')} is damaged: left out" in caplog.text
    status.main([str(tmp_path)])
    assert "generate_augmentations aug" in capsys.readouterr().out


def test_two_processes_of_one_share_are_named(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    with at_work(tmp_path, GENERATE, {ONE: (1, 1)}, "aug", (0, 2)):
        for method, shard, trial in (
            ("aug", (1, 2), ONE),
            ("b", (0, 2), ONE),
            ("aug", (0, 2), TWO),
        ):
            with at_work(tmp_path, GENERATE, {trial: (1, 1)}, method, shard):
                assert not caplog.records
        with at_work(tmp_path, GENERATE, {ONE: (1, 1)}, "aug", (0, 2)):
            assert f"process {os.getpid()} on" in caplog.text
            assert "does the same work" in caplog.text


def test_what_killed_processes_left_half_written_is_removed(tmp_path):
    left = [
        tmp_path / name / f".x.0.{hostname()}-{GONE}.tmp"
        for name in ("", "processes", "cache", "aug/seed=0_ex=1")
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    with at_work(tmp_path, TRAIN, {ONE: (1, 1)}):
        # Generation cleans its folders itself, once it knows that they are of its settings.
        assert [path.exists() for path in left] == [False, False, False, True]


def test_a_full_disk_breaks_no_command_that_does_not_need_it(tmp_path, monkeypatch):
    with at_work(tmp_path, TRAIN, {ONE: (1, 1)}, "real"):

        def full(*_):
            raise OSError(122, "Disk quota exceeded")

        monkeypatch.setattr(processes, "write_text", full)


def test_derived_texts_lack_nothing_that_another_process_adds_meanwhile(tmp_path):
    source, derived, added = tmp_path / "source", tmp_path / "derived", iter("bc")
    source.write_text("a")

    def write():
        text = source.read_text()
        source.write_text(text + next(added, ""))  # as if another process had done it just then
        derived.write_text(text)
        return text

    assert derive(source.read_text, write) == "abc"
    assert derived.read_text() == source.read_text() == "abc"


# --- status ----------------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path):
    """Words of one trial and of none of another, half of the images, one result."""
    folder = tmp_path / "e"
    for name in ("cat", "dog"):
        file = folder / "fine-tuned" / ONE.name / name / "learned_embeds.safetensors"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"rows" * 1024)
    (folder / "fine-tuned" / TWO.name).mkdir()
    merged_file(folder, ONE).parent.mkdir()
    merged_file(folder, ONE).write_bytes(b"rows")
    images = folder / "aug" / ONE.name
    (images / "records").mkdir(parents=True)
    lines = []
    for number in range(3):
        name = f"{number:06d}-000.png"
        (images / name).write_bytes(b"png")
        lines.append({"file_name": name, "label": 0, "class_name": "cat", "source": str(number),
                      "index": number, "repeat": 0})  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (images / "config.json").write_text('{"id": "x"}')
    (images / "records" / "x.1.jsonl").write_text(text + '{"file_name": "torn')
    (images / "000009-000.png").write_bytes(b"without a record")
    write_trial(folder / "results" / "real", TWO.seed, TWO.examples_per_class, 0.5)
    write_trial(folder / "results" / "real", ONE.seed, ONE.examples_per_class, 0.5)
    confusion_file(folder / "results" / "real", ONE).unlink()  # so this result does not count
    return folder


def lines_of(folder):
    found = status.status_of(folder)
    return {(line.stage, line.method, line.trial): line for line in found.trials}, found


def test_what_is_done_is_counted_in_the_folder_alone(experiment):
    lines, _ = lines_of(experiment)
    assert {key: line.done for key, line in lines.items()} == {
        (FINE_TUNE, "", ONE): 2, (FINE_TUNE, "", TWO): 0, (AGGREGATE, "", ONE): 1,
        (AGGREGATE, "", TWO): 0, (GENERATE, "aug", ONE): 3, (TRAIN, "real", TWO): 1,
        (TRAIN, "real", ONE): 0,
    }  # fmt: skip
    assert all(line.wanted is None and line.left is None for line in lines.values())


def test_running_processes_say_what_is_left_and_for_how_long(experiment, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    wanted = {ONE: (6, 6), TWO: (20, 20)}
    with (
        at_work(experiment, GENERATE, wanted, "aug", (0, 2)) as first,
        at_work(experiment, GENERATE, wanted, "aug", (1, 2)) as second,
    ):
        first.works_on([ONE])
        second.works_on([TWO])
        for _ in range(3):
            now[0] += 5
            first.count(4)
        first.write()  # 8 images in 10 s; the other has not said how fast it is
        lines, found = lines_of(experiment)
        one, two = lines[GENERATE, "aug", ONE], lines[GENERATE, "aug", TWO]
        assert (one.done, one.wanted, one.left, one.running) == (3, 6, 3, 1)
        assert (two.done, two.wanted, two.left, two.running) == (0, 20, 20, 1)
        assert one.rate == two.rate == pytest.approx(0.8)
        assert one.seconds_left == pytest.approx(3 / 0.8)
        total = next(line for line in found.sums if line.stage == GENERATE)
        assert (total.done, total.wanted, total.left, total.running) == (3, 26, 23, 2)
        assert total.rate == pytest.approx(1.6)
        assert total.seconds_left == pytest.approx(23 / 1.6)
    lines, _ = lines_of(experiment)
    assert lines[GENERATE, "aug", TWO].seconds_left is None  # nobody is at it


def test_the_rate_of_earlier_work_serves_where_none_is_known_yet(experiment, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    with timed(experiment, FINE_TUNE, trials=ONE) as work:  # the same clock
        now[0] += 20
        work.images = 100
    with at_work(experiment, FINE_TUNE, {TWO: (2, 50)}) as reporter:
        reporter.works_on([TWO])
        lines, _ = lines_of(experiment)
        assert lines[FINE_TUNE, "", TWO].rate == pytest.approx(5)
        assert lines[FINE_TUNE, "", TWO].seconds_left == pytest.approx(10)


def fail(folder, shard, wanted=None):
    with (
        pytest.raises(UserError),
        at_work(folder, GENERATE, wanted or {ONE: (6, 6)}, "aug", shard) as r,
    ):
        r.works_on([ONE])
        raise UserError("no room")


def test_failures_stand_until_somebody_takes_them_up(experiment):
    fail(experiment, (0, 4))
    fail(experiment, (3, 4))
    with at_work(experiment, GENERATE, {ONE: (6, 6)}, "aug", (1, 4)):
        pass  # another share
    lines, found = lines_of(experiment)
    assert lines[GENERATE, "aug", ONE].failed == 2
    assert [process.shard for process in found.failures] == [(0, 4), (3, 4)]
    with at_work(experiment, GENERATE, {ONE: (6, 6)}, "aug", (3, 4)):
        pass  # the same share again
    assert [process.shard for process in lines_of(experiment)[1].failures] == [(0, 4)]
    with at_work(experiment, GENERATE, {ONE: (6, 6)}, "aug", (0, 2)):
        pass  # shared among others
    assert not lines_of(experiment)[1].failures


def test_a_failure_is_forgotten_once_everything_is_there(experiment):
    fail(experiment, (0, 4), {ONE: (3, 3)})
    assert not lines_of(experiment)[1].failures


def test_report(experiment, capsys):
    fail(experiment, (0, 4))
    status.main([str(experiment)])
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{experiment}: ") and "used" in out[0] and "free" in out[0]
    table = [line.split() for line in out]
    assert ["generate_augmentations", "aug", "(images)", "3", "6", "3", "1"] in table
    assert [ONE.name, "2", "?", "?"] in table
    assert out[-1].startswith("failed: generate_augmentations aug, shard 0 of 4 (process ")
    assert out[-1].endswith(f"at {ONE.name}: no room")
    status.main([str(experiment), "--brief"])
    assert ONE.name not in "".join(capsys.readouterr().out.splitlines()[:-1])


def test_watching_shows_it_again_until_it_is_interrupted(experiment, capsys, monkeypatch):
    def sleep(seconds):
        assert seconds == 7
        (experiment / "fine-tuned" / TWO.name / "cat").mkdir(exist_ok=True)
        (experiment / "fine-tuned" / TWO.name / "cat" / "learned_embeds.safetensors").touch()
        if len(shown) == 2:
            raise KeyboardInterrupt
        shown.append(True)

    shown = [True]
    monkeypatch.setattr(status.time, "sleep", sleep)
    status.main([str(experiment), "--watch", "7"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "fine_tune" in line]
    assert [line.split()[2] for line in lines] == ["2", "3"]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_no_experiment(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        status.main([str(tmp_path / name)])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("status.py: error: ") and str(tmp_path / name) in err


def test_disk_used_counts_blocks_of_all_files(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(os.urandom(100_000))
    (tmp_path / "d").write_bytes(os.urandom(5000))
    assert 105_000 <= status.used_bytes(tmp_path) < 130_000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (12.4, "12 s"), (90, "2 min"), (3599, "1 h 00"), (7500, "2 h 05")],
)
def test_durations(seconds, text):
    assert status.duration(seconds) == text
