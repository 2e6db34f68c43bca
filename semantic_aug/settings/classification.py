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

# Ten times as much is no float32 in Adam's first step.
_RATE = (Check(lambda value: 0 < value <= 1e37, "a positive number such as 1e-4"),)
_PART = (
    Check(
        lambda text: bool(re.fullmatch(rf"{FROZEN}|{ALL}|last:[1-9]\d{{0,5}}", text)),
        "none, all, or last:2 and the like",
    ),
)


@dataclass(frozen=True)
class TrainingOptions:
    """How a classifier is trained; everything here changes the result.

    Attributes:
        iterations_per_epoch: batches per epoch.
        batch_size: images per batch, drawn with replacement.
        learning_rate: of Adam, for the head.
        synthetic_probability: how often a drawn photo is replaced by one of its own synthetic
            variants, in [0, 1] (DA-Fusion, section 4); for utilization `mix`.
        augmentation: names of standard augmentations, as `augment` takes them.
        views: how many views of each image a frozen backbone sees, from which batches are drawn;
            None for a fresh view in every step.
        utilization: how synthetic images are used, one of `UTILIZATIONS`.
        class_balanced: draw every class equally often, however many images it has.
        select: report the `last` epoch, or the one with the best validation accuracy, `best_val`.
        finetune: which part of the backbone is trained too: `none`, `all` or `last:N`.
        backbone_learning_rate: of Adam, for that part, where it is trained with the head.
        objective: what trains that part, one of `OBJECTIVES`: with `supcon` a contrastive stage of
            its own, before the head.
        contrastive_temperature: of that stage, by which similarities in [-1, 1] are divided.
        contrastive_epochs: of that stage, each of `iterations_per_epoch` batches.
        contrastive_learning_rate: of that stage, for SGD, which falls to 0 along a cosine.
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
        "which set of images of the experiment, or several sets, whose images a photo has together",
        result=True,
        one_alone=True,
    )
    num_synthetic: int | None = setting(
        None,
        "at most that many per photo and set; 0 means real photos only (default: all there are)",
        check=whole(0),
        result=True,
    )
    utilization: str = setting(
        _DEFAULT.utilization,
        "mix: a photo drawn is now and then replaced by one of its own synthetic variants; "
        "append: photos and variants are drawn alike; pretrain: variants in the first half of the "
        "steps, photos in the second; balance: variants bring all classes to one size",
        choices=UTILIZATIONS,
        result=True,
    )
    synthetic_probability: float | None = setting(
        None, "how often mix replaces a photo, in [0, 1] (default 0.5)", check=FRACTION, result=True
    )
    ignore_filter: bool = setting(
        False,
        "use images too that the filter of generate_augmentations.py has rejected",
        result="images of each trial",
    )
    mixed_settings: bool = setting(
        False, "take trials together whose images or words were made with different settings"
    )


@settings(
    "supervised contrastive learning",
    "A stage before the head's: the backbone learns with --objective supcon that views of a class "
    "belong together (arXiv 2004.11362); then it is frozen. It needs --finetune all or last:N.",
)
class Contrastive:
    objective: str = setting(
        _DEFAULT.objective,
        "what trains the backbone: cross-entropy, with the head; or supcon, before it",
        choices=OBJECTIVES,
        newer=True,
        result=True,
    )
    negative_aug_name: str | None = setting(
        None,
        "another set of images of the experiment, all of which are hard negatives: near-misses "
        "that push away the class of their photo, and belong to no class",
        newer=True,
        result="hard negatives",
    )
    contrastive_temperature: float | None = setting(
        None,
        f"divides similarities (default {_DEFAULT.contrastive_temperature:g})",
        check=_RATE,
        newer=True,
        result=True,
    )
    contrastive_epochs: int | None = setting(
        None,
        "epochs of this stage, each of --iterations_per_epoch batches of two views of each image "
        f"(default {_DEFAULT.contrastive_epochs})",
        check=whole(1),
        newer=True,
        result=True,
    )
    contrastive_learning_rate: float | None = setting(
        None,
        "of SGD in this stage; it falls to 0 along a cosine "
        f"(default {_DEFAULT.contrastive_learning_rate:g})",
        check=_RATE,
        newer=True,
        result=True,
    )


@settings("classifier and training")
class Classifier:
    classifier_backbone: str = setting(
        "resnet50",
        f"hub id or folder of an image model, or {', '.join(SHORT_NAMES)}",
        result="backbone",
    )
    from_scratch: bool = setting(
        False,
        "take only the configuration of --classifier_backbone; needs --finetune all",
        result="backbone",
    )
    finetune: str = setting(
        _DEFAULT.finetune,
        "which part of the backbone is trained with the head; last:2 means its last two "
        "blocks (default none: it is frozen)",
        check=_PART,
        metavar="none|all|last:N",
        result=True,
    )
    backbone_precision: str | None = setting(
        None,
        "what a frozen backbone computes in (default: float16 on CUDA, else float32); images "
        "that overflow in it are computed in float32",
        choices=BACKBONE_PRECISIONS,
        result="backbone_precision",
    )
    image_size: int | None = setting(
        None, "side in pixels (default: the backbone's own)", check=whole(1, 4096), result=True
    )
    num_epochs: int = setting(_DEFAULT.num_epochs, "epochs", check=whole(1), result=True)
    iterations_per_epoch: int = setting(
        _DEFAULT.iterations_per_epoch, "batches per epoch", check=whole(1), result=True
    )
    batch_size: int = setting(_DEFAULT.batch_size, "photos per batch", check=whole(1), result=True)
    learning_rate: float = setting(
        _DEFAULT.learning_rate, "of Adam, for the head", check=_RATE, result=True
    )
    backbone_learning_rate: float | None = setting(
        None,
        f"of Adam, for what --finetune trains (default {_DEFAULT.backbone_learning_rate:g})",
        check=_RATE,
        result=True,
    )
    class_balanced: bool = setting(
        False, "draw every class equally often, however many images it has", result=True
    )
    augmentation: tuple[str, ...] = setting(
        tuple(_DEFAULT.augmentation),
        "random changes of every image shown, one or several, drawn per image: mirroring and "
        "turning by up to 15 degrees; RandAugment; TrivialAugment; CutMix; mixup. With none, every "
        "image passes a frozen backbone once, which is much faster",
        choices=STANDARD_AUGMENTATIONS,
        shorthand={"--use_randaugment": (RANDAUGMENT,)},
        result=True,
    )
    views: int | None = setting(
        None,
        "random views of each image that pass a frozen backbone, once; batches are drawn from "
        "them, in place of a fresh view in every step; with 16 much faster (default: fresh views)",
        check=whole(1),
        newer=True,
        result=True,
    )
    select: str = setting(
        _DEFAULT.select,
        "report the last epoch, or the one with the best validation accuracy",
        choices=(LAST, BEST_VAL),
        result=True,
    )


@settings("machine", late=True)
class Machine:
    device: str | None = setting(None, BEST_DEVICE)
    image_memory: int = setting(
        4096,
        "megabytes for decoded images; where they need more, they are read again each time; with "
        "--views, for the features of one trial, which must fit",
        check=whole(0),
    )
    num_workers: int | None = setting(
        None, "threads that read images (default: all cores)", check=whole(1, 1024)
    )


@settings("results")
class Results:
    method: str | None = setting(
        None,
        "name of these results (default: --aug_name, names of several sets joined by +; or "
        f"{REAL} without synthetic images)",
    )
    compare: tuple[str, ...] = setting(
        (),
        "other results, METHOD or EXPERIMENT:METHOD, to be compared with trial by trial",
        metavar="METHOD",
    )
    logdir: str | None = setting(None, "where results go (default: output/EXP/results)")
    save_classifier: str | None = setting(
        None,
        "which classifiers stay beside their results, for predict and export: selected means, of "
        "each number of examples per class, that of the seed which is best on val (default: all "
        "with a frozen backbone, where one takes kilobytes; else selected)",
        choices=KEPT_CLASSIFIERS,
        newer=True,
    )
    elsewhere: bool = setting(
        False,
        "evaluate also on validation photos whose objects are pasted on places of other classes, "
        "as split Elsewhere: how much less is right there shows what surroundings decide; needs "
        "masks",
        newer=True,
        result=True,
    )


@settings()
class Classification(
    Sharing, Results, Machine, Contrastive, Classifier, Synthetic, Selection, Stage
):
    """All settings of train_classifier.py but those of its run."""
