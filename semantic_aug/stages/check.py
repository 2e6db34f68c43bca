"""Reading a whole dataset before anything is made of it."""

import dataclasses

from semantic_aug import UserError
from semantic_aug.datasets import named_dataset
from semantic_aug.datasets.check import Findings, check_dataset
from semantic_aug.settings.common import Run
from semantic_aug.stages.common import in_words_of_python


def check(run: Run) -> Findings:
    """Read every photo and every mask of a run's dataset, of all splits.

    Of the run, its dataset and `mask_dir` count.

    Returns:
        What was found; `print` shows it as a table, with every problem.

    Raises:
        UserError: no such dataset, a wrong root, or no photo in `train`.
    """
    with in_words_of_python():
        if not isinstance(run, Run):
            raise UserError(f"run: got {run!r}, expected Run")
        run = dataclasses.replace(run, **named_dataset(run.dataset))
        return check_dataset(run.dataset, run.data_dir, run.dataset_args, run.mask_dir)
