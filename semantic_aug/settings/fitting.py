"""The settings of `semantic-aug fit`, and what it tries."""

from semantic_aug.settings import FINITE, FRACTION_ABOVE_0, POSITIVE, setting, settings, whole
from semantic_aug.settings.classification import RANDAUGMENT, REAL, SHORT_NAMES
from semantic_aug.settings.common import Model, Stage
from semantic_aug.settings.generation import AUTO_BATCH, DEFAULT_PROMPT, PASTE, PRECISIONS

RECOLOURED, SURROUNDINGS, EDITS = "recoloured", "background", "edits"
WORDS, MIXTURE = "words", "mixture"
# From cheap to dear, which is the order in which they are tried, and that of simplicity.
CANDIDATES = (REAL, RANDAUGMENT, PASTE, RECOLOURED, SURROUNDINGS, EDITS, WORDS, MIXTURE)


@settings("experiment")
class Place:
    experiment_name: str | None = setting(
        None, "folder under output/ (default: the name of the folder of photos)"
    )
    output_dir: str = setting("output", "where experiments lie")
    seed: int = setting(0, "of folds, images and heads", check=whole(0, 2**62))


@settings("time, and what is tried")
class Trying:
    minutes: float = setting(
        60.0, "how long this may take; what does not fit is named and left out", check=POSITIVE
    )
    candidates: tuple[str, ...] | None = setting(
        None,
        "try these, however long it takes: the same list gives the same bytes (default: all that "
        "the minutes allow)",
        choices=CANDIDATES,
    )
    num_synthetic: int = setting(
        8, "images of each photo and method; fewer where the minutes do not suffice", check=whole(1)
    )


@settings("photos")
class About:
    mask_dir: str | None = setting(
        None, "folder with a mask for every photo, at the photo's path below its folder"
    )
    masker: str | None = setting(
        None,
        "what makes masks of photos that have none: named, salient, or a folder or hub id of a "
        "model, as semantic-aug masks takes them (default: where no photo has a mask, named, if "
        "its models are on the disk)",
        metavar="named|salient|MODEL",
    )
    splits: str | None = setting(
        None,
        "CSV table with the columns source, a path below the folder of photos, and split; and "
        "group, for photos that were taken together",
        metavar="FILE",
    )


@settings("what images are made by")
class OfMethods:
    """Of some methods alone."""

    prompt: tuple[str, ...] = setting(
        (DEFAULT_PROMPT,), "of edits: texts with {name}, or a text file with a prompt per line"
    )
    strength: tuple[float, ...] = setting(
        (0.5, 1.0),
        "of edits: how much of a photo is replaced, in (0, 1]; each is a candidate",
        check=FRACTION_ABOVE_0,
    )
    places: str | None = setting(
        None, "of backgrounds: text file with a place per line", metavar="FILE"
    )
    word_steps: int = setting(
        1000,
        "optimiser steps of a learned word, which is learned anew in every fold",
        check=whole(1),
    )


@settings("model")
class Images(OfMethods, Model):
    guidance_scale: float = setting(7.5, "weight of the prompt", check=FINITE)
    num_inference_steps: int = setting(
        20, "steps of a full denoising, by DPM-Solver++", check=whole(1, 10_000)
    )
    mixed_precision: str | None = setting(
        None, "precision of the model (default: fp16 on a GPU, else no)", choices=PRECISIONS
    )
    low_memory: bool = setting(False, "for a GPU of 8 GB: slower")
    batch_size: int = setting(4, "images at once", check=whole(1), named={"auto": AUTO_BATCH})


@settings("classifier")
class Heads:
    classifier_backbone: str = setting(
        "resnet50", f"hub id or folder of an image model, or {', '.join(SHORT_NAMES)}"
    )
    learning_rate: float = setting(2e-3, "of Adam, for the head", check=POSITIVE)
    iterations: int = setting(300, "steps of a head, of 32 images each", check=whole(1, 100_000))
    num_workers: int | None = setting(
        None, "threads that read images (default: all cores)", check=whole(1, 1024)
    )
    export: bool = setting(
        False, "write the classifier as a model of transformers too, to output/NAME/fit/exported"
    )


@settings()
class Fitting(Heads, Images, About, Trying, Place, Stage):
    """All settings of fit but the folder of photos."""
