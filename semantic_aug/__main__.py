"""All commands under one name: `semantic-aug COMMAND`, or `python -m semantic_aug COMMAND`.

    fit               from a folder of photos to a classifier, in the minutes that you have
    fine-tune         learn one word per class
    aggregate         merge the words of a trial
    generate          turn photos into varied photos
    train-classifier  train and evaluate a classifier
    predict           classify photos with a trained classifier
    export            turn a trained classifier into a model for other programs
    masks             make masks of photos that have none
    report            make pages and sheets of photos and images
    status            show the state of an experiment
    check             read a whole dataset, and report its problems
    run               run all stages from one list of flags
    submit            submit all stages as SLURM jobs

semantic-aug COMMAND --help shows the common flags of a command, --help_all all flags.
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

import sys
from collections.abc import Callable

from semantic_aug.cli.command import one_of
from semantic_aug.cli.scripts import load_script


def main(argv: list[str] | None = None):
    words = sys.argv[1:] if argv is None else [str(word) for word in argv]
    name = one_of(COMMANDS, words, "semantic-aug", __doc__)
    sys.argv[0] = f"semantic-aug {name}"  # the name in usage lines and errors of flags
    return COMMANDS[name](words[1:])


def _check(words: list[str]):
    from semantic_aug.datasets.__main__ import main as datasets

    return datasets(["check", *words])


def _masks(words: list[str]):
    from semantic_aug.masking.__main__ import main as masks

    return masks(words)


def _report(words: list[str]):
    from semantic_aug.report.__main__ import main as report

    return report(words)


def _fit(words: list[str]):
    from semantic_aug.commands.fit import main as fit

    return fit(words)


def _predict(words: list[str]):
    from semantic_aug.commands.predict import main as predict

    return predict(words)


def _export(words: list[str]):
    from semantic_aug.commands.export import main as export

    return export(words)


def _status(words: list[str]):
    from semantic_aug.cluster.status import main as status

    return status(words)


def _chain(action: str) -> Callable[[list[str]], None]:
    def run(words: list[str]):
        from semantic_aug.cluster.chain import main as chain

        return chain([action, *words])

    return run


def _script(stage: str) -> Callable[[list[str]], None]:
    return lambda words: load_script(stage).main(words)


COMMANDS: dict[str, Callable] = {
    "fit": _fit,
    "fine-tune": _script("fine_tune"),
    "aggregate": _script("aggregate"),
    "generate": _script("generate"),
    "train-classifier": _script("train_classifier"),
    "predict": _predict,
    "export": _export,
    "masks": _masks,
    "report": _report,
    "status": _status,
    "check": _check,
    "run": _chain("run"),
    "submit": _chain("submit"),
}


if __name__ == "__main__":
    sys.exit(main())
