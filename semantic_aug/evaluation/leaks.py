"""Leaks: photos of an evaluation split that a trial also trains on.

Their scores say nothing about new photos, so a warning names them, and evaluation leaves them out.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semantic_aug import UserError
from semantic_aug.few_shot_dataset import FewShotDataset

MOST = 0.1  # share of a split; a split with a larger share of training photos is refused
NAMED = 5  # photos in a warning, at most

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Photos:
    """Photos of a split, with what identifies them.

    Attributes:
        split: the dataset's name of the split.
        indices: of the N photos in the dataset.
        contents: N digests from `FewShotDataset.content_digests`.
        sources: N stable ids; None if a dataset gives no id.
    """

    split: str
    indices: list[int]
    contents: list[str]
    sources: list[str | None]


def photos_of(dataset: FewShotDataset, classes: Sequence[str] | None = None) -> Photos:
    """The photos of a dataset, or of some of its classes; reads each file."""
    indices = dataset.indices(classes)
    sources = [dataset.get_metadata_by_idx(idx).get("source") for idx in indices]
    return Photos(dataset.split, indices, dataset.content_digests(indices), sources)


def shared_photos(trained: Photos, split: Photos) -> dict[int, str]:
    """The photos of a split that are among the training photos: `{index: name in messages}`.

    Two photos are the same if they have the same content or the same source.
    """
    contents = {each for each in trained.contents if not each.startswith("unreadable")}
    sources = set(trained.sources) - {None}
    return {
        idx: source or f"photo {idx}"
        for idx, content, source in zip(split.indices, split.contents, split.sources)
        if content in contents or source in sources
    }


def check_splits(
    trial: str, trained: Photos, splits: Mapping[str, Photos], how_to_check: str
) -> dict[str, set[int]]:
    """The photos that evaluation must leave out of each split; a warning names them.

    Args:
        trial: the trial's name, for messages.
        trained: the training photos of the trial.
        splits: the photos of each evaluation split, by the split's name in the results.
        how_to_check: the command that lists all photos in several splits.

    Returns:
        Indices by the split's name in the results.

    Raises:
        UserError: training photos are more than a tenth of a split.
    """
    left_out = {}
    for name, split in splits.items():
        shared = shared_photos(trained, split)
        left_out[name] = set(shared)
        if not shared:
            continue
        listed = ", ".join(list(shared.values())[:NAMED]) + (" ..." if len(shared) > NAMED else "")
        count = f"{len(shared)} of {len(split.indices)}"
        if len(shared) > MOST * len(split.indices):
            raise UserError(
                f"{trial}: split {split.split!r} holds photos that are trained on ({count}: "
                f"{listed}), so it says little about new photos: remove them from one of the two "
                f"splits; {how_to_check} lists all such photos"
            )
        log.warning(
            "%s: left out of split %r (%s), because the trial trains on them: %s",
            trial,
            split.split,
            count,
            listed,
        )
    return left_out
