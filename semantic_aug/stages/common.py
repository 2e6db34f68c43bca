"""What all stages share: the experiment, its trials and photos, and the call of a stage."""

import contextlib
import dataclasses
import functools
import inspect
import re
import shlex
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from semantic_aug import UserError, counted
from semantic_aug.cli.scripts import words_here
from semantic_aug.experiment.config import read_config
from semantic_aug.experiment.files import check_writable
from semantic_aug.experiment.names import (
    CONFIG_FILE,
    EMBEDDINGS_FILE,
    Trial,
    experiment_dir,
    fine_tuned_dir,
    folder_names,
)
from semantic_aug.settings import build, build_all, fields_of, written
from semantic_aug.settings.common import Experiment, Model, Run, Selection

MOST_TRIALS = 100_000
# Settings that the next command shares with fine_tune.py.
_OF_WORDS = (*fields_of(Run), "model", "revision", "variant")


def experiment_of(run: Experiment) -> Path:
    """The experiment's folder, which need not exist but must be writable."""
    return check_writable(experiment_dir(run.output_dir, run.experiment_name))


def trials_of(run: Experiment) -> list[Trial]:
    """Every seed with every number of examples per class.

    Raises:
        UserError: there are more than `MOST_TRIALS`.
    """
    sizes = dict.fromkeys(run.examples_per_class)
    if run.num_trials * len(sizes) > MOST_TRIALS:
        raise UserError(
            f"--num_trials: got {run.num_trials} for {counted(len(sizes), 'number')} of examples "
            f"per class, expected {MOST_TRIALS} trials at most in all"
        )
    return [
        Trial(seed, examples)
        for seed in range(run.seed, run.seed + run.num_trials)
        for examples in sizes
    ]


def dataset_of(run: Run, split: str, trial: Trial | None = None):
    """A split of a run's dataset; with a trial, that trial's subset of the split."""
    # Imported late: finding the folder of an experiment needs no torch.
    from semantic_aug.datasets import build_dataset

    older = ["older_list=true"] if run.older_list and has_older_list(run) else []
    subset = {}
    if trial is not None:
        subset = {"seed": trial.seed, "examples_per_class": trial.examples_per_class}
    return build_dataset(
        run.dataset,
        split,
        dataset_args=[*run.dataset_args, *older],
        data_dir=run.data_dir,
        crop_to_object=run.crop_to_object,
        mask_dir=run.mask_dir,
        **subset,
    )


def prepared(run: Run, logdir: str | None = None) -> Run:
    """`run` with its dataset by name, and with the setting that decides which photos are listed.

    Earlier versions of the dataset `folder` listed fewer photos, and experiments from then keep
    this list. Every config.json records which list applies; earlier versions did not record this.
    """
    from semantic_aug.datasets import named_dataset

    run = dataclasses.replace(run, **named_dataset(run.dataset))
    if not has_older_list(run):
        return run
    begun = [*experiment_dir(run.output_dir, run.experiment_name).glob("*/*/" + CONFIG_FILE)]
    begun += [] if logdir is None else Path(logdir).glob("*/" + CONFIG_FILE)
    noted = [(read_config(path.parent) or {}).get("arguments") for path in begun]
    older = any(
        each.get("older_list", True)
        for each in noted
        if isinstance(each, dict) and each.get("dataset") == run.dataset
    )
    return dataclasses.replace(run, older_list=older)


def has_older_list(run: Run) -> bool:
    """Whether the dataset has an older list of photos, and the settings choose neither list."""
    from semantic_aug.datasets import dataset_class, known_options

    chosen = any(pair.startswith("older_list=") for pair in run.dataset_args)
    return not chosen and "older_list" in known_options(dataset_class(run.dataset))


def arguments_of(run: Run, settings) -> dict[str, Any]:
    """All settings by their names, for config.json, in the order of earlier files.

    Settings that earlier files lack are left out where they have their defaults.
    """
    of_run, of_stage = fields_of(type(run)), fields_of(type(settings))
    first = list(fields_of(Experiment))
    early = [name for name, field in of_stage.items() if field.metadata["early"]]
    found = {name: getattr(run, name) for name in first}
    found |= {name: written(settings, name) for name in early}
    found |= {name: getattr(run, name) for name in of_run if name not in first}
    found |= {name: written(settings, name) for name in of_stage if name not in early}
    for name, field in (of_run | of_stage).items():
        if field.metadata["newer"] and found[name] == field.default:
            del found[name]
    return found | ({} if run.older_list is None else {"older_list": run.older_list})


def command_line(stage: str, *given, of: type | None = None) -> str:
    """A command to be pasted, with the flags of all settings that differ from their defaults.

    Args:
        of: the class whose settings the command knows, if the command does not know all.
    """
    words = words_here(stage)
    for settings in given:
        for name, field in fields_of(of or type(settings)).items():
            value, flag = written(settings, name), (field.metadata["flags"] or (f"--{name}",))[0]
            if getattr(settings, name) in (None, field.default):
                continue
            if value is True:
                words.append(flag)
            elif isinstance(value, list):
                words += [flag, *map(str, value)]
            else:
                words.append(f"{flag}={value}")
    return shlex.join(words)


def masks_command(run: Run) -> str:
    """The command that makes masks of a run's photos, to be pasted."""
    words = [*words_here("masks"), f"--dataset={run.dataset}"]
    words += [f"--data_dir={run.data_dir}"] if run.data_dir else []
    words += ["--dataset_args", *run.dataset_args] if run.dataset_args else []
    place = run.mask_dir or (None if run.dataset == "folder" else "masks")
    words += [f"--mask_dir={place}"] if place else []
    return shlex.join(words)


def learned_from(run: Experiment) -> list:
    """A run, its model and its classes with words, as far as config.json tells; else empty."""
    for trial in trials_of(run):
        folder = fine_tuned_dir(experiment_of(run), trial)
        found = (read_config(folder) or {}).get("arguments", {})
        found |= {name: getattr(run, name) for name in fields_of(Experiment)}
        with contextlib.suppress(UserError):  # of another version, or damaged
            made = build_all({k: v for k, v in found.items() if k in _OF_WORDS}, Run, Model)
            names = folder_names(map(str, found.get("class_names") or ()))
            learned = [n for n, each in names.items() if (folder / each / EMBEDDINGS_FILE).exists()]
            chosen = tuple(learned) if 0 < len(learned) < len(names) else None
            return [*made, Selection(classes=chosen)]
    return []


def nothing_to_do(shard: tuple[int, int], of: str) -> str:
    """The message of a process without a share of, say, `3 blocks`."""
    return f"nothing to do: shard {shard[0]} of {shard[1]} has none of {of}"


# --- the call of a stage ---------------------------------------------------------------------


def stage(cls: type) -> Callable[[Callable], Callable]:
    """Let `function(run, settings)` also take the settings as keyword arguments.

    Errors name settings as flags, or as keywords if the caller gave keywords.

    Args:
        cls: the class of the settings.
    """

    def decorate(function: Callable) -> Callable:
        run_parameter, _, *own = inspect.signature(function).parameters.values()
        kinds = typing.get_args(run_parameter.annotation) or (run_parameter.annotation,)

        @functools.wraps(function)
        def called(run, settings=None, /, **keywords):
            given = {each.name: keywords.pop(each.name) for each in own if each.name in keywords}
            if settings is not None:
                return function(run, settings, **given, **keywords)
            with in_words_of_python():
                if not isinstance(run, kinds):
                    expected = " or ".join(kind.__name__ for kind in kinds)
                    raise UserError(f"{run_parameter.name}: got {run!r}, expected {expected}")
                return function(run, build(cls, keywords), **given)

        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
                              annotation=field.type)
            for name, field in fields_of(cls).items()
        ]  # fmt: skip
        signature = inspect.Signature([run_parameter, *parameters, *own])
        vars(called)["__signature__"] = signature
        return called

    return decorate


@contextlib.contextmanager
def in_words_of_python() -> Iterator[None]:
    """A UserError names a setting without the dashes of its flag."""
    try:
        yield
    except UserError as error:
        # Commands to be pasted keep their dashes.
        parts = re.split(r"((?:python|semantic-aug) [^;(]*)", str(error))
        parts[::2] = [re.sub(r"--(?=[a-z_]+\b)", "", part) for part in parts[::2]]
        raise type(error)("".join(parts)) from error
