"""Run the four commands of an experiment from one list of flags, here or as SLURM jobs.

    python -m semantic_aug.chain run --dataset folder --data_dir photos --experiment_name demo \\
        --examples_per_class 4 fine_tune: --num_vectors 4 generate: --strength 0.5
    python -m semantic_aug.chain run @scripts/reproduce/pascal.args
    scripts/slurm/submit.sh @scripts/reproduce/pascal.args --array 16 -- --partition=gpu

A flag goes to every command that knows it. Flags after `fine_tune:`, `aggregate:`, `generate:` or
`train_classifier:` go to this command alone. @FILE, in the first place, reads such a list from a
file. A command that is in the file several times runs several times, each time with its own flags.
Flags after the file override all flags in it.

For submit, flags after `--` go to sbatch. With `fine_tune: --lora_rank`, fine_tune runs a second
time after all words, for LoRAs that need the words of other tasks.
"""

import contextlib
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import semantic_aug
from semantic_aug import UserError
from semantic_aug.cli.command import Parser, command
from semantic_aug.cli.scripts import ROOT, SCRIPTS, load_script, words_of
from semantic_aug.experiment.names import SLURM_LOGS
from semantic_aug.settings import build_all
from semantic_aug.settings.classification import Classification
from semantic_aug.settings.common import Experiment, Run
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.settings.generation import Generation, Previewing
from semantic_aug.settings.merging import Merging
from semantic_aug.stages.common import experiment_of

log = logging.getLogger(__name__)
SECTIONS = tuple(SCRIPTS)
SETTINGS = {
    "fine_tune": (Run, FineTuning),
    "aggregate": (Experiment, Merging),
    "generate": (Run, Generation, Previewing),
    "train_classifier": (Run, Classification),
}
# For other processes, so that they find this package from any folder.
PYTHONPATH = os.pathsep.join(
    filter(None, [str(Path(semantic_aug.__file__).parent.parent), os.environ.get("PYTHONPATH")])
)
# Flags with different meanings in several commands.
AMBIGUOUS = ("--batch_size", "--learning_rate")


@dataclass(frozen=True)
class Command:
    """One of the four commands with its flags, and the `Run` that these flags describe."""

    stage: str
    argv: tuple[str, ...]
    run: Experiment


# --- from flags to commands ------------------------------------------------------------------


def read_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words in the file, if the first word is @FILE, and the other words.

    Raises:
        UserError: the file cannot be read.
    """
    if not words or not words[0].startswith("@"):
        return [], list(words)
    path = Path(words[0][1:])
    try:
        return shlex.split(path.read_text(encoding="utf-8"), comments=True), list(words[1:])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot read the flags in {path}: {reason}; this project has: "
            f"{', '.join(sorted(p.name for p in (ROOT / 'scripts/reproduce').glob('*.args')))}"
        ) from None


def sections(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Words by the `STAGE:` before them, in order; the stage of the first words is empty."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for word in words:
        if word.endswith(":") and word[:-1] in SECTIONS:
            found.append((word[:-1], []))
        else:
            found[-1][1].append(word)
    return found


def flags_of(words: Sequence[str]) -> list[list[str]]:
    """Each flag with its values.

    Raises:
        UserError: there are words before the first flag.
    """
    found: list[list[str]] = []
    for word in words:
        if re.match(r"--[a-zA-Z]", word):
            found.append([word])
        elif found:
            found[-1].append(word)
        else:
            raise UserError(f"got {word!r}, expected a flag such as --dataset, or one of "
                            f"{', '.join(f'{stage}:' for stage in SECTIONS)}")  # fmt: skip
    return found


def commands_of(words: Sequence[str], stages: Sequence[str] = SECTIONS) -> list[Command]:
    """The commands of these stages, in order, their flags checked.

    Raises:
        UserError: no command knows a flag, or commands differ in its meaning; the dataset is
            unknown.
        SystemExit: a command refuses its flags, with status 2.
    """
    in_file, behind = read_flags(words)
    base, more = sections(in_file), sections(behind)
    parsers = {stage: parser_of(stage) for stage in SECTIONS}
    # Imported late: parser_of first reports missing packages.
    from semantic_aug.datasets import dataset_class, parse_dataset_args

    commands = []
    for stage in SECTIONS:
        variants = [own for name, own in base if name == stage] or [[]]
        over = [word for name, own in more if name == stage for word in own]
        for own in variants:
            argv = [
                *shared(base[0][1], stage, parsers),
                *own,
                *shared(more[0][1], stage, parsers),
                *over,
            ]
            args = parsers[stage].parse_args(argv)
            run, *_ = build_all(vars(args), *SETTINGS[stage])
            if getattr(args, "preview", False):
                raise UserError("--preview makes no images that a classifier could learn from")
            if isinstance(run, Run):  # better refused now than by a job, hours later
                parse_dataset_args(dataset_class(run.dataset), run.dataset_args)
            commands.append(Command(stage, tuple(argv), run))
    return [each for each in commands if each.stage in stages]


def shared(words: Sequence[str], stage: str, parsers: Mapping[str, Parser]) -> list[str]:
    """The shared flags that this command knows."""
    mine = []
    for flag, *values in flags_of(words):
        knowing = [each for each in SECTIONS if parsers[each].knows(flag)]
        name = flag.partition("=")[0].replace("-", "_").replace("__", "--", 1)
        if not knowing:
            raise UserError(f"no command knows {flag} (each lists its flags with --help)")
        if name in AMBIGUOUS:
            choice = " or ".join(f"{each}: {name}" for each in knowing)
            raise UserError(f"{name} has different meanings in these commands: write {choice}")
        if stage in knowing:
            mine += [flag, *values]
    return mine


def parser_of(stage: str) -> Parser:
    """The parser of a command."""
    parser = load_script(stage).build_parser()
    parser.prog = SCRIPTS[stage]
    return parser


# --- here ------------------------------------------------------------------------------------


def run(commands: Sequence[Command]) -> None:
    """Run the commands in order; the first failure ends the chain, with its status."""
    for each in commands:
        line = [sys.executable, "-m", "semantic_aug", each.stage.replace("_", "-"), *each.argv]
        print(f"\n== {shlex.join([*words_of(each.stage), *each.argv])}", flush=True)
        process = subprocess.Popen(line, env={**os.environ, "PYTHONPATH": PYTHONPATH})
        try:
            status = process.wait()
        except BaseException:  # a request to end this process is for its child too
            process.terminate()
            process.wait()
            raise
        if status:
            raise SystemExit(status)


# --- SLURM -----------------------------------------------------------------------------------


def array_flag(text: str) -> str:
    """sbatch's `--array`, from a number of tasks, perhaps with %LIMIT, or a range.

    Raises:
        UserError: other text, such as a list with gaps, which would leave out some work.
    """
    match = re.fullmatch(r"([1-9]\d*)(%[1-9]\d*)?", text)
    if match:
        return f"0-{int(match[1]) - 1}{match[2] or ''}"
    if re.fullmatch(r"\d+-\d+(:[1-9]\d*)?(%[1-9]\d*)?", text):
        return text
    raise UserError(f"--array: got {text!r}, expected a number of tasks, such as 16 or 16%4")


def sbatch_line(
    step: str, each: Command, folder: Path, array: str | None, extra: Sequence[str],
    after: Sequence[str],
) -> list[str]:  # fmt: skip
    """The sbatch command of one of the four commands.

    Args:
        step: name of the job.
        array: see `array_flag`. Merging words takes seconds, so its job is no array.
        extra: further flags of sbatch.
        after: ids of jobs that must succeed before.
    """
    in_array = array is not None and each.stage != "aggregate"
    log = (folder / SLURM_LOGS).as_posix().replace("%", "%%")
    line = [
        "sbatch", "--parsable", f"--job-name={folder.name}-{step}",
        f"--export=ALL,DA_FUSION_ROOT={ROOT}",
        f"--output={log}/{step}-{'%A_%a' if in_array else '%j'}.log",
    ]  # fmt: skip
    line += [f"--array={array}"] if in_array else []
    if after:
        line += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    return [*line, *extra, str(ROOT / "scripts" / "slurm" / f"{each.stage}.sh"), *each.argv]


def steps_of(commands: Sequence[Command]) -> list[tuple[str, Command]]:
    """Commands by the names of their steps, in order.

    A LoRA may need the words of several tasks, which end at different times. So a command that
    trains LoRAs runs a second time, after all words.
    """
    words = [each for each in commands if each.stage == "fine_tune"]
    again = [("fine_tune_lora", each) for each in words if has_lora(each)]
    others = [(each.stage, each) for each in commands if each.stage != "fine_tune"]
    return [*((each.stage, each) for each in words), *again, *others]


def has_lora(each: Command) -> bool:
    """Whether a fine_tune command trains LoRAs."""
    return parser_of(each.stage).parse_args([*each.argv]).lora_rank is not None


def submit(
    commands: Sequence[Command], array: str | None, extra: Sequence[str], dry_run: bool
) -> None:
    """Submit all commands or none; each stage waits for the success of the stage before.

    Raises:
        UserError: sbatch is not here, or refuses a job.
    """
    folder = experiment_of(commands[0].run)
    if not dry_run:
        (folder / SLURM_LOGS).mkdir(parents=True, exist_ok=True)
    jobs: dict[str, list[str]] = {}
    for step, each in steps_of(commands):
        earlier = [name for name in jobs if name != step]
        after = jobs[earlier[-1]] if earlier else []
        line = sbatch_line(step, each, folder, array, extra, after)
        number = len(jobs.get(step, []))
        if dry_run:
            print(shlex.join(line))
            job = f"{step.upper()}_ID{number or ''}"
        else:
            try:
                job = _sbatch(line)
            except UserError:
                submitted = [job for ids in jobs.values() for job in ids]
                if submitted:
                    subprocess.run(["scancel", *submitted], check=False)
                with contextlib.suppress(OSError):  # the folders may not be empty
                    (folder / SLURM_LOGS).rmdir()
                    folder.rmdir()
                raise
            print(f"{step}: job {job}")
        jobs.setdefault(step, []).append(job)
    if not dry_run:
        print(f"to follow them: python -m semantic_aug.status {shlex.quote(str(folder))}")


def warn_of_missing_data(commands: Sequence[Command]) -> None:
    """Warn if the dataset's folder is missing here; nodes may have folders that this node lacks."""
    from semantic_aug.datasets import dataset_class  # as in commands_of

    for each in commands:
        if isinstance(each.run, Run) and not each.run.dataset.startswith("hf:"):
            try:
                dataset_class(each.run.dataset).root_of(each.run.data_dir)
            except UserError as error:
                log.warning("on this node, %s", error)
            return


def _sbatch(line: Sequence[str]) -> str:
    """Submit a job. Returns its id."""
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            "there is no sbatch here: submit where SLURM is, or see with --dry_run what would be "
            "submitted"
        ) from None
    if done.returncode:
        raise UserError(f"nothing is submitted: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip().split(";")[0]  # the cluster's name may follow


# --- the command -----------------------------------------------------------------------------


def parse_args(argv=None):
    """(arguments, words for the four commands, flags of sbatch)."""
    words = sys.argv[1:] if argv is None else [str(word) for word in argv]
    extra: list[str] = []
    if "--" in words:
        words, extra = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = Parser(
        __doc__,
        prog="python -m semantic_aug.chain",
        usage="%(prog)s run|submit [@FILE] --flag value ... [-- --sbatch_flag=value ...]",
    )
    parser.add_argument("action", choices=("run", "submit"))
    parser.add_argument("--stages", nargs="+", choices=SECTIONS, default=list(SECTIONS),
                        help="only these commands")  # fmt: skip
    parser.add_argument("--dry_run", action="store_true", help="only print the commands")
    parser.add_argument("--array", metavar="N", help="submit: share each stage among N tasks")
    own, rest = _own_flags(words, parser)
    return parser.parse_args(own), rest, extra


def _own_flags(words: Sequence[str], parser: Parser) -> tuple[list[str], list[str]]:
    """The words for the chain itself (the action and its parser's flags), and the rest."""
    own = list(words[:1])
    takes = rest = list[str]()
    for word in words[1:]:
        if word == "-h" or re.match(r"--[a-zA-Z]", word):
            takes = own if parser.knows(word) else rest
        elif word.startswith("@") or (word.endswith(":") and word[:-1] in SECTIONS):
            takes = rest
        takes.append(word)
    return own, rest


@command
def main(argv=None):
    args, words, extra = parse_args(argv)
    if args.action == "run" and (args.array or extra):
        raise UserError("--array and flags after -- are for submit: run does all work here")
    array = array_flag(args.array) if args.array else None
    commands = commands_of(words, args.stages)
    if args.action == "submit":
        warn_of_missing_data(commands)
        extra = [*shlex.split(os.environ.get("EXTRA_SBATCH", "")), *extra]
        submit(commands, array, extra, args.dry_run)
    elif args.dry_run:
        for each in commands:
            print(shlex.join([*words_of(each.stage), *each.argv]))
    else:
        run(commands)
