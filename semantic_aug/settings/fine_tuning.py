"""The settings of fine_tune.py."""

from semantic_aug.settings import (
    FRACTION_BELOW_1,
    NON_NEGATIVE,
    POSITIVE,
    setting,
    settings,
    whole,
)
from semantic_aug.settings.common import Model, Selection, Sharing, Stage
from semantic_aug.settings.generation import FITS, PRECISIONS

RATES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
)


@settings("the new words")
class Words:
    initializer_token: str | None = setting(
        None,
        "word that the new ones start from, a single token "
        "(default: the last such word of the class name)",
    )
    placeholder_token: str | None = setting(None, "name of the new word, with one class")
    num_vectors: int = setting(1, "vectors per word", check=whole(1), result=True)
    templates: str | None = setting(
        None,
        "sentences that the word is trained in: object, style, mvip (machine parts), or a "
        "text file with one per line, {} for the word (default: --learnable_property)",
        result=True,
    )
    learnable_property: str = setting(
        "object",
        "sentences for a thing or for a style",
        choices=("object", "style"),
        result="templates",
    )


@settings("training")
class Training:
    max_train_steps: int | None = setting(
        None, "optimiser steps per class (default 1000)", check=whole(1), result=True
    )
    num_train_epochs: int | None = setting(
        None,
        "in place of --max_train_steps: passes over a class's photos, each counted --repeats times",
        check=whole(1),
        result=True,
    )
    repeats: int = setting(100, "how often an epoch shows each photo", check=whole(1), result=True)
    train_batch_size: int = setting(
        4, "photos of each class at once", check=whole(1, 4096), result=True
    )
    classes_per_step: int = setting(
        8,
        "classes that are trained together; fewer need less memory, and give the same words "
        "but for rounding",
        check=whole(1),
    )
    gradient_accumulation_steps: int = setting(
        1, "batches whose gradients make one step", check=whole(1), result=True
    )
    learning_rate: float = setting(5e-4, "of AdamW", check=POSITIVE, result=True)
    scale_lr: bool = setting(
        False, "multiply the learning rate by batch size and accumulation steps", result=True
    )
    lr_scheduler: str = setting(
        "constant", "how the learning rate changes over the steps", choices=RATES, result=True
    )
    lr_warmup_steps: int = setting(
        0, "first steps, in which the learning rate rises from 0", check=whole(0), result=True
    )
    adam_beta1: float = setting(
        0.9, "decay of AdamW's mean gradient", check=FRACTION_BELOW_1, result=True
    )
    adam_beta2: float = setting(
        0.999, "decay of its mean square", check=FRACTION_BELOW_1, result=True
    )
    adam_weight_decay: float = setting(
        1e-2, "pull of AdamW towards 0", check=NON_NEGATIVE, result=True
    )
    adam_epsilon: float = setting(
        1e-8, "what keeps AdamW from dividing by 0", check=NON_NEGATIVE, result=True
    )
    fit: str | None = setting(
        None,
        "how a photo gets into the model's square: mirrored at its edges, where no loss is "
        "taken, its middle alone, or squeezed (default squash)",
        choices=FITS,
        result="center_crop",
    )
    center_crop: bool = setting(False, "means --fit crop", result=True)
    mixed_precision: str = setting(
        "no", "precision of the frozen model; the new words are always float32", choices=PRECISIONS
    )
    gradient_checkpointing: bool = setting(False, "less memory")
    attention_slicing: bool = setting(False, "less memory, slower")
    compile: bool = setting(
        False, "torch.compile the UNet: faster after some minutes, and rounded differently"
    )


@settings(
    "a LoRA beside the words",
    "it learns what all photos of a trial have in common, after the trial's words and under them; "
    "photos per step, AdamW and precision are those of the words",
)
class DomainAdapter:
    lora_rank: int | None = setting(
        None,
        "train a LoRA of this rank, such as 8, for the UNet's attention (default: none)",
        check=whole(1, 4096),
        result="lora_rank",
        newer=True,
    )
    lora_steps: int = setting(
        500,
        "optimiser steps for a trial",
        check=whole(1),
        result="lora_steps",
        of="lora_rank",
        newer=True,
    )
    lora_learning_rate: float = setting(
        1e-4,
        "constant, of AdamW",
        check=POSITIVE,
        result="lora_learning_rate",
        of="lora_rank",
        newer=True,
    )
    prior_preservation: int = setting(
        0,
        "images of each class's name that the model itself makes once for the experiment and that "
        "are shown beside the photos, so that less is forgotten (arXiv 2208.12242)",
        check=whole(0, 10_000),
        result="prior_preservation",
        of="lora_rank",
        newer=True,
    )


@settings("interruptions")
class Interruptions:
    checkpointing_steps: int = setting(
        100, "steps between checkpoints, which are removed when a class is finished", check=whole(1)
    )
    checkpoints_total_limit: int = setting(
        2, "latest checkpoints kept of each class", check=whole(1)
    )
    resume_from_checkpoint: str = setting(
        "latest",
        "latest, or the path of one checkpoint file, from whose step its class goes on, and "
        "those that are trained together with it",
    )


@settings("watching")
class Watching:
    validation_prompt: str | None = setting(
        None, 'makes images with each word, *: "a photo of a *"'
    )
    validation_steps: int | None = setting(
        None,
        "steps between validations: a loss that is comparable between steps, and images of "
        "--validation_prompt (default: no such loss, and images at a class's end)",
        check=whole(1),
    )
    num_validation_images: int = setting(4, "images at each validation", check=whole(1, 1000))
    save_steps: int | None = setting(
        None, "keep the word after every so many steps as well", check=whole(1)
    )
    report_to: str = setting(
        "tensorboard", "tensorboard, wandb or another tracker of accelerate, all, or none"
    )


@settings()
class FineTuning(
    Watching, Interruptions, DomainAdapter, Training, Words, Sharing, Model, Selection, Stage
):
    """All settings of fine_tune.py but those of its run."""
