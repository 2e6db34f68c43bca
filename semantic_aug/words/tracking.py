"""Trackers of training (TensorBoard, Weights & Biases and others), through accelerate."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from semantic_aug import UserError


@dataclass(frozen=True)
class Track:
    """Two functions of ({name: value}, step): values are numbers, or lists of PIL images."""

    log: Callable = lambda values, step: None
    log_images: Callable = lambda values, step: None


def check_tracker(name: str) -> str:
    """`name`, if it is `none`, `all`, or a tracker of accelerate whose package is installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = [str(each) for each in get_available_trackers()]
    if name in ("none", "all", *available):
        return name
    if name in LOGGER_TYPE_TO_CLASS:
        raise UserError(
            f"--report_to: {name} is not installed; pip install {name.replace('_', '-')}, or "
            f"choose one of {', '.join([*available, 'none'])}"
        )
    known = ", ".join([*LOGGER_TYPE_TO_CLASS, "all", "none"])
    raise UserError(f"--report_to: got {name!r}, expected one of {known}")


@contextlib.contextmanager
def tracker(name: str, folder: Path, run: str) -> Iterator[Track]:
    """Track a run of this name; trackers write files below `folder`.

    Args:
        name: as `check_tracker` returns it.
    """
    if name == "none":
        yield Track()
        return
    from accelerate import Accelerator
    from accelerate.utils import clear_environment

    # Processes of a launch share only files: each tracks its own words and waits for no other.
    with clear_environment():
        accelerator = Accelerator(cpu=True, log_with=name, project_dir=folder)
    accelerator.init_trackers(run)

    def log_images(values, step):
        import numpy as np

        arrays = {key: np.stack([np.asarray(i) for i in each]) for key, each in values.items()}
        for each in accelerator.trackers:
            if hasattr(each, "log_images"):
                formats = {"dataformats": "NHWC"} if each.name == "tensorboard" else {}
                each.log_images(arrays, step, **formats)

    try:
        yield Track(accelerator.log, log_images)
    finally:
        accelerator.end_training()
