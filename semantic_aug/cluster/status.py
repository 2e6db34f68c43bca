"""Show the state of an experiment: done, running, failed and left, and the time that is left.

    python -m semantic_aug.status output/EXP
    python -m semantic_aug.status output/EXP --watch 30

Reads only the output folder: the results, and in processes/ the state of every process. So it works
on every machine that can read the folder, with any launcher.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.cli.command import Parser, command
from semantic_aug.experiment.names import (
    EMBEDDINGS_FILE,
    FINE_TUNED,
    LORA,
    MERGED,
    RESERVED_NAMES,
    RESULTS,
    Trial,
    lora_file,
    merged_file,
    trial_named,
)
from semantic_aug.experiment.processes import FAILED, KILLED, RUNNING, Process, read_processes
from semantic_aug.experiment.timing import (
    AGGREGATE,
    FINE_TUNE,
    GENERATE,
    STAGES,
    TRAIN,
    read_timing,
)
from semantic_aug.settings import add_flags, setting, settings, whole

PIECES = {FINE_TUNE: "words", AGGREGATE: "merged files", GENERATE: "images", TRAIN: "results"}


@dataclass
class Line:
    """The state of a stage for a method and a trial (or, in sums, for all trials).

    Attributes:
        done: number of finished pieces: words, merged files, images, results.
        wanted: number of pieces in the end; None if no process has told it.
        images_left: number of images to make or show for the missing pieces.
        running: number of processes at work.
        failed: number of failed processes whose share no later process has taken.
        rate: images per second of all running processes.
        seconds_left: at this rate; None if unknown.
    """

    stage: str
    method: str
    trial: Trial | None  # None in sums
    done: int = 0
    wanted: int | None = None
    images_left: float = 0
    running: int = 0
    failed: int = 0
    rate: float = 0.0
    seconds_left: float | None = None

    @property
    def name(self) -> str:
        return "" if self.trial is None else self.trial.name

    @property
    def left(self) -> int | None:
        return None if self.wanted is None else max(0, self.wanted - self.done)


@dataclass
class Status:
    """The state of an experiment: sums by stage and method, and lines of each trial."""

    sums: list[Line]
    trials: list[Line]
    failures: list[Process] = field(default_factory=list)
    used: int = 0  # bytes


@settings()
class Showing:
    brief: bool = setting(False, "show only stages, without their trials")
    watch: int | None = setting(
        None,
        "repeat every SECONDS seconds (30 without a number); Ctrl-C ends it",
        check=whole(1),
        bare=30,
        metavar="SECONDS",
    )


def parse_args(argv=None):
    parser = Parser(
        __doc__,
        prog="python -m semantic_aug.status",
        usage="%(prog)s output/EXPERIMENT [--flag value ...]",
    )
    parser.add_argument("experiment", type=Path, help="folder of the experiment")
    add_flags(parser, Showing)
    return parser.parse_args(argv)


@command
def main(argv=None):
    args = parse_args(argv)
    if not args.experiment.is_dir():
        raise UserError(f"there is no folder {args.experiment}; expected output/EXPERIMENT")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            found = status_of(args.experiment)
            if not found.sums:
                raise UserError(f"{args.experiment} is no experiment: no command has begun there")
            if args.watch:
                print(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')}")
            print(report(args.experiment, found, args.brief), flush=True)
            if not args.watch:
                break
            time.sleep(args.watch)


# --- what there is ---------------------------------------------------------------------------


def status_of(experiment: Path) -> Status:
    """Count results, and read the state of the processes."""
    processes = read_processes(experiment)
    lines = done_lines(experiment)
    per_piece: dict[tuple, float] = {}
    for process in processes:  # the latest process decides about `wanted`
        for name, (pieces, images) in process.wanted.items():
            key = (process.stage, process.method, trial_named(name))
            line = lines.setdefault(key, Line(*key))
            line.wanted, per_piece[key] = pieces, images / max(1, pieces)
    for key, line in lines.items():
        line.images_left = (line.left or 0) * per_piece.get(key, 0)
    failures = standing_failures(processes, lines)
    for process in processes:
        running = process.state == RUNNING
        if running or process in failures:
            for name in process.trials:
                line = lines[process.stage, process.method, trial_named(name)]
                line.running += running
                line.failed += not running
    order = sorted(lines, key=lambda key: (STAGES.index(key[0]), key[1], key[2]))
    trials = [lines[key] for key in order]
    known = known_rates(experiment)
    sums = []
    for stage, method in dict.fromkeys((line.stage, line.method) for line in trials):
        own = [line for line in trials if (line.stage, line.method) == (stage, method)]
        alive = [
            process
            for process in processes
            if (process.stage, process.method, process.state) == (stage, method, RUNNING)
        ]
        sums.append(sum_of(own, alive, failures, known.get((stage, method))))
    return Status(sums, trials, failures, used_bytes(experiment))


def done_lines(experiment: Path) -> dict[tuple[str, str, Trial | None], Line]:
    """The finished pieces in the folder, by stage, method and trial."""
    # Imported late: --help needs no torch.
    from semantic_aug.evaluation.results import is_finished, trials_with_files
    from semantic_aug.synthesis.records import read_records

    found: dict[tuple[str, str, Trial | None], Line] = {}

    def note(stage: str, method: str, trial: Trial, done: int) -> None:
        found[stage, method, trial] = Line(stage, method, trial, done)

    for trial, folder in trials_in(experiment / FINE_TUNED):
        note(FINE_TUNE, "", trial, sum(1 for _ in folder.glob(f"*/{EMBEDDINGS_FILE}")))
        if lora_file(experiment, trial).exists():
            note(FINE_TUNE, LORA, trial, 1)
        if (experiment / MERGED).is_dir():
            note(AGGREGATE, "", trial, int(merged_file(experiment, trial).exists()))
    for images in folders_in(experiment):
        if images.name not in RESERVED_NAMES:
            for trial, folder in trials_in(images):
                note(GENERATE, images.name, trial, len(read_records(folder)))
    for results in folders_in(experiment / RESULTS):
        for trial in trials_with_files(results):
            note(TRAIN, results.name, trial, int(is_finished(results, trial)))
    return found


def folders_in(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []


def trials_in(folder: Path) -> list[tuple[Trial, Path]]:
    """The folders of trials in a folder."""
    return [(trial, each) for each in folders_in(folder) if (trial := trial_named(each.name))]


def standing_failures(processes: Sequence[Process], lines: Mapping) -> list[Process]:
    """Processes that failed or were killed, if their trials are still incomplete.

    A later process with the same share, or with another number of shares, has taken over the work.
    """
    standing: list[Process] = []
    for process in processes:
        same = [p for p in standing if (p.stage, p.method) == (process.stage, process.method)]
        for earlier in same:
            if earlier.shard == process.shard or earlier.shard[1] != process.shard[1]:
                standing.remove(earlier)
        if process.state in (FAILED, KILLED):
            standing.append(process)
    return [
        process
        for process in standing
        if any(
            lines[process.stage, process.method, trial_named(name)].left for name in process.wanted
        )
    ]


def known_rates(experiment: Path) -> dict[tuple[str, str], float]:
    """Images per second of a process by stage and method, for timed work."""
    images: dict[tuple[str, str], float] = {}
    seconds: dict[tuple[str, str], float] = {}
    for row in read_timing(experiment):
        if row["images"] and row["seconds"] and row["seed"] is not None:
            key = (row["stage"], row["method"])
            images[key] = images.get(key, 0) + row["images"]
            seconds[key] = seconds.get(key, 0) + row["seconds"]
    return {key: images[key] / seconds[key] for key in images}


def sum_of(
    own: Sequence[Line], alive: Sequence[Process], failures: Iterable[Process], known: float | None
) -> Line:
    """The sum over a stage's trials; also sets the trials' rates."""
    measured = [p.counted / p.seconds for p in alive if p.counted and p.seconds]
    typical = sum(measured) / len(measured) if measured else known or 0.0
    total = Line(own[0].stage, own[0].method, None, running=len(alive))
    for process in alive:
        rate = process.counted / process.seconds if process.counted else typical
        total.rate += rate
        for line in own:
            if line.name in process.trials:
                line.rate += rate / len(process.trials)
    for line in own:
        total.done += line.done
        total.images_left += line.images_left
        if line.wanted is not None:
            total.wanted = (total.wanted or 0) + line.wanted
    total.failed = sum((p.stage, p.method) == (total.stage, total.method) for p in failures)
    for line in (total, *own):
        if line.rate and line.left is not None:
            line.seconds_left = line.images_left / line.rate
    return total


def used_bytes(folder: Path) -> int:
    """Bytes of a folder on the disk."""
    total, folders = 0, [folder]
    while folders:
        for entry in entries_of(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            else:
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def entries_of(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, PermissionError):  # other processes may change it
        return []


# --- in words --------------------------------------------------------------------------------


def report(experiment: Path, found: Status, brief: bool) -> str:
    """The table, then the failures."""
    free = shutil.disk_usage(experiment).free
    lines = [f"{experiment}: {size(found.used)} used, {size(free)} free on its disk"]
    heads = ("", "done", "wanted", "left", "running", "failed", "images/s", "time left")
    row = "{:<44} {:>8} {:>8} {:>8} {:>8} {:>7} {:>9} {:>10}"
    lines.append(row.format(*heads).rstrip())
    for total in found.sums:
        pieces = "files" if total.method == LORA else PIECES[total.stage]
        title = " ".join(filter(None, (total.stage, total.method, f"({pieces})")))
        lines.append(row.format(title, *cells(total)).rstrip())
        for line in found.trials:
            if not brief and (line.stage, line.method) == (total.stage, total.method):
                lines.append(row.format(f"  {line.name}", *cells(line)).rstrip())
    for process in found.failures:
        job = f", job {process.job}" if process.job else ""
        lines.append(
            f"{process.state}: {process.stage} {process.method}".rstrip()
            + f", shard {process.shard[0]} of {process.shard[1]} (process {process.pid} on "
            f"{process.host}{job}), at {', '.join(process.trials) or 'its start'}: "
            f"{process.message}"
        )
    return "\n".join(lines)


def cells(line: Line) -> tuple[str, ...]:
    unknown = "?"
    return (
        str(line.done),
        unknown if line.wanted is None else str(line.wanted),
        unknown if line.left is None else str(line.left),
        str(line.running or ""),
        str(line.failed or ""),
        f"{line.rate:.3g}" if line.rate else "",
        duration(line.seconds_left) if line.left else "",
    )


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
