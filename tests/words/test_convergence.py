"""Words that stop when they have converged: `--stop_when_converged`."""

import math
import os
import statistics
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fine_tune
from semantic_aug.cluster.status import status_of
from semantic_aug.experiment.names import PROCESSES
from semantic_aug.stages import fine_tune as stage
from semantic_aug.words import convergence, session, training
from semantic_aug.words.checkpoints import list_checkpoints, read_checkpoint
from semantic_aug.words.convergence import has_converged, steps_between
from semantic_aug.words.embeddings import read_embeddings, read_header
from semantic_aug.words.training import TrainingSettings, Word

FOLDERS = ("cat", "stop_sign", "toy_train")
LIMIT = 8
STEPS_DONE = [LIMIT, 5, 7]  # of the small model's words, with these
STOPPING = ("--stop_when_converged=0.16", "--convergence_window=4")


@pytest.fixture
def often(monkeypatch):
    """Measure after every step."""
    monkeypatch.setattr(convergence, "PHOTOS_BETWEEN", 1)


@pytest.fixture
def tune(workdir, photos, small_model, called, often):
    """Run fine_tune.py on the small photos; returns the exit status, what it prints and says."""

    def tune(*flags, name="e"):
        return called(
            fine_tune.main, "--dataset=folder", f"--data_dir={photos}", f"--experiment_name={name}",
            f"--model_path={small_model}", "--examples_per_class=2", "--train_batch_size=1",
            "--learning_rate=0.003", "--report_to=none", f"--max_train_steps={LIMIT}", *flags,
        )  # fmt: skip

    return tune


def word(folder, seed=0, name="e") -> Path:
    trial = Path("output", name, "fine-tuned", f"seed={seed}_ex=2")
    return trial / folder / "learned_embeds.safetensors"


def rows_of(path: Path) -> torch.Tensor:
    (rows,) = read_embeddings(path).values()
    return rows


def words_of(name="e") -> dict[str, bytes]:
    root = Path("output", name, "fine-tuned")
    files = root.glob("*/*/learned_embeds.safetensors")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def steps_done(name="e") -> list[int]:
    headers = [read_header(word(folder, name=name)) for folder in FOLDERS]
    return [int(header.get("steps_done", header["steps"])) for header in headers]


def fail(*args, **kwargs):
    raise AssertionError("this should not be called")


# --- the criterion ---------------------------------------------------------------------------


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30),
    st.integers(2, 20),
    st.floats(0.01, 1),
)
def test_the_window_s_share_of_the_variance(losses, count, threshold):
    found = has_converged(losses, count, threshold)
    if len(losses) <= count:
        assert not found
        return
    latest, whole = (statistics.pvariance(part) for part in (losses[-count:], losses))
    if not math.isclose(latest, threshold * whole, rel_tol=1e-6, abs_tol=1e-9):
        assert found == (latest < threshold * whole)


def test_a_loss_that_falls_and_settles():
    falling = [math.exp(-step / 5) for step in range(60)]
    first = next(n for n in range(len(falling)) if has_converged(falling[:n], 10, 0.15))
    assert 10 < first < 25
    assert not any(has_converged(list(range(n)), 10, 0.15) for n in range(24))  # still falling
    assert not has_converged([*falling, math.nan], 10, 0.15)
    assert not has_converged([math.inf, *falling], 10, 0.15)
    assert not has_converged([0.5] * 60, 10, 0.15)  # nothing was learned


def word_of(photos=3, fixed_seed=5) -> Word:
    settings = TrainingSettings(4, 2, 1, 1e-2, "constant", 0, stop_when_converged=0.15)
    posteriors = (torch.arange(photos * 2.0).view(photos, 2, 1, 1, 1).expand(-1, -1, 4, 8, 8),
                  torch.zeros(photos, 2, 4, 8, 8))  # fmt: skip
    rows, generator = [torch.zeros(1, 8)], torch.Generator().manual_seed(1)
    return Word(rows, posteriors, settings, generator, fixed_seed=fixed_seed)


def test_the_fixed_batch_is_always_the_same_and_uses_no_chance_of_the_training():
    first, second = word_of(), word_of()
    drawn = [second.draw(27, 1000) for _ in range(3)]
    fixed = first.fixed_draw(27, 1000)
    for draw in (first.fixed_draw(27, 1000), second.fixed_draw(27, 1000)):
        assert all(torch.equal(getattr(draw, k), getattr(fixed, k))
                   for k in ("latents", "weights", "noise", "timesteps"))  # fmt: skip
        assert draw.template == fixed.template
    for draw in drawn:
        assert torch.equal(first.draw(27, 1000).noise, draw.noise)
    others = [word_of(fixed_seed=seed).fixed_draw(27, 1000) for seed in range(9)]
    assert len({other.template for other in others}) > 3
    assert not any(torch.equal(other.noise, fixed.noise) for other in others if other is not fixed
                   and other.template != fixed.template)  # fmt: skip
    for draw in others:
        assert (draw.timesteps // 250).tolist() == [0, 1, 2, 3]
    shown = {int(latent.mean()) // 2 for latent in fixed.latents}
    assert shown == {0, 1, 2}  # each photo before a second time


@pytest.mark.parametrize("photos, steps", [(1, 32), (4, 8), (5, 7), (32, 1), (64, 1)])
def test_steps_between_measurements(photos, steps):
    assert steps_between(photos) == steps


# --- fine_tune.py ----------------------------------------------------------------------------


def test_a_stopped_word_is_the_word_of_so_many_steps(tune):
    assert tune("--save_steps=1", "--classes_per_step=1", name="all-steps")[0] == 0
    for together, tolerance in ((1, 0), (3, 1e-5)):
        name = f"by{together}"
        status, _, err = tune(*STOPPING, f"--classes_per_step={together}", name=name)
        assert status == 0 and steps_done(name) == STEPS_DONE
        for folder, steps in zip(FOLDERS, STEPS_DONE):
            path = word(folder, name=name)
            said = f"seed=0_ex=2/{folder}: converged after {steps} of {LIMIT} steps" in err
            assert said == (steps < LIMIT) == ("steps_done" in read_header(path))
            assert read_header(path)["steps"] == str(LIMIT)
            found = rows_of(path)
            for step in range(1, LIMIT + 1):
                file = f"learned_embeds-steps-{step}.safetensors"
                same = torch.allclose(
                    found, rows_of(word(folder, name="all-steps").with_name(file)),
                    rtol=0, atol=tolerance,
                )  # fmt: skip
                assert same == (step == steps)
        assert not list(Path("output", name).rglob("*.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [
    ("--mixed_precision=bf16",), ("--gradient_checkpointing",), ("--gradient_accumulation_steps=2",)
])  # fmt: skip
def test_a_word_stops_whatever_saves_memory(tune, flags):
    assert tune(*STOPPING, *flags)[0] == 0
    assert min(steps_done()) < LIMIT


@pytest.mark.slow
def test_a_word_of_sdxl_stops_too(tune, xl_model):
    stopping = ("--stop_when_converged=0.9", "--convergence_window=4")
    assert tune(*stopping, f"--model_path={xl_model}", "--classes=cat")[0] == 0
    first, second = (
        word("cat").with_name(f"learned_embeds{end}.safetensors") for end in ("", "_2")
    )
    assert int(read_header(first)["steps_done"]) == int(read_header(second)["steps_done"]) < LIMIT


def test_shards_change_no_byte(tune):
    flags = [*STOPPING, "--classes_per_step=2"]
    for index in (1, 0):
        tune(*flags, f"--shard_index={index}", "--num_shards=2", name="shards")
    assert tune(*flags)[0] == 0
    assert steps_done() == STEPS_DONE and words_of("shards") == words_of()


INTERRUPTED = ("--checkpointing_steps=3", "--checkpoints_total_limit=1")
# Files written and removed by a run: config.json, checkpoints of steps 3, 5, 6, 7 and 8, words,
# timing.json. The first word ends at step 5, and after file 12 its company has that step alone.
FILES_OF_A_RUN, FIRST_IS_WRITTEN = 27, 11
QUICK_MOMENTS = (5, 8, FILES_OF_A_RUN)
SLOW_MOMENTS = [each for each in range(1, FILES_OF_A_RUN) if each not in QUICK_MOMENTS]


def killed_before(moment: int, tune, monkeypatch) -> int:
    """Run until that many files are written or removed; how many were touched."""
    touched = []

    def interrupting(do, number):
        def done(*args, **kwargs):
            path = args[number]
            if PROCESSES not in Path(path).parts and not str(path).endswith(".tmp"):
                touched.append(path)
                if len(touched) == moment + 1:
                    raise KeyboardInterrupt
            return do(*args, **kwargs)

        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupting(os.replace, 1))
        patch.setattr(Path, "unlink", interrupting(Path.unlink, 0))
        status, _, _ = tune(*STOPPING, *INTERRUPTED)
    assert status == (0 if moment == FILES_OF_A_RUN else 130)
    return len(touched)


whole: dict[str, bytes] = {}


@pytest.fixture
def companies(monkeypatch) -> set:
    """Which words took part in which step, of all runs: rounding depends on it."""
    found = set()

    def train_words(*args):
        for took_part in training.train_words(*args):
            found.add((took_part[0].step, tuple(word.fixed_seed for word in took_part)))
            yield took_part

    monkeypatch.setattr(session, "train_words", train_words)
    return found


@pytest.mark.parametrize(
    "moment", [*QUICK_MOMENTS, *(pytest.param(m, marks=pytest.mark.slow) for m in SLOW_MOMENTS)]
)
def test_killed_anywhere_the_words_are_the_same(tune, monkeypatch, companies, moment):
    """Before whichever file is written or removed: words go on in the company that they had."""
    touched = killed_before(moment, tune, monkeypatch)
    assert moment < FILES_OF_A_RUN or touched == moment  # so the moments are all there are
    assert tune(*STOPPING, *INTERRUPTED)[0] == 0
    if not whole:
        assert tune(*STOPPING, name="whole")[0] == 0
        whole.update(words_of("whole"))
    assert words_of() == whole
    assert sorted(step for step, _ in companies) == list(range(1, LIMIT + 1))
    assert [len(company) for _, company in sorted(companies)] == [3] * 5 + [2] * 2 + [1]
    assert not list(Path("output/e").rglob("*.pt"))


def test_a_stopped_word_is_finished(tune, monkeypatch):
    killed_before(FIRST_IS_WRITTEN, tune, monkeypatch)
    for folder in FOLDERS:
        ((step, path),) = list_checkpoints(word(folder).parent).items()
        state = read_checkpoint(path)["state"]
        assert (step, len(state["fixed_losses"])) == (5, 1 + 5)
        assert state["stopped"] == (folder == "stop_sign")
    (line,) = status_of(Path("output/e")).sums
    assert (line.done, line.left) == (1, 2)
    status, _, err = tune(*STOPPING, *INTERRUPTED)
    assert status == 0 and "stop_sign" not in err
    (line,) = status_of(Path("output/e")).sums
    assert (line.done, line.left) == (3, 0)
    before = words_of()
    monkeypatch.setattr(stage, "load_pipeline", fail)
    status, out, _ = tune(*STOPPING)
    assert status == 0 and "3 words" in out
    for flags, message in (
        ([], "--stop_when_converged: there 0.16, now none;"),
        ([*STOPPING, "--max_train_steps=9"], "--max_train_steps: there 8, now 9;"),
        ([*STOPPING, "--convergence_window=5"], "--convergence_window: there 4, now 5;"),
    ):
        status, _, err = tune(*flags)
        assert status == 2 and message in err and "--overwrite" in err
    assert words_of() == before


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--lr_scheduler=cosine"],
         "needs a learning rate that does not depend on the last step, got --lr_scheduler cosine; "
         "choose constant or constant_with_warmup"),
        (["--convergence_window=8"], "got 8, expected 4 steps or more, and fewer than the "),
        (["--convergence_window=310"], "got 310, expected 4 steps or more, and fewer"),
        (["--convergence_window=3"], "--convergence_window: got 3, expected 4 steps or more: with "
         "1 photo in a step, the loss is measured every 1 step"),
        (["--stop_when_converged=0"], "expected a number in (0, 1], got '0'"),
        (["--stop_when_converged=1.5"], "expected a number in (0, 1], got '1.5'"),
    ],
)  # fmt: skip
def test_what_cannot_stop_is_one_line_before_the_model_is_loaded(tune, monkeypatch, flags, message):
    monkeypatch.setattr(stage, "load_pipeline", fail)
    status, _, err = tune(*STOPPING, *flags)
    assert status == 2 and err.splitlines()[-1].count("error: ") == 1 and message in err
    assert not Path("output/e").exists()


def test_a_window_alone_means_nothing(tune, monkeypatch):
    monkeypatch.setattr(stage, "load_pipeline", fail)
    status, _, err = tune("--convergence_window=4")
    assert status == 2
    assert "--convergence_window means nothing without --stop_when_converged" in err
