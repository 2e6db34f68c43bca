"""The settings of python -m semantic_aug.report."""

from semantic_aug.settings import NON_NEGATIVE, setting, settings, whole
from semantic_aug.settings.common import Selection, Stage
from semantic_aug.settings.using import Kept

EMBED = 2000  # pictures within a page: about 10 MB
NEAR_DUPLICATE = 5.0  # of 255 (2 %): a variant that changed less is a near-duplicate


@settings()
class Shown:
    aug_name: tuple[str, ...] = setting(("aug",), "sets of images to show")
    embed: int = setting(
        EMBED,
        "largest number of pictures within the page; such a page can be sent; a page with "
        "more pictures shows the files beside it",
        check=whole(0),
    )
    near_duplicate: float = setting(
        NEAR_DUPLICATE,
        "flag variants that differ less from their photo, of 255; the difference is the mean "
        "over the sixteenth of the picture where it is largest, at 32x32 pixels",
        check=NON_NEGATIVE,
    )
    mistakes: str | None = setting(
        None,
        "results whose mistakes get a page; it shows the val photos that the trial's "
        "classifier gets most confidently wrong, with the nearest photos and images that it was "
        "trained on",
        metavar="METHOD",
    )


@settings("contact sheets")
class Sheets:
    variants: int = setting(4, "pictures of each set", check=whole(1))
    cell: int = setting(96, "pixels per side of a picture", check=whole(8, 1024))


@settings()
class Reporting(Sheets, Shown, Kept, Selection, Stage):
    """All settings of the report except the settings of its run."""
