"""Checking a whole dataset before it is used."""

import dataclasses

from semantic_aug import UserError
from semantic_aug.datasets import named_dataset
from semantic_aug.datasets.check import Findings, check_dataset
from semantic_aug.settings.common import Run
from semantic_aug.stages.common import in_words_of_python


def check(run: Run) -> Findings:
    """Read every photo and every mask in all splits of a run's dataset.

    Only the run's dataset and `mask_dir` are used.

    Returns:
        The findings; `print` shows them as a table, with every problem.

    Raises:
        UserError: the dataset is unknown, its root is wrong, or `train` has no photo.
    """
    with in_words_of_python():
        if not isinstance(run, Run):
            raise UserError(f"run: got {run!r}, expected Run")
        run = dataclasses.replace(run, **named_dataset(run.dataset))
        return check_dataset(run.dataset, run.data_dir, run.dataset_args, run.mask_dir)
