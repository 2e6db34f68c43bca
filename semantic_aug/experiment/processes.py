"""The state of every process: output/EXP/processes/, one small file for each, for status.py.

A file is written when work begins, again every `BEAT` seconds, and when it ends. If it has not
been written for `LOST` seconds, its process was killed or its node is gone.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin

from semantic_aug import UserError
from semantic_aug.experiment.files import hostname, is_alive, now_at, remove_leftovers, write_text
from semantic_aug.experiment.interrupts import Stopped
from semantic_aug.experiment.names import CACHE, PROCESSES, Trial, trial_named
from semantic_aug.experiment.timing import MOST, STAGES

BEAT, LOST = 20.0, 120.0  # clusters' file systems show changes up to a minute late
RUNNING, DONE, STOPPED, FAILED, KILLED = STATES = (
    "running", "done", "stopped", "failed", "killed",
)  # fmt: skip

log = logging.getLogger(__name__)


@dataclass
class Process:
    """One run of a command.

    Attributes:
        stage: one of `timing.STAGES`.
        method: the set of images (AUG) or the results (METHOD); empty for words.
        wanted: by trial, the number of pieces (words, files of words, images, results) that all
            processes make together, and the number of images to make or to show for them.
        shard: index and count.
        host, pid, job: where the process runs; the job is SLURM's, empty without SLURM.
        state: RUNNING, DONE, STOPPED (asked to end before its work was done) or FAILED;
            `read_processes` also gives KILLED.
        message: the reason of a failure.
        trials: names of the trials in work; after a failure, of the trials that failed.
        images: number of images made or shown.
        counted, seconds: number of images in a number of seconds; the first images do not count,
            because their start is unknown.
    """

    stage: str
    method: str
    wanted: dict[str, tuple[int, int]]
    shard: tuple[int, int] = (0, 1)
    host: str = field(default_factory=hostname)
    pid: int = field(default_factory=os.getpid)
    job: str = ""
    state: str = RUNNING
    message: str = ""
    trials: list[str] = field(default_factory=list)
    images: int = 0
    counted: int = 0
    seconds: float = 0.0


class Reporter:
    """Reports the work of this process."""

    def __init__(self, process: Process, path: Path):
        self.process, self.path = process, path
        self._since: float | None = None
        self._writing = threading.Lock()  # the newer state must be written last

    def works_on(self, trials: Iterable[Trial]) -> None:
        """The trials in work from now on."""
        self.process.trials = sorted({trial.name for trial in trials})
        self.write()

    def count(self, images: int) -> None:
        """Count further images that were made or shown."""
        self.process.images += images
        if self._since is None:
            self._since = time.monotonic()
        else:
            self.process.counted += images
            self.process.seconds = time.monotonic() - self._since

    def write(self) -> None:
        with self._writing:
            write_text(self.path, json.dumps(asdict(self.process), ensure_ascii=False) + "\n")


@contextlib.contextmanager
def at_work(
    experiment: Path,
    stage: str,
    wanted: Mapping[Trial, tuple[int, int]],
    method: str = "",
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Reporter]:
    """Report this process as running within the block, and how the block ended.

    First, leftovers of killed processes are removed from the folders of all commands.

    Args:
        wanted: as in `Process`.
    """
    process = Process(stage, method, {t.name: each for t, each in wanted.items()}, shard)
    process.job = slurm_job(os.environ)
    for folder in (experiment, experiment / PROCESSES, experiment / CACHE):
        remove_leftovers(folder)
    name = f"{time.time_ns()}.{stage}.{process.host}-{process.pid}.json"
    _name_doubles(experiment, process)
    reporter, ended = Reporter(process, experiment / PROCESSES / name), threading.Event()
    reporter.write()

    def beat():
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):  # the command itself reports a full disk
                reporter.write()

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield reporter
        process.state, process.trials = DONE, []
    except (Stopped, KeyboardInterrupt):
        process.state = STOPPED
        raise
    except BaseException as error:
        process.state, process.message = FAILED, _line(error)
        raise
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(OSError):
            reporter.write()


def _name_doubles(experiment: Path, mine: Process) -> None:
    """Warn of processes that have the same share: they repeat each other's work, harmlessly."""
    for other in read_processes(experiment):
        same_share = all(
            getattr(other, key) == getattr(mine, key) for key in ("stage", "method", "shard")
        )
        requeued = mine.job and other.job == mine.job  # the first run may still look alive
        doubles = other.state == RUNNING and same_share and not requeued
        if doubles and mine.wanted.keys() & other.wanted.keys():
            log.warning(
                "process %d on %s has the same share of the same trials and does the same work; "
                "give each process its own --shard_index and --num_shards",
                other.pid, other.host,
            )  # fmt: skip


def _line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"exit status {error.code}"
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def slurm_job(environ: Mapping[str, str]) -> str:
    """The SLURM job of this process, as squeue writes it; empty without SLURM."""
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '?')}"
    return environ.get("SLURM_JOB_ID", "")


def read_processes(experiment: Path) -> list[Process]:
    """All processes that ever worked on an experiment, by their start."""
    folder, found = experiment / PROCESSES, []
    if not folder.is_dir():
        return []
    now = now_at(folder)
    for path in sorted(folder.glob("*.json")):
        try:
            silent, process = now - path.stat().st_mtime, _read_process(path)
        except OSError:  # removed meanwhile
            continue
        except (ValueError, TypeError, AttributeError, RecursionError):
            log.warning("%s is damaged: left out", path)
            continue
        here = process.host == hostname()
        if process.state == RUNNING and (silent > LOST or (here and not is_alive(process.pid))):
            process.state, process.message = KILLED, "it was killed, or its node is gone"
        found.append(process)
    return found


def _read_process(path: Path) -> Process:
    """A file of processes/.

    Raises:
        ValueError, TypeError, AttributeError: the content is wrong.
    """
    process = Process(**json.loads(path.read_text(encoding="utf-8")))
    shard: Any = tuple(process.shard)  # JSON has only lists
    process.shard = shard
    for each in fields(Process):
        kind: Any = int | float if each.type is float else get_origin(each.type) or each.type
        if not isinstance(getattr(process, each.name), kind):
            raise TypeError(each.name)
    pairs = [process.shard, *process.wanted.values()]
    numbers = [process.pid, process.images, process.counted, process.seconds]
    numbers += [number for pieces, images in pairs for number in (pieces, images)]
    if not all(0 <= number < MOST for number in numbers) or process.pid >= 2**31:
        raise ValueError("a number is too large")
    if process.stage not in STAGES or process.state not in STATES:
        raise ValueError("unknown stage or state")
    if None in map(trial_named, process.wanted) or not process.wanted.keys() >= {*process.trials}:
        raise ValueError("unknown trials")
    return process
