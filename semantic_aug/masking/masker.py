"""What finds objects in photos: the contract that every way of `--masker` keeps."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Found:
    """What a model says of a photo.

    Attributes:
        shares: [h, w], float32 in [0, 1], above 0.5 on the object; of the whole photo.
        doubts: why it is not to be trusted.
        grid: (h, w) of what the model said, where it has been enlarged since.
    """

    shares: np.ndarray
    doubts: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Masker:
    """A way to find objects, checked as far as configurations tell.

    Attributes:
        identity: of each model, by what it is for; whatever else of it changes a mask.
        check: raises UserError where it cannot read one of these words.
        load: gives a function from photos, RGB, and words for each, to what is found in each.
    """

    identity: dict[str, str]
    check: Callable[[Sequence[str]], None]
    load: Callable[[torch.device], Callable[[Sequence[Image.Image], Sequence[str]], list[Found]]]
