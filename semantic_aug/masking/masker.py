"""The interface of all maskers, which find objects in photos."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Found:
    """A model's prediction for a photo.

    Attributes:
        shares: [h, w], float32 in [0, 1], above 0.5 on the object; of the whole photo.
        doubts: the reasons why the prediction is doubtful.
        grid: (h, w) of the model's output, if `shares` are enlarged.
    """

    shares: np.ndarray
    doubts: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Masker:
    """A way to find objects, whose configurations are checked.

    Attributes:
        identity: of each model, by its role; and all other settings that affect a mask.
        check: raises UserError if the model cannot read a word.
        load: returns a function from RGB photos and a word for each photo to `Found` objects.
    """

    identity: dict[str, str]
    check: Callable[[Sequence[str]], None]
    load: Callable[[torch.device], Callable[[Sequence[Image.Image], Sequence[str]], list[Found]]]
