"""When a word has converged: the criterion DVAR of arXiv 2302.04841 (section 3.3).

The loss of a training step depends on the drawn noise and timesteps far more than on the word.
The loss on a fixed batch depends on the word alone: it changes while the word learns, and hardly
changes afterwards. So a word stops at the first step at which

    Var(fixed losses of the last window) < threshold * Var(all its fixed losses so far).

The authors' code measures after every step, with a window of 310 steps and a threshold of 0.15 for
textual inversion. These are the defaults here, too. A measurement after every step would take as
long as the training, so this module measures after every `PHOTOS_BETWEEN` photos.
"""

import math
from collections.abc import Sequence

import torch

from semantic_aug import UserError, counted
from semantic_aug.settings.fine_tuning import CONSTANT_RATES, FineTuning

# Photos of a fixed batch, and photos that training shows between two measurements. A photo without
# gradients takes about half as long as a training photo, so measuring adds 1/16 of the time.
FIXED_PHOTOS, PHOTOS_BETWEEN = 4, 32
# Fewer losses in a window have a small variance by chance.
LEAST_LOSSES = 4


def steps_between(photos_per_step: int) -> int:
    """Optimiser steps between two measurements."""
    return math.ceil(PHOTOS_BETWEEN / photos_per_step)


def has_converged(losses: Sequence[float], count: int, threshold: float) -> bool:
    """Whether the last `count` losses vary little compared to all losses.

    Args:
        losses: of the fixed batch, in the order of steps.
        count: losses in the window, from 2.
        threshold: largest share of the whole variance, in (0, 1].

    Returns:
        False while all losses fit in the window, and if a loss is not finite.
    """
    if len(losses) <= count:
        return False
    all_losses = torch.tensor(losses, dtype=torch.float64)
    latest, whole = (part.var(correction=0) for part in (all_losses[-count:], all_losses))
    return bool(latest < threshold * whole)


def check_convergence(settings: FineTuning, photos_per_step: int, limit: int) -> None:
    """Raise UserError if no word can stop as `--stop_when_converged` asks.

    Args:
        limit: the fewest steps of any word.
    """
    if settings.stop_when_converged is None:
        return
    if settings.lr_scheduler not in CONSTANT_RATES:
        raise UserError(
            "--stop_when_converged needs a learning rate that does not depend on the last step, "
            f"got --lr_scheduler {settings.lr_scheduler}; choose {' or '.join(CONSTANT_RATES)}"
        )
    window, between = settings.convergence_window, steps_between(photos_per_step)
    least = LEAST_LOSSES * between
    if window >= limit:
        raise UserError(
            f"--convergence_window: got {window}, expected {least} steps or more, and fewer than "
            f"the {limit} steps of a word; choose a shorter window or more --max_train_steps"
        )
    if window < least:
        raise UserError(
            f"--convergence_window: got {window}, expected {least} steps or more: with "
            f"{counted(photos_per_step, 'photo')} in a step, the loss is measured every "
            f"{counted(between, 'step')}"
        )
