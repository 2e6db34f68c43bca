"""The settings of generate_augmentations.py, and what can be chosen there by name."""

from typing import Any

from semantic_aug.settings import (
    FINITE,
    FRACTION,
    FRACTION_ABOVE_0,
    FRACTION_BELOW_1,
    NON_NEGATIVE,
    POSITIVE,
    Check,
    setting,
    settings,
    whole,
)
from semantic_aug.settings.common import Model, Selection, Sharing, Stage

NAME_STYLES = ("words", "raw")
FITS = ("pad", "crop", "squash")
PRECISIONS = ("no", "fp16", "bf16")
# Samplers by name: a class of diffusers, and its changes to the model's configuration.
SCHEDULERS: dict[str, tuple[str, dict]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
# The ways of --filter, each with its default model.
CLIP, CLASSIFIER = "clip", "classifier"
FILTER_MODELS = {CLIP: "openai/clip-vit-base-patch32", CLASSIFIER: "resnet50"}

REAL_GUIDANCE, TEXTUAL_INVERSION = "real-guidance", "textual-inversion"
BACKGROUND, PASTE = "background", "paste"
# Values of --backgrounds; any other value is a folder.
PHOTOS, GENERATED = "photos", "generated"
PROMPTS = "prompts"
PARALLEL, SEQUENTIAL = "parallel", "sequential"
DEFAULT_PROMPT = "a photo of a {name}"
SAFETY_RETRIES = 3
OWN = "own"  # the safety checker of the model; the LoRA of the trial
NONE = "none"  # no LoRA, even if the trial has a LoRA
AUTO_BATCH = 32


@settings("experiment and trials")
class Name:
    aug_name: str = setting("aug", "folder of these images", early=True)


@settings("model")
class Precision:
    mixed_precision: str | None = setting(
        None,
        "precision of the model (default: fp16 on a GPU, else no); a CPU without bf16 "
        "instructions is slow in bf16",
        choices=PRECISIONS,
    )


@settings("additions to the model", late=True)
class Adapters:
    lora: str | None = setting(
        None,
        "LoRA weights: file, folder or hub id; own: each trial's LoRA, which fine_tune.py "
        "--lora_rank trains; none: no LoRA (default: own, if it exists and an edit uses learned "
        "words)",
        metavar="PATH|own|none",
        result=True,
    )
    lora_scale: float = setting(
        1.0, "weight of the LoRA", check=NON_NEGATIVE, of="lora", result=True, rare=True
    )
    controlnet: str | None = setting(
        None,
        "ControlNet for Canny edges: hub id or folder; an edit then keeps the edges of its "
        "photo, at a high strength too",
        metavar="NAME",
        result=True,
    )
    controlnet_scale: float = setting(
        1.0, "weight of the ControlNet", check=NON_NEGATIVE, of="controlnet", result=True, rare=True
    )
    unet_path: str | None = setting(
        None,
        "weights of the UNet: a folder in diffusers format or a state dict; {name} in the "
        "path gives each class its own UNet",
        flags=("--unet_path", "--erasure_ckpt_path"),
        metavar="PATH",
        result="unet",
        rare=True,
    )
    safety_checker: str | None = setting(
        None,
        "make flagged images again; the checker is the model's own, or a folder or hub id",
        metavar="NAME",
        bare=OWN,
        result=True,
    )
    safety_retries: int = setting(
        SAFETY_RETRIES,
        "attempts per flagged image; an image that stays flagged is black, and no "
        "classifier sees it",
        check=whole(0, 1000),
        of="safety_checker",
        result=True,
        rare=True,
    )


@settings("edits", "a value for all augmentations, or a value for each")
class Edits:
    num_synthetic: int = setting(10, "variants of each photo", check=whole(1))
    aug: tuple[Any, ...] | None = setting(
        None,
        "real-guidance, textual-inversion, background, paste; real-guidance and "
        "textual-inversion edit a photo; background keeps the object and makes new "
        "surroundings; paste puts the object on another place; package.module:ClassName is "
        "an augmentation of your own (default: textual-inversion if words are learned, else "
        "real-guidance)",
        result="edits",
        takes_objects=True,
    )
    prompt: tuple[str, ...] = setting(
        (DEFAULT_PROMPT,),
        "prompts, or a text file of prompts; {name} is the learned word or the class name, "
        "{token} the learned word, {description} the dataset's text for a photo; each image "
        "draws a prompt",
        result=True,
    )
    name_style: str = setting(
        "words",
        "how {name} writes a class; words: bevel gear for bevel_gear and BevelGear; raw: unchanged",
        choices=NAME_STYLES,
        result=True,
        newer=True,
        rare=True,
    )
    negative_prompt: str | None = setting(
        None,
        "what images must not show; holds for all edits, and needs a --guidance_scale above 1",
        metavar="TEXT",
        result=True,
        newer=True,
    )
    strength: tuple[float, ...] | None = setting(
        None,
        "share of a photo replaced, in (0, 1] (default 0.5, background 1.0)",
        check=FRACTION_ABOVE_0,
        result="edits",
    )
    guidance_scale: tuple[float, ...] = setting(
        (7.5,), "weight of the prompt", check=FINITE, result="edits"
    )
    mask: tuple[int, ...] = setting(
        (0,), "1: edit the object alone", choices=(0, 1), result="edits"
    )
    inverted: tuple[int, ...] = setting(
        (0,), "1, with --mask 1: edit all but the object", choices=(0, 1), result="edits"
    )
    mask_grow_radius: float = setting(
        0.0,
        "pixels of the photo by which the edited region grows; below 0 it shrinks",
        check=FINITE,
        result=True,
        rare=True,
    )
    mask_feather: float = setting(
        0.0,
        "width of a soft seam around the edited region, in pixels of the photo",
        check=NON_NEGATIVE,
        result=True,
        rare=True,
    )
    fit: str = setting(
        "pad",
        "how a photo fills the model's square: pad mirrors its edges, crop keeps its "
        "middle, squash changes its proportions",
        choices=FITS,
        result=True,
        rare=True,
    )
    save_size: int | None = setting(
        None,
        "longer side of the images in pixels; larger photos and their masks are reduced "
        "before the edit (default: as large as the photo)",
        check=whole(1),
        result=True,
        newer=True,
        rare=True,
    )
    compose: str = setting(
        PARALLEL,
        "parallel: an augmentation for each image; sequential: all augmentations in turn "
        "for each image",
        choices=(PARALLEL, SEQUENTIAL),
        result=True,
    )
    probs: tuple[float, ...] | None = setting(
        None,
        "parallel: probability of each augmentation, of sum 1 (default equal); sequential: "
        "probability that each is applied, in [0, 1] (default 1)",
        check=FINITE,
        result=True,
        rare=True,
    )
    num_inference_steps: int = setting(
        50,
        "denoising steps at strength 1; an edit runs strength times as many",
        check=whole(1, 10_000),
        result=True,
    )
    scheduler: str | None = setting(
        None, "sampler (default: the model's)", choices=SCHEDULERS, result=True
    )
    batch_size: int = setting(
        4,
        f"images per batch, or auto; auto is {AUTO_BATCH}, or fewer if the GPU's memory is "
        "too small",
        check=whole(1),
        named={"auto": AUTO_BATCH},
    )
    compile: bool = setting(False, "torch.compile the UNet; faster after a minute", rare=True)
    low_memory: bool = setting(
        False,
        "for a GPU of 8 GB, slower; parts of the model stay in the CPU's memory, and images "
        "are decoded in pieces",
    )
    embed_path: str | None = setting(
        None,
        "file of learned words; may hold {seed} and {examples_per_class} (default: the "
        "merged file of the trial)",
        rare=True,
    )


@settings("surroundings", "for --aug background and paste, which need masks")
class Surroundings:
    places: str | None = setting(
        None,
        "text file with a place per line; each image draws a place; lines that begin with # "
        "are comments (default: the package's list)",
        metavar="FILE",
        result="place lines",
        newer=True,
    )
    layout_scale: tuple[float, ...] | None = setting(
        None,
        "smallest and largest factor of the object's size",
        check=POSITIVE,
        result=True,
        newer=True,
    )
    layout_rotate: float = setting(
        0.0,
        "largest rotation of the object in degrees, either way",
        check=(Check(lambda value: 0 <= value <= 180, "degrees in [0, 180]"),),
        result=True,
        newer=True,
        rare=True,
    )
    layout_shift: float = setting(
        0.0,
        "largest shift of the object, as a share of the photo's sides",
        check=FRACTION,
        result=True,
        newer=True,
        rare=True,
    )
    layout_mirror: bool = setting(
        False, "mirror the object half of the time", result=True, newer=True, rare=True
    )
    layout_colour: float = setting(
        0.0,
        "change of the object's hue, saturation and brightness, in [0, 1]",
        check=FRACTION,
        result=True,
        newer=True,
        rare=True,
    )
    harmonize: float = setting(
        0.0,
        "background: strength of a last mild edit of the whole image, such as 0.15; it "
        "adapts light and shadow; 0 for none",
        check=FRACTION,
        result=True,
        newer=True,
        rare=True,
    )
    backgrounds: str = setting(
        PHOTOS,
        "paste: photos, generated, or a folder; photos: other photos of the trial with "
        "their objects painted over; generated: places that the model draws; a folder: its "
        "images",
        result=True,
        newer=True,
    )
    num_places: int = setting(
        64,
        "generated: places drawn for a trial",
        check=whole(1, 100_000),
        result=True,
        newer=True,
        rare=True,
    )
    places_from: str = setting(
        PROMPTS,
        "generated: prompts or photos; prompts: from text alone; photos: new surroundings "
        "of a photo whose object is then painted over, for a model that draws no place "
        "without an object",
        choices=(PROMPTS, PHOTOS),
        result=True,
        newer=True,
        rare=True,
    )
    shadow: float = setting(
        0.4,
        "paste: darkness of the object's soft contact shadow, 0 for none",
        check=FRACTION,
        result=True,
        newer=True,
        rare=True,
    )


@settings(
    "quality gate",
    "marks the worst images of each class; train_classifier.py leaves them out",
    late=True,
)
class Gate:
    filter: str | None = setting(
        None,
        "score by CLIP's similarity or a classifier; clip: an image's similarity to its "
        "class name; classifier: the confidence of a classifier trained on the trial's real "
        "photos",
        choices=FILTER_MODELS,
    )
    filter_quantile: float = setting(
        0.1,
        "share of each class to mark, in [0, 1); another share later needs no new scores",
        check=FRACTION_BELOW_1,
        of="filter",
    )
    filter_model: str | None = setting(
        None,
        f"hub id or folder of the CLIP, or of the classifier's backbone (default "
        f"{', '.join(FILTER_MODELS.values())})",
        of="filter",
        rare=True,
    )


@settings()
class Generation(
    Gate, Surroundings, Edits, Sharing, Adapters, Precision, Model, Selection, Name, Stage
):
    """All settings of generate_augmentations.py except the settings of its run."""


@settings()
class Previewing:
    preview: bool = setting(
        False,
        "make a sheet and estimate the cost; the sheet shows a few photos at several "
        "strengths and by several methods; the cost is in seconds, hours and megabytes; no "
        "images are made",
    )
