"""The settings of train_classifier.py, and what can be chosen there by name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from semantic_aug.settings import FRACTION, Check, setting, settings, whole
from semantic_aug.settings.common import BEST_DEVICE, Selection, Sharing, Stage

MIX, APPEND, PRETRAIN, BALANCE = UTILIZATIONS = ("mix", "append", "pretrain", "balance")
LAST, BEST_VAL = "last", "best_val"
CROSS_ENTROPY, SUPCON = OBJECTIVES = ("cross-entropy", "supcon")
FROZEN, ALL = "none", "all"
FLOAT32 = "float32"
NOT_KEPT, SELECTED, EVERY = KEPT_CLASSIFIERS = ("none", "selected", "all")
BACKBONE_PRECISIONS = ("float16", "bfloat16", FLOAT32)
SHORT_NAMES = {
    "resnet50": "microsoft/resnet-50",
    "deit": "facebook/deit-base-distilled-patch16-224",
}
RANDAUGMENT = "randaugment"
STANDARD_AUGMENTATIONS = ("none", "flip-rotate", RANDAUGMENT, "trivialaugment", "cutmix", "mixup")
REAL = "real"  # the results without synthetic images


def baseline(objective: str) -> str:
    """The name of the results of real photos alone, with which other results are compared."""
    return f"{REAL}-{SUPCON}" if objective == SUPCON else REAL


# Adam's first step overflows float32 with ten times as much.
_RATE = (Check(lambda value: 0 < value <= 1e37, "a positive number such as 1e-4"),)
_TEMPERATURE = (Check(lambda value: 1e-3 <= value <= 1e3, "a number in [0.001, 1000]"),)
_PART = (
    Check(
        lambda text: bool(re.fullmatch(rf"{FROZEN}|{ALL}|last:[1-9]\d{{0,5}}", text)),
        "none, all, or last:2 and the like",
    ),
)


@dataclass(frozen=True)
class TrainingOptions:
    """How a classifier is trained; every attribute changes the result.

    Attributes:
        iterations_per_epoch: batches per epoch.
        batch_size: images per batch, drawn with replacement.
        learning_rate: of Adam, for the head.
        synthetic_probability: with utilization `mix`, the probability in [0, 1] that a variant of
            a drawn photo replaces it (DA-Fusion, section 4).
        augmentation: names of standard augmentations, as `augment` takes them.
        views: number of views of each image that a frozen backbone sees, from which batches are
            drawn; None for a fresh view in every step.
        utilization: how synthetic images are used, one of `UTILIZATIONS`.
        class_balanced: draw every class equally often, large or small.
        select: report the `last` epoch, or the epoch with the best validation accuracy, `best_val`.
        finetune: the part of the backbone that is trained too: `none`, `all` or `last:N`.
        backbone_learning_rate: of Adam, for this part where it is trained with the head.
        objective: what trains this part, one of `OBJECTIVES`; `supcon` means a contrastive stage
            before the head.
        contrastive_temperature: divides the similarities in [-1, 1] of the contrastive stage.
        contrastive_epochs: of this stage, each of `iterations_per_epoch` batches.
        contrastive_learning_rate: of SGD in this stage; it falls to 0 along a cosine.
    """

    num_epochs: int = 50
    iterations_per_epoch: int = 200
    batch_size: int = 32
    learning_rate: float = 1e-4
    synthetic_probability: float = 0.5
    augmentation: Sequence[str] = ("flip-rotate",)
    views: int | None = None
    utilization: str = MIX
    class_balanced: bool = False
    select: str = LAST
    finetune: str = FROZEN
    backbone_learning_rate: float = 1e-5
    objective: str = CROSS_ENTROPY
    contrastive_temperature: float = 0.07
    contrastive_epochs: int = 110
    contrastive_learning_rate: float = 1e-3


_DEFAULT = TrainingOptions()


@settings("synthetic images")
class Synthetic:
    aug_name: tuple[str, ...] = setting(
        ("aug",),
        "sets of images; a photo has the images of all sets together",
        result=True,
        one_alone=True,
    )
    num_synthetic: int | None = setting(
        None,
        "images per photo and set; 0 means real photos only (default: all)",
        check=whole(0),
        result=True,
    )
    utilization: str = setting(
        _DEFAULT.utilization,
        "how variants are used; mix: a variant of a photo replaces it now and then; append: "
        "photos and variants are drawn alike; pretrain: variants in the first half of the "
        "steps, photos in the second; balance: variants bring all classes to one size",
        choices=UTILIZATIONS,
        result=True,
    )
    synthetic_probability: float | None = setting(
        None,
        "with mix: probability of a variant (default 0.5); in [0, 1]; a variant then "
        "replaces its drawn photo",
        check=FRACTION,
        result=True,
    )
    ignore_filter: bool = setting(
        False,
        "also use images that the filter of generate_augmentations.py has rejected",
        result="images of each trial",
        rare=True,
    )
    mixed_settings: bool = setting(
        False,
        "accept trials whose images or words differ in their settings",
        rare=True,
    )


@settings(
    "supervised contrastive learning",
    "--objective supcon trains the backbone before the head (arXiv 2004.11362)",
)
class Contrastive:
    objective: str = setting(
        _DEFAULT.objective,
        "what trains the backbone; cross-entropy: together with the head; supcon: before the head",
        choices=OBJECTIVES,
        newer=True,
        result=True,
    )
    negative_aug_name: str | None = setting(
        None,
        "set of images for hard negatives; these near-misses push away their photo's "
        "class and belong to no class; images that a filter has rejected are left out, and "
        "a photo may lack them",
        newer=True,
        result="hard negatives",
        rare=True,
    )
    contrastive_temperature: float | None = setting(
        None,
        "temperature of the loss; divides similarities "
        f"(default {_DEFAULT.contrastive_temperature:g})",
        check=_TEMPERATURE,
        newer=True,
        result=True,
        rare=True,
    )
    contrastive_epochs: int | None = setting(
        None,
        "epochs of this stage; each has --iterations_per_epoch batches of two views of each "
        f"image (default {_DEFAULT.contrastive_epochs})",
        check=whole(1),
        newer=True,
        result=True,
        rare=True,
    )
    contrastive_learning_rate: float | None = setting(
        None,
        "SGD's learning rate in this stage; it falls to 0 along a cosine (default "
        f"{_DEFAULT.contrastive_learning_rate:g})",
        check=_RATE,
        newer=True,
        result=True,
        rare=True,
    )


@settings("classifier and training")
class Classifier:
    classifier_backbone: str = setting(
        "resnet50",
        f"{', '.join(SHORT_NAMES)}, or the hub id or folder of an image model of transformers",
        result="backbone",
    )
    from_scratch: bool = setting(
        False,
        "use random weights: only the configuration of --classifier_backbone; needs --finetune all",
        result="backbone",
        rare=True,
    )
    finetune: str = setting(
        _DEFAULT.finetune,
        "trained part of the backbone; last:2 means its last two blocks; they are trained "
        "with the head, or with supcon before the head (default none)",
        check=_PART,
        metavar="none|all|last:N",
        result=True,
    )
    backbone_precision: str | None = setting(
        None,
        "precision of a frozen backbone (default: float16 on CUDA, else float32); images "
        "that overflow are computed in float32",
        choices=BACKBONE_PRECISIONS,
        result="backbone_precision",
        rare=True,
    )
    image_size: int | None = setting(
        None, "side in pixels (default: the backbone's)", check=whole(1, 4096), result=True
    )
    num_epochs: int = setting(_DEFAULT.num_epochs, "epochs", check=whole(1), result=True)
    iterations_per_epoch: int = setting(
        _DEFAULT.iterations_per_epoch, "batches per epoch", check=whole(1), result=True
    )
    batch_size: int = setting(_DEFAULT.batch_size, "photos per batch", check=whole(1), result=True)
    learning_rate: float = setting(
        _DEFAULT.learning_rate, "Adam's learning rate for the head", check=_RATE, result=True
    )
    backbone_learning_rate: float | None = setting(
        None,
        "Adam's learning rate for the backbone, if it is trained with the head; supcon has "
        f"--contrastive_learning_rate (default {_DEFAULT.backbone_learning_rate:g})",
        check=_RATE,
        result=True,
        rare=True,
    )
    class_balanced: bool = setting(
        False,
        "draw every class equally often, large or small",
        result=True,
        rare=True,
    )
    augmentation: tuple[str, ...] = setting(
        tuple(_DEFAULT.augmentation),
        "random changes of each image; flip-rotate: mirroring, and rotation by up to 15 "
        "degrees; several names: one is drawn per image; with none, every image passes a "
        "frozen backbone once, which is much faster",
        choices=STANDARD_AUGMENTATIONS,
        shorthand={"--use_randaugment": (RANDAUGMENT,)},
        result=True,
    )
    views: int | None = setting(
        None,
        "random views of each image that pass a frozen backbone; batches are drawn from "
        "these views; 16 views are much faster than a fresh view in every step (default: "
        "fresh views)",
        check=whole(1),
        newer=True,
        result=True,
    )
    select: str = setting(
        _DEFAULT.select,
        "report the last epoch, or the best epoch on val",
        choices=(LAST, BEST_VAL),
        result=True,
    )


@settings("machine", late=True)
class Machine:
    device: str | None = setting(None, BEST_DEVICE)
    image_memory: int = setting(
        4096,
        "megabytes of decoded images; a larger set is read again each time; with --views, "
        "the features of a trial must fit",
        check=whole(0),
        rare=True,
    )
    num_workers: int | None = setting(
        None, "threads that read images (default: all cores)", check=whole(1, 1024), rare=True
    )


@settings("results")
class Results:
    method: str | None = setting(
        None,
        "name of these results (default: from the sets); names of several sets are joined "
        f"by +; {REAL} means no synthetic images; with supcon, -{SUPCON} and the set of hard "
        "negatives follow",
    )
    compare: tuple[str, ...] = setting(
        (),
        "other results to compare with, trial by trial; METHOD or EXPERIMENT:METHOD",
        metavar="METHOD",
    )
    logdir: str | None = setting(
        None, "folder of the results (default: output/EXP/results)", rare=True
    )
    save_classifier: str | None = setting(
        None,
        "classifiers kept for predict and export; selected: for each number of examples per "
        "class, the seed with the best val accuracy (default: all with a frozen backbone, "
        "else selected)",
        choices=KEPT_CLASSIFIERS,
        newer=True,
    )
    elsewhere: bool = setting(
        False,
        "also evaluate on objects in other surroundings; objects of val photos are pasted "
        "on places of other classes, as split Elsewhere; a large loss of accuracy shows "
        "reliance on surroundings; needs masks",
        newer=True,
        result=True,
    )


@settings()
class Classification(
    Sharing, Results, Machine, Contrastive, Classifier, Synthetic, Selection, Stage
):
    """All settings of train_classifier.py except the settings of its run."""
