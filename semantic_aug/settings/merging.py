"""The settings of aggregate_embeddings.py."""

from semantic_aug.settings import setting, settings
from semantic_aug.settings.common import Sharing, Stage


@settings("words from elsewhere")
class Elsewhere:
    word: tuple[str, ...] = setting(
        (),
        "word of a class, for all trials; the file may come from diffusers, AUTOMATIC1111's "
        "web UI, kohya's scripts or this project",
        metavar="CLASS=FILE",
        repeated=True,
    )


@settings()
class Merging(Elsewhere, Sharing, Stage):
    """All settings of aggregate_embeddings.py except the settings of its run."""
