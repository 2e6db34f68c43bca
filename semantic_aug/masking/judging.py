"""Which masks are doubtful, and why: rules for a single mask, and for all masks of a class."""

import math
from collections.abc import Mapping

import numpy as np

SMALLEST, LARGEST = 0.01, 0.9  # shares of a photo that an object has
TORN = 0.5  # less of what was found in the largest piece
BORDERS = 3  # of a photo that an object touches at most, and one less
ENOUGH = 5  # masks of a class, to know its usual size
FAR = 4.0  # times the usual size, or a part of it
DEVIATIONS = 3.0  # robust ones, that a size is from the usual one


def borders_touched(mask: np.ndarray) -> int:
    """How many of the photo's four borders the object, bool [H, W], touches."""
    return sum(bool(edge.any()) for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))


def doubts_of(mask: np.ndarray, held: float = 1.0) -> list[str]:
    """Why a mask, bool [H, W], is not to be trusted; nothing where it is.

    Args:
        held: share of what a model found that lies in its largest piece, in [0, 1].
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
    """Which masks of a class are far from its usual size, with what is to be said of them.

    The usual size is the median of their shares. Far is `FAR` times as much or as little, and
    `DEVIATIONS` robust standard deviations away on a scale of logarithms, so that classes whose
    sizes vary by nature have some freedom. Of fewer than `ENOUGH` masks none is far.

    Args:
        shares: by photo, the share of it that the mask covers, above 0.
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
