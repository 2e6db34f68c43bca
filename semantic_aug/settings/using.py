"""The settings of predict and export, which use a finished classifier."""

from semantic_aug.settings import FRACTION, setting, settings, whole
from semantic_aug.settings.common import BEST_DEVICE


@settings()
class Kept:
    """The place of a classifier's backbone, and its device."""

    classifier_backbone: str | None = setting(
        None, "present hub id or folder of the backbone (default: as in training)"
    )
    device: str | None = setting(None, BEST_DEVICE)


@settings()
class Predicting(Kept):
    """All settings of predict except the classifiers and the photos."""

    labelled: bool = setting(
        False,
        "evaluate: the photos are a folder of class folders; tells accuracy, macro F1 and "
        "confusions; in a folder with train/, val/ and test/, only test is read",
    )
    top_k: int = setting(2, "number of classes per photo, likeliest first",
                         check=whole(1))  # fmt: skip
    min_probability: float = setting(
        0.0, "below this probability of the likeliest class, answer: unsure",
        check=FRACTION,
    )  # fmt: skip
    mask_dir: str | None = setting(
        None,
        "folder of masks for a classifier of --crop_to_object; they lie at the photos' "
        "relative paths, or have the photos' names",
    )
    csv: str | None = setting(None, "also write the table to this file", metavar="FILE")
    json: str | None = setting(None, "also write the table as JSON to this file", metavar="FILE")
    num_workers: int | None = setting(
        None, "threads that read photos (default: all cores)", check=whole(1, 1024)
    )


@settings()
class Exporting(Kept):
    """All settings of export except the classifier and the folder."""

    onnx: bool = setting(
        False, "also write model.onnx; needs the packages onnx, onnxscript and onnxruntime"
    )
