"""The settings of `semantic-aug fit`, and its candidates."""

from semantic_aug.settings import FINITE, FRACTION_ABOVE_0, POSITIVE, setting, settings, whole
from semantic_aug.settings.classification import RANDAUGMENT, REAL, SHORT_NAMES
from semantic_aug.settings.common import Model, Stage
from semantic_aug.settings.generation import AUTO_BATCH, DEFAULT_PROMPT, PASTE, PRECISIONS

RECOLOURED, SURROUNDINGS, EDITS = "recoloured", "background", "edits"
WORDS, MIXTURE = "words", "mixture"
# From cheap to expensive: the order of trying, and of simplicity.
CANDIDATES = (REAL, RANDAUGMENT, PASTE, RECOLOURED, SURROUNDINGS, EDITS, WORDS, MIXTURE)


@settings("experiment")
class Place:
    experiment_name: str | None = setting(
        None, "folder under output/ (default: the name of the folder of photos)"
    )
    output_dir: str = setting("output", "folder of all experiments")
    seed: int = setting(0, "seed of folds, images and heads", check=whole(0, 2**62))


@settings("time and candidates")
class Trying:
    minutes: float = setting(
        60.0,
        "time limit in minutes; candidates that take longer are named and left out",
        check=POSITIVE,
    )
    candidates: tuple[str, ...] | None = setting(
        None,
        "try exactly these candidates; the time does not matter, so the same list gives the "
        "same bytes (default: all that the time allows)",
        choices=CANDIDATES,
    )
    num_synthetic: int = setting(
        8, "images per photo and method; fewer if time is short", check=whole(1)
    )


@settings("photos")
class About:
    mask_dir: str | None = setting(None, "folder of masks, which lie at the photos' relative paths")
    masker: str | None = setting(
        None,
        "what makes missing masks: named, salient, or a segmentation model, as semantic-aug masks "
        "takes them (default: named, if no photo has a mask and its models are on the disk)",
        metavar="named|salient|MODEL",
    )
    splits: str | None = setting(
        None,
        "CSV table of splits; its columns are source (the photo's relative path), split, "
        "and perhaps group (photos taken together)",
        metavar="FILE",
    )


@settings("methods")
class OfMethods:
    """Settings of some methods alone."""

    prompt: tuple[str, ...] = setting(
        (DEFAULT_PROMPT,), "for edits: texts with {name}, or a text file of prompts"
    )
    strength: tuple[float, ...] = setting(
        (0.5, 1.0),
        "for edits: share of a photo replaced, in (0, 1]; each strength is a candidate",
        check=FRACTION_ABOVE_0,
    )
    places: str | None = setting(
        None, "for backgrounds: text file with a place per line", metavar="FILE"
    )
    word_steps: int = setting(
        1000,
        "optimiser steps of a word; each fold of the first repeat learns new words",
        check=whole(1),
    )


@settings("model")
class Images(OfMethods, Model):
    guidance_scale: float = setting(7.5, "weight of the prompt", check=FINITE)
    num_inference_steps: int = setting(
        20, "denoising steps at strength 1, of DPM-Solver++", check=whole(1, 10_000)
    )
    mixed_precision: str | None = setting(
        None, "precision of the model (default: fp16 on a GPU, else no)", choices=PRECISIONS
    )
    low_memory: bool = setting(False, "for a GPU of 8 GB, slower")
    batch_size: int = setting(
        4, "images per batch, or auto", check=whole(1), named={"auto": AUTO_BATCH}
    )


@settings("classifier")
class Heads:
    classifier_backbone: str = setting(
        "resnet50",
        f"{', '.join(SHORT_NAMES)}, or the hub id or folder of an image model of transformers",
    )
    learning_rate: float = setting(2e-3, "Adam's learning rate for the head", check=POSITIVE)
    iterations: int = setting(300, "steps of a head, of 32 images each", check=whole(1, 100_000))
    num_workers: int | None = setting(
        None, "threads that read images (default: all cores)", check=whole(1, 1024)
    )
    export: bool = setting(
        False,
        "also export the classifier to output/NAME/fit/exported; it is a model of transformers",
    )


@settings()
class Fitting(Heads, Images, About, Trying, Place, Stage):
    """All settings of fit except the folder of photos."""
