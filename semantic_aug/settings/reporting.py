"""The settings of python -m semantic_aug.report."""

from semantic_aug.settings import NON_NEGATIVE, setting, settings, whole
from semantic_aug.settings.common import Selection, Stage
from semantic_aug.settings.using import Kept

EMBED = 2000  # pictures within a page: about 10 MB
NEAR_DUPLICATE = 5.0  # a variant that changed less than this, of 255 (2 %), is a near-duplicate


@settings()
class Shown:
    aug_name: tuple[str, ...] = setting(("aug",), "sets of images to show")
    embed: int = setting(
        EMBED,
        "up to so many pictures lie within the page, which can then be sent to somebody; "
        "of more, it shows the files beside it",
        check=whole(0),
    )
    near_duplicate: float = setting(
        NEAR_DUPLICATE,
        "flag variants that differ from their photo by less, of 255, in the sixteenth of the "
        "picture where they differ most; both are compared at 32x32 pixels",
        check=NON_NEGATIVE,
    )
    mistakes: str | None = setting(
        None,
        "results whose classifier of the trial is looked at: the page shows, in place of all "
        "variants, the val photos that it gets most surely wrong, with the photos and images "
        "nearest to them of those that it was trained on",
        metavar="METHOD",
    )


@settings("contact sheets")
class Sheets:
    variants: int = setting(4, "pictures of each set", check=whole(1))
    cell: int = setting(96, "pixels of a picture", check=whole(8, 1024))


@settings()
class Reporting(Sheets, Shown, Kept, Selection, Stage):
    """All settings of the report but those of its run."""
