"""The settings of what is done with a classifier that is there: predict and export."""

from semantic_aug.settings import FRACTION, setting, settings, whole
from semantic_aug.settings.common import BEST_DEVICE


@settings()
class Kept:
    """Where a classifier's backbone is, and where it works."""

    classifier_backbone: str | None = setting(
        None, "hub id or folder where the backbone is now (default: where it was)"
    )
    device: str | None = setting(None, BEST_DEVICE)


@settings()
class Predicting(Kept):
    """All settings of predict but the classifiers and the photos."""

    labelled: bool = setting(
        False,
        "the photos are a folder of class folders, of which accuracy, macro F1 and confusions are "
        "told; of a folder with train/, val/ and test/ the photos of test are taken",
    )
    top_k: int = setting(2, "how many classes are told of each photo, likeliest first",
                         check=whole(1))  # fmt: skip
    min_probability: float = setting(
        0.0, "where the likeliest class has a lower probability, the answer is: unsure",
        check=FRACTION,
    )  # fmt: skip
    mask_dir: str | None = setting(
        None,
        "folder with a mask for every photo, by the photo's path below its folder, its folder and "
        "name, or its name; for classifiers of --crop_to_object",
    )
    csv: str | None = setting(None, "write the table to this file too", metavar="FILE")
    json: str | None = setting(None, "write the table as JSON to this file too", metavar="FILE")
    num_workers: int | None = setting(
        None, "threads that read photos (default: all cores)", check=whole(1, 1024)
    )


@settings()
class Exporting(Kept):
    """All settings of export but the classifier and the folder."""

    onnx: bool = setting(
        False, "write model.onnx too; needs the packages onnx, onnxscript and onnxruntime"
    )
