"""The cost of each stage: seconds, images and device, in output/EXP/timing.json.

Every process appends to its own file in output/EXP/timing/. Any process can derive timing.json
from all of these files.
"""

import contextlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from semantic_aug.experiment.config import read_config
from semantic_aug.experiment.files import derive, hostname, write_text
from semantic_aug.experiment.names import TIMING, Trial

FINE_TUNE, AGGREGATE, GENERATE, TRAIN = STAGES = (
    "fine_tune", "aggregate_embeddings", "generate_augmentations", "train_classifier",
)  # fmt: skip
MOST = 1e12  # seconds, or images

log = logging.getLogger(__name__)


@dataclass
class Work:
    """Some work of one process.

    Attributes:
        stage: one of `STAGES`.
        method: the set of images (AUG) or the results (METHOD); empty for words.
        seed, examples_per_class: of the trial; None for work on several trials.
        device: such as `cpu` or `cuda: NVIDIA H100`; empty if it does not matter.
        images: number of images made or shown; None for work without images. Work on 0 images is
            not recorded.
        seconds: wall-clock time.
        again: earlier work of this stage, method and trial no longer counts.
        finished: nanoseconds since 1970.
    """

    stage: str
    method: str = ""
    seed: int | None = None
    examples_per_class: int | None = None
    device: str = ""
    images: int | None = None
    seconds: float = 0.0
    again: bool = False
    finished: int = 0


@contextlib.contextmanager
def timed(
    experiment: Path,
    stage: str,
    method: str = "",
    trials: Trial | Sequence[Trial] | None = None,
    device=None,
    again: bool = False,
) -> Iterator[Work]:
    """Record the time of the block, which sets `images` of the given `Work`.

        with timed(experiment, GENERATE, args.aug_name, trial, device) as work:
            work.images = generate(...)

    Work before an interruption is recorded too.

    Args:
        trials: the trials of the work, which get equal shares of it; for words that are trained
            together, the trial of each word.
        device: the torch.device of the work, if it used any.
    """
    work = Work(stage, method, device=device_name(device), again=again)
    started = time.monotonic()
    try:
        yield work
    finally:
        if work.images != 0:
            work.seconds = time.monotonic() - started
            # Later than all known work: the clocks of other nodes may be ahead of this node's.
            latest = max((each.finished for each in _all_work(experiment)), default=0)
            work.finished = max(time.time_ns(), latest + 1)
            path = experiment / TIMING / f"{hostname()}-{os.getpid()}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                for share in _shares(work, trials):
                    file.write(json.dumps(asdict(share)) + "\n")
            write_timing(experiment)


def _shares(work: Work, trials: Trial | Sequence[Trial] | None) -> list[Work]:
    """The work on each trial."""
    if not trials:
        return [work]
    trials = [trials] if isinstance(trials, Trial) else trials
    return [
        replace(
            work,
            seed=trial.seed,
            examples_per_class=trial.examples_per_class,
            seconds=work.seconds * number / len(trials),
            images=None if work.images is None else round(work.images * number / len(trials)),
        )
        for trial, number in Counter(trials).items()
    ]


def device_name(device) -> str:
    """`cpu`, or the kind and the name of the device."""
    if device is None:
        return ""
    if device.type != "cuda":
        return device.type
    import torch

    return f"cuda: {torch.cuda.get_device_name(device)}"


def read_timing(experiment: Path) -> list[dict]:
    """Work of all processes, summed and sorted by stage, method, trial and device.

    Each row has stage, method, seed, examples_per_class, device, images, seconds.
    """
    sums: dict[tuple, dict[str, Work]] = {}
    for work in sorted(_all_work(experiment), key=lambda work: work.finished):
        devices = sums.setdefault((work.stage, work.method, work.seed, work.examples_per_class), {})
        if work.again:
            devices.clear()
        total = devices.setdefault(work.device, Work(*(getattr(work, name) for name in _IDENTITY)))
        total.seconds += work.seconds
        if work.images is not None:
            total.images = (total.images or 0) + work.images
    totals = [total for devices in sums.values() for total in devices.values()]
    totals.sort(key=lambda t: (STAGES.index(t.stage) if t.stage in STAGES else 9, t.method,
                               t.seed or 0, t.examples_per_class or 0, t.device))  # fmt: skip
    return [
        {name: getattr(total, name) for name in (*_IDENTITY, "images")}
        | {"seconds": round(total.seconds, 3)}
        for total in totals
    ]


def _all_work(experiment: Path) -> list[Work]:
    found = []
    for path in sorted((experiment / TIMING).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            if line.endswith("\n"):  # else it is torn
                try:
                    found.append(_read_work(line))
                except (ValueError, TypeError, RecursionError):
                    log.warning("%s: a damaged line is left out", path)
    return found


def _read_work(line: str) -> Work:
    """A line of timing/.

    Raises:
        ValueError, TypeError: the line is damaged.
    """
    work = Work(**json.loads(line))
    for field in fields(Work):
        kind: Any = int | float if field.type is float else field.type
        if not isinstance(getattr(work, field.name), kind):
            raise TypeError(field.name)
    if not (0 <= work.seconds < MOST and 0 <= (work.images or 0) < MOST):
        raise ValueError("a number is too large")
    return work


_IDENTITY = ("stage", "method", "seed", "examples_per_class", "device")


def write_timing(experiment: Path) -> None:
    """Derive timing.json."""

    def sizes():
        return {path.name: path.stat().st_size for path in (experiment / TIMING).glob("*.jsonl")}

    def write():
        rows = [json.dumps(row, ensure_ascii=False) for row in read_timing(experiment)]
        write_text(experiment / "timing.json", "[\n" + ",\n".join(rows) + "\n]\n")

    derive(sizes, write)


def seconds_per_trial(
    experiment: Path, method: str, aug_names: Sequence[str], examples_per_class: int
) -> dict[str, float]:
    """Average seconds of a trial of a method, by stage; only stages that were timed.

    Args:
        aug_names: the method's sets of images, whose seconds are added up; empty for real photos
            only.
    """
    wanted = {(TRAIN, method), *((GENERATE, name) for name in aug_names)}
    if any(_uses_words(experiment / name) for name in aug_names):
        wanted |= {(FINE_TUNE, ""), (AGGREGATE, "")}
    seconds: dict[tuple[str, str], dict] = {}
    for row in read_timing(experiment):
        key = (row["stage"], row["method"])
        if row["examples_per_class"] == examples_per_class and key in wanted:
            by_seed = seconds.setdefault(key, {})
            by_seed[row["seed"]] = by_seed.get(row["seed"], 0.0) + row["seconds"]
    found: dict[str, float] = {}
    for (stage, _), by_seed in seconds.items():
        found[stage] = found.get(stage, 0.0) + sum(by_seed.values()) / len(by_seed)
    return found


def seconds_per_image(experiment: Path, aug_name: str, trial: Trial) -> float | None:
    """Seconds per image of a set, start-up included; None if they were not timed."""
    key = (GENERATE, aug_name, trial.seed, trial.examples_per_class)
    made = [
        row for row in read_timing(experiment)
        if tuple(row[name] for name in _IDENTITY[:4]) == key and row["images"]
    ]  # fmt: skip
    if not made:
        return None
    return sum(row["seconds"] for row in made) / sum(row["images"] for row in made)


def _uses_words(images: Path) -> bool:
    """Whether any of a set's trials was made with learned words."""
    for folder in images.glob("seed=*_ex=*"):
        edits = (read_config(folder) or {}).get("settings", {}).get("edits")
        if '"aug": "textual-inversion"' in json.dumps(edits):
            return True
    return False
