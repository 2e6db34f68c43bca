"""Which masks are doubtful, and why: rules for a single mask, and for all masks of a class."""

import math
from collections.abc import Mapping

import numpy as np

SMALLEST, LARGEST = 0.01, 0.9  # plausible shares of a photo that an object covers
TORN = 0.5  # doubtful if the largest piece has a smaller share of the found area
BORDERS = 3  # doubtful if an object touches as many borders of its photo
ENOUGH = 5  # masks of a class for a usual size
FAR = 4.0  # times the usual size, or a part of it
DEVIATIONS = 3.0  # robust standard deviations from the usual size


def borders_touched(mask: np.ndarray) -> int:
    """How many of the photo's four borders the object, bool [H, W], touches."""
    return sum(bool(edge.any()) for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))


def doubts_of(mask: np.ndarray, held: float = 1.0) -> list[str]:
    """The reasons why a mask, bool [H, W], is doubtful; empty for a plausible mask.

    Args:
        held: the largest piece's share of the area that a model found, in [0, 1].
    """
    share = float(mask.mean())
    if share == 0:
        return ["nothing was found"]
    doubts = []
    if share < SMALLEST:
        doubts.append(f"it covers {share:.1%} of the photo")
    if share > LARGEST:
        doubts.append(f"it covers {share:.0%} of the photo")
    if held < TORN:
        doubts.append(f"torn: the largest piece has {held:.0%} of what was found")
    touched = borders_touched(mask)
    if touched >= BORDERS:
        doubts.append(f"it touches {touched} borders of the photo")
    return doubts


def unusual_sizes(shares: Mapping[str, float]) -> dict[str, str]:
    """The masks of a class with an unusual size, and the reason for each.

    The usual size is the median of the shares. A size is unusual if it differs by a factor of
    `FAR`, and by `DEVIATIONS` robust standard deviations of the logarithms, which allows for
    classes of varying sizes. With fewer than `ENOUGH` masks no size is unusual.

    Args:
        shares: by photo, the share of its area that the mask covers, above 0.
    """
    if len(shares) < ENOUGH:
        return {}
    logs = {source: math.log(share) for source, share in shares.items()}
    usual = float(np.median(list(logs.values())))
    spread = 1.4826 * float(np.median([abs(each - usual) for each in logs.values()]))
    limit = max(math.log(FAR), DEVIATIONS * spread)
    return {
        source: f"it covers {shares[source]:.1%} of the photo, usual in its class is "
        f"{math.exp(usual):.1%}"
        for source, each in logs.items()
        if abs(each - usual) > limit
    }
