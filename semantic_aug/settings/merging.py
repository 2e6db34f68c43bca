"""The settings of aggregate_embeddings.py."""

from semantic_aug.settings import setting, settings
from semantic_aug.settings.common import Sharing, Stage


@settings("words from elsewhere")
class Elsewhere:
    word: tuple[str, ...] = setting(
        (),
        "the word of a class, for all trials, from a file of diffusers, of AUTOMATIC1111's "
        "web UI, of kohya's scripts or of this project",
        metavar="CLASS=FILE",
        repeated=True,
    )


@settings()
class Merging(Elsewhere, Sharing, Stage):
    """All settings of aggregate_embeddings.py but those of its run."""
