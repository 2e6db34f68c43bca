"""What a command will cost in time and disk space, and what would be quicker."""

import dataclasses
import io
import itertools
import logging
from collections.abc import Callable, Sequence

from PIL import Image

from semantic_aug import counted
from semantic_aug.diffusion.inspecting import ModelInfo
from semantic_aug.settings.generation import PASTE, Generation
from semantic_aug.synthesis.jobs import without_object

MINUTE, HOUR, DAY = 60, 3600, 86400  # seconds
FEW_STEPS = 20  # enough for a sampler of higher order (arXiv 2211.01095)
LOOKED_AT = 20  # photos, to see whether a trial has masks

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of computing, and bytes on disk."""

    seconds: float = 0.0
    size: float = 0.0

    def __mul__(self, factor: float) -> "Cost":
        return Cost(self.seconds * factor, self.size * factor)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.size + other.size)

    def __str__(self) -> str:
        return f"about {duration(self.seconds)} and {megabytes(self.size)}"


def duration(seconds: float) -> str:
    """`40 seconds`, `12 minutes`, `3.5 hours` or `2.1 days`."""
    if seconds < 1.5 * MINUTE:
        return counted(round(seconds), "second")
    if seconds < 1.5 * HOUR:
        return counted(round(seconds / MINUTE), "minute")
    return f"{seconds / HOUR:.1f} hours" if seconds < 2 * DAY else f"{seconds / DAY:.1f} days"


def megabytes(size: float) -> str:
    """`0.0059 MB`, `3.1 MB` or `1,400 MB`: millions of bytes."""
    millions = size / 1e6
    return f"{millions:.2g} MB" if millions < 10 else f"{millions:,.0f} MB"


def png_size(image: Image.Image) -> int:
    """Bytes of the file of an image."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.tell()


def warm_up_blocks(settings: Generation, device) -> int:
    """How many blocks take longer than later blocks: a GPU loads or compiles its kernels."""
    return int(settings.compile or device.type != "cpu")


def cost_teller(
    images: Callable[[], int], say_quicker: Callable[[Cost], None], warm_up: int
) -> Callable[[float, Sequence[Image.Image]], None]:
    """A callback for every block, which logs once what all blocks will cost.

    Costs below a minute are not logged.

    Args:
        images: gives how many images will be computed in all.
        say_quicker: logs what would be quicker, where that is worthwhile.
        warm_up: how many blocks are too slow to predict later blocks.
    """
    blocks = itertools.count()

    def tell(seconds: float, made: Sequence[Image.Image]) -> None:
        if next(blocks) != warm_up:
            return
        wanted = images()
        cost = Cost(seconds, sum(map(png_size, made))) * (wanted / len(made))
        if cost.seconds >= MINUTE:
            log.info("%s: %s", counted(wanted, "image"), cost)
            say_quicker(cost)

    return tell


def say_quicker(
    settings: Generation, edits: Sequence[dict], info: ModelInfo | None, dataset, cost: Cost
) -> None:
    """Log quicker settings where the images take more than an hour."""
    if cost.seconds > HOUR and (ways := quicker_ways(settings, edits, info, dataset)):
        log.info("quicker: %s", "; ".join(ways))


def quicker_ways(
    settings: Generation, edits: Sequence[dict], info: ModelInfo | None, dataset
) -> list[str]:
    """Unused settings that would take less time; empty where no model is used."""
    if info is None:
        return []
    found = []
    if not info.few_steps and settings.scheduler != "lcm":
        if settings.num_inference_steps > FEW_STEPS:
            sampler = "" if settings.scheduler == "dpm++" else "--scheduler dpm++ "
            found.append(f"{sampler}--num_inference_steps {FEW_STEPS}")
        found.append(
            "a model distilled to few steps (--model_path stabilityai/sd-turbo "
            "--num_inference_steps 2 --guidance_scale 0)"
        )
    if not any(edit["aug"] == PASTE for edit in edits):
        first = range(min(LOOKED_AT, len(dataset)))
        if len(without_object(dataset, first)) < len(first):
            found.append("--aug paste, which needs no model")
    return found
