"""Photos that a trial trains on and a split to evaluate on holds too.

Their scores say nothing about new photos: they are named, and left out of the evaluation.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semantic_aug import UserError
from semantic_aug.few_shot_dataset import FewShotDataset

MOST = 0.1  # share of a split; where more of it is known from training, it is no split
NAMED = 5  # photos that a notice names

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Photos:
    """Photos of one split and what tells them apart.

    Attributes:
        indices: into the dataset.
        contents: as `FewShotDataset.content_digests` gives them.
        sources: stable ids; None where a subclass gives none.
    """

    split: str
    indices: list[int]
    contents: list[str]
    sources: list[str | None]


def photos_of(dataset: FewShotDataset, classes: Sequence[str] | None = None) -> Photos:
    """All photos of a dataset, or of some classes; reads each file."""
    indices = dataset.indices(classes)
    sources = [dataset.get_metadata_by_idx(idx).get("source") for idx in indices]
    return Photos(dataset.split, indices, dataset.content_digests(indices), sources)


def shared_photos(trained: Photos, split: Photos) -> dict[int, str]:
    """The photos of a split that are among those trained on: `{index: what it is called}`.

    Photos are the same where their content is, or their source.
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
    """Which photos of each split are to be left out in a trial; they are named.

    Args:
        trial: its name, for messages.
        splits: by their names in the results.
        how_to_check: the command that lists all photos in several splits.

    Raises:
        UserError: they are more than a tenth of a split.
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
                f"{listed}), so that it says little about new photos: take them out of one of the "
                f"two; {how_to_check} lists all such photos"
            )
        log.warning(
            "%s: left out of split %r (%s), because it is trained on: %s",
            trial,
            split.split,
            count,
            listed,
        )
    return left_out
