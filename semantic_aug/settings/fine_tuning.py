"""The settings of fine_tune.py."""

from semantic_aug.settings import (
    FRACTION_ABOVE_0,
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
# Schedules that do not depend on the total number of steps.
CONSTANT_RATES = ("constant", "constant_with_warmup")
# What affects a LoRA beside the settings of its words.
LORA_SETTINGS = ("lora_rank", "lora_steps", "lora_learning_rate", "prior_preservation")


@settings("the new words")
class Words:
    initializer_token: str | None = setting(
        None,
        "word that the new words start from; it must be a single token (default: the last "
        "such word of the class name)",
    )
    placeholder_token: str | None = setting(
        None, "placeholder token of the new word, for one class", rare=True
    )
    num_vectors: int = setting(1, "vectors per word", check=whole(1), result=True)
    templates: str | None = setting(
        None,
        "object, style, mvip or a text file; sentences that the word is trained in, mvip "
        "for machine parts; in a file, one sentence per line with {} for the word (default: "
        "--learnable_property)",
        result=True,
    )
    learnable_property: str = setting(
        "object",
        "sentences for a thing or for a style",
        choices=("object", "style"),
        result="templates",
        rare=True,
    )


@settings("training")
class Training:
    max_train_steps: int | None = setting(
        None, "optimiser steps per class (default 1000)", check=whole(1), result=True
    )
    num_train_epochs: int | None = setting(
        None,
        "in place of --max_train_steps: epochs over a class's photos, each photo counted "
        "--repeats times",
        check=whole(1),
        result=True,
        rare=True,
    )
    repeats: int = setting(
        100, "times that an epoch shows each photo", check=whole(1), result=True, rare=True
    )
    train_batch_size: int = setting(
        4, "photos of each class per batch", check=whole(1, 4096), result=True
    )
    classes_per_step: int = setting(
        8,
        "classes trained together; fewer classes need less memory, and give the same words "
        "except for rounding",
        check=whole(1),
    )
    gradient_accumulation_steps: int = setting(
        1, "batches whose gradients make one step", check=whole(1), result=True, rare=True
    )
    learning_rate: float = setting(5e-4, "AdamW's learning rate", check=POSITIVE, result=True)
    scale_lr: bool = setting(
        False,
        "multiply the learning rate by batch size and accumulation steps",
        result=True,
        rare=True,
    )
    lr_scheduler: str = setting(
        "constant",
        "how the learning rate changes over the steps",
        choices=RATES,
        result=True,
        rare=True,
    )
    lr_warmup_steps: int = setting(
        0,
        "first steps, in which the learning rate rises from 0",
        check=whole(0),
        result=True,
        rare=True,
    )
    stop_when_converged: float | None = setting(
        None,
        "end a word's training when the loss on a fixed batch hardly changes; its variance in "
        "--convergence_window is then below this share of its variance so far (arXiv 2302.04841; "
        "0.15 without a number)",
        check=FRACTION_ABOVE_0,
        bare=0.15,
        metavar="SHARE",
        result=True,
    )
    convergence_window: int = setting(
        310,
        "optimiser steps over which that loss must hardly change",
        check=whole(1),
        result=True,
        of="stop_when_converged",
        rare=True,
    )
    adam_beta1: float = setting(
        0.9, "AdamW's decay of the mean gradient", check=FRACTION_BELOW_1, result=True, rare=True
    )
    adam_beta2: float = setting(
        0.999,
        "AdamW's decay of the mean squared gradient",
        check=FRACTION_BELOW_1,
        result=True,
        rare=True,
    )
    adam_weight_decay: float = setting(
        1e-2, "AdamW's weight decay", check=NON_NEGATIVE, result=True, rare=True
    )
    adam_epsilon: float = setting(
        1e-8,
        "AdamW's epsilon, which prevents a division by 0",
        check=NON_NEGATIVE,
        result=True,
        rare=True,
    )
    fit: str | None = setting(
        None,
        "how a photo fills the model's square: pad mirrors its edges, where no loss is "
        "taken; crop keeps its middle; squash changes its proportions (default squash)",
        choices=FITS,
        result="center_crop",
        rare=True,
    )
    center_crop: bool = setting(False, "the same as --fit crop", result=True, rare=True)
    mixed_precision: str = setting(
        "no", "precision of the frozen model; the new words are always float32", choices=PRECISIONS
    )
    gradient_checkpointing: bool = setting(False, "use less memory, slower")
    attention_slicing: bool = setting(False, "use less memory, slower", rare=True)
    compile: bool = setting(
        False,
        "torch.compile the UNet; faster after some minutes, with other rounding",
        rare=True,
    )


@settings(
    "a LoRA beside the words",
    "it learns what all photos of a trial have in common, after the trial's words and with them in "
    "prompts; photos per step, AdamW and precision are the same as for words",
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
        rare=True,
    )
    lora_learning_rate: float = setting(
        1e-4,
        "AdamW's constant learning rate",
        check=POSITIVE,
        result="lora_learning_rate",
        of="lora_rank",
        newer=True,
        rare=True,
    )
    prior_preservation: int = setting(
        0,
        "images per class that the unchanged model makes from the class name; training on them too "
        "prevents forgetting (arXiv 2208.12242)",
        check=whole(0, 10_000),
        result="prior_preservation",
        of="lora_rank",
        newer=True,
    )


@settings("interruptions")
class Interruptions:
    checkpointing_steps: int = setting(
        100,
        "steps between checkpoints; a finished class keeps none",
        check=whole(1),
        rare=True,
    )
    checkpoints_total_limit: int = setting(
        2, "latest checkpoints kept of each class", check=whole(1), rare=True
    )
    resume_from_checkpoint: str = setting(
        "latest",
        "latest, or the path of a checkpoint; its class and the classes trained together "
        "with it go on from its step",
        rare=True,
    )


@settings("validation and tracking")
class Watching:
    validation_prompt: str | None = setting(
        None, 'prompt of validation images, with * for each word: "a photo of a *"'
    )
    validation_steps: int | None = setting(
        None,
        "steps between validations (default: none); a validation computes a loss that is "
        "comparable between steps, and makes images of --validation_prompt; a class's end "
        "always makes such images",
        check=whole(1),
    )
    num_validation_images: int = setting(
        4, "images per validation", check=whole(1, 1000), rare=True
    )
    save_steps: int | None = setting(
        None, "steps between further copies of the word (default: none)", check=whole(1), rare=True
    )
    report_to: str = setting(
        "tensorboard",
        "tensorboard, wandb or another tracker of accelerate, all, or none",
        rare=True,
    )


@settings()
class FineTuning(
    Watching, Interruptions, DomainAdapter, Training, Words, Sharing, Model, Selection, Stage
):
    """All settings of fine_tune.py except the settings of its run."""
