"""What stages cost: appended by each process, summed by stage, method, trial and device."""

import json

import pytest
import torch

from semantic_aug.experiment import timing
from semantic_aug.experiment.config import write_config
from semantic_aug.experiment.names import Trial
from semantic_aug.experiment.timing import (
    FINE_TUNE,
    GENERATE,
    TRAIN,
    read_timing,
    seconds_per_trial,
    timed,
)

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that says how late it is when it is told."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(timing.time, "time_ns", lambda: int(now[0] * 1e9))
    return now


def work(clock, folder, seconds, images=None, *where, **options):
    with timed(folder, *where, **options) as work:
        clock[0] += seconds
        work.images = images


def test_interrupted_and_shared_work_is_summed(tmp_path, clock, monkeypatch):
    where = (GENERATE, "aug", Trial(0, 2), CPU)
    work(clock, tmp_path, 3, 10, *where)
    with pytest.raises(KeyboardInterrupt), timed(tmp_path, *where):
        clock[0] += 2
        raise KeyboardInterrupt
    monkeypatch.setattr(timing, "hostname", lambda: "another")
    work(clock, tmp_path, 5, 20, *where)
    work(clock, tmp_path, 9, 0, *where)  # nothing was left to do
    (row,) = read_timing(tmp_path)
    assert row == {
        "stage": GENERATE, "method": "aug", "seed": 0, "examples_per_class": 2, "device": "cpu",
        "images": 30, "seconds": 10.0,
    }  # fmt: skip
    assert json.loads((tmp_path / "timing.json").read_text()) == [row]
    assert len(list((tmp_path / "timing").iterdir())) == 2


def test_work_done_again_replaces_what_was_in_vain(tmp_path, clock):
    where = (TRAIN, "real", Trial(0, 1), CPU)
    work(clock, tmp_path, 3, 10, *where, again=True)
    work(clock, tmp_path, 4, 10, *where, again=True)
    work(clock, tmp_path, 1, 10, TRAIN, "real", Trial(1, 1), CPU, again=True)
    assert [(row["seed"], row["seconds"]) for row in read_timing(tmp_path)] == [(0, 4), (1, 1)]


def test_the_clocks_of_nodes_may_differ(tmp_path, clock, monkeypatch):
    where = (TRAIN, "real", Trial(0, 1), CPU)
    clock[0] = 1000
    work(clock, tmp_path, 3, 10, *where, again=True)
    clock[0] = 0  # on another node
    monkeypatch.setattr(timing, "hostname", lambda: "another")
    work(clock, tmp_path, 4, 10, *where, again=True)
    assert [row["seconds"] for row in read_timing(tmp_path)] == [4]


def test_words_of_several_trials_that_are_trained_together_share_the_time(tmp_path, clock):
    together = [Trial(0, 1), Trial(0, 2), Trial(0, 2), Trial(0, 2)]
    work(clock, tmp_path, 8, 400, FINE_TUNE, "", together, CPU)
    rows = read_timing(tmp_path)
    assert [(row["examples_per_class"], row["seconds"], row["images"]) for row in rows] == [
        (1, 2, 100),
        (2, 6, 300),
    ]


def test_torn_and_damaged_lines_are_left_out(tmp_path, clock, caplog):
    work(clock, tmp_path, 3, 10, TRAIN, "real", Trial(0, 1), CPU)
    (file,) = (tmp_path / "timing").iterdir()
    line, before = json.loads(file.read_text()), read_timing(tmp_path)
    file.write_text(file.read_text() + '{"stage": "train')
    assert read_timing(tmp_path) == before
    assert not caplog.text  # as a process that was killed leaves it
    for change in (
        {"stage": 3}, {"method": None}, {"seed": "0"}, {"examples_per_class": [1]}, {"device": 0},
        {"images": "ten"}, {"images": 10**400}, {"images": -1}, {"seconds": "three"},
        {"seconds": None}, {"seconds": float("inf")}, {"seconds": float("nan")}, {"again": "no"},
        {"finished": "now"}, {"colour": "red"}, [], "[" * 100_000, "\xff", None,
    ):  # fmt: skip
        caplog.clear()
        text = change if isinstance(change, str) else json.dumps(change and line | change)
        text = json.dumps(line) + "\n" + text + "\n" + json.dumps(line) + "\n"
        file.write_text(text, encoding="latin-1")
        assert [row["seconds"] for row in read_timing(tmp_path)] == [6], change
        assert f"{file}: a damaged line is left out" in caplog.text
        assert seconds_per_trial(tmp_path, "real", (), 1) == {TRAIN: 6}


@pytest.mark.parametrize("aug, expected", [("textual-inversion", 30), ("real-guidance", None)])
def test_words_cost_where_they_are_used(tmp_path, clock, aug, expected):
    for seed, seconds in ((0, 20), (1, 40)):
        trial = Trial(seed, 4)
        work(clock, tmp_path, seconds, 5, FINE_TUNE, "", trial, CPU)
        work(clock, tmp_path, 6, 5, GENERATE, "aug", trial, CPU)
        work(clock, tmp_path, 7, 5, GENERATE, "other", trial, CPU)
        work(clock, tmp_path, 8, 5, GENERATE, "aug", Trial(seed, 1), CPU)
        work(clock, tmp_path, 2, 5, TRAIN, "aug", trial, CPU)
        write_config(tmp_path / "aug" / trial.name, {"edits": [{"aug": aug}]}, {})
    found = seconds_per_trial(tmp_path, "aug", ["aug"], 4)
    assert found.pop(FINE_TUNE, None) == expected
    assert found == {GENERATE: 6, TRAIN: 2}
    assert seconds_per_trial(tmp_path, "aug", (), 4) == {TRAIN: 2}
    assert seconds_per_trial(tmp_path, "real", (), 4) == {}
