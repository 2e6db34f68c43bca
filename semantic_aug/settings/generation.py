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
# Samplers by name: a class of diffusers, and what differs from the model's configuration.
SCHEDULERS: dict[str, tuple[str, dict]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
# What --filter scores images with, and the model of each.
CLIP, CLASSIFIER = "clip", "classifier"
FILTER_MODELS = {CLIP: "openai/clip-vit-base-patch32", CLASSIFIER: "resnet50"}

REAL_GUIDANCE, TEXTUAL_INVERSION = "real-guidance", "textual-inversion"
BACKGROUND, PASTE = "background", "paste"
# Places for --backgrounds; any other value is a folder.
PHOTOS, GENERATED = "photos", "generated"
PROMPTS = "prompts"
PARALLEL, SEQUENTIAL = "parallel", "sequential"
DEFAULT_PROMPT = "a photo of a {name}"
SAFETY_RETRIES = 3
OWN = "own"  # the safety checker that the model comes with; the LoRA of the trial
NONE = "none"  # no LoRA, also where the trial has its own
AUTO_BATCH = 32


@settings("experiment and trials")
class Name:
    aug_name: str = setting("aug", "folder of these images", early=True)


@settings("model")
class Precision:
    mixed_precision: str | None = setting(
        None,
        "precision of the model (default: fp16 on a GPU, else no); a CPU without instructions for "
        "bf16 is slow in it",
        choices=PRECISIONS,
    )


@settings("beside the model", late=True)
class Adapters:
    lora: str | None = setting(
        None,
        "file, folder or hub id of LoRA weights for the model, for all trials; own: what "
        "fine_tune.py --lora_rank has trained of each trial; none (default: own where there is "
        "one and an edit uses learned words, for all edits of the set)",
        metavar="PATH",
        result=True,
    )
    lora_scale: float = setting(
        1.0, "weight of the LoRA", check=NON_NEGATIVE, of="lora", result=True
    )
    controlnet: str | None = setting(
        None,
        "hub id or folder of a ControlNet for Canny edges: an edit keeps the edges of its "
        "photo, at a high strength too",
        metavar="NAME",
        result=True,
    )
    controlnet_scale: float = setting(
        1.0, "weight of the ControlNet", check=NON_NEGATIVE, of="controlnet", result=True
    )
    unet_path: str | None = setting(
        None,
        "weights for the model's UNet: a folder in diffusers format or a state dict; with "
        "{name} in it, each class has its own",
        flags=("--unet_path", "--erasure_ckpt_path"),
        metavar="PATH",
        result="unet",
    )
    safety_checker: str | None = setting(
        None,
        "make images again that a safety checker flags: the model's own, or that of a folder "
        "or hub id",
        metavar="NAME",
        bare=OWN,
        result=True,
    )
    safety_retries: int = setting(
        SAFETY_RETRIES,
        "how often; an image that stays flagged is black, and no classifier sees it",
        check=whole(0, 1000),
        of="safety_checker",
        result=True,
    )


@settings("edits", "one value counts for all augmentations, else there is one value for each")
class Edits:
    num_synthetic: int = setting(10, "variants of each photo", check=whole(1))
    aug: tuple[Any, ...] | None = setting(
        None,
        "real-guidance, textual-inversion: edit a photo; background: keep the object, make new "
        "surroundings; paste: put the object on another place; or package.module:ClassName "
        "(default: textual-inversion where the experiment has learned words, else real-guidance)",
        result="edits",
        takes_objects=True,
    )
    prompt: tuple[str, ...] = setting(
        (DEFAULT_PROMPT,),
        "{name} is the class name or its learned word, {token} the latter alone, "
        "{description} what the dataset says of a photo; of several, or of the lines of a text "
        "file, one is drawn per image",
        result=True,
    )
    name_style: str = setting(
        "words",
        "how {name} writes a class: as words, bevel gear for bevel_gear and BevelGear, or as it is",
        choices=NAME_STYLES,
        result=True,
        newer=True,
    )
    negative_prompt: str | None = setting(
        None,
        "what no image shall show, for all edits; needs a --guidance_scale above 1",
        metavar="TEXT",
        result=True,
        newer=True,
    )
    strength: tuple[float, ...] | None = setting(
        None,
        "how much of a photo is replaced, in (0, 1] (default 0.5, of background 1.0)",
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
        "by how many pixels of the photo the edited region grows; below 0, it shrinks",
        check=FINITE,
        result=True,
    )
    mask_feather: float = setting(
        0.0,
        "width of a soft seam around the edited region, in pixels of the photo",
        check=NON_NEGATIVE,
        result=True,
    )
    fit: str = setting(
        "pad",
        "how a photo gets into the model's square: mirrored at its edges, its middle alone, "
        "or squeezed",
        choices=FITS,
        result=True,
    )
    save_size: int | None = setting(
        None,
        "longer side of the images in pixels: larger photos are reduced, and so are their masks, "
        "before the edit (default: each as large as its photo)",
        check=whole(1),
        result=True,
        newer=True,
    )
    compose: str = setting(
        PARALLEL,
        "of several augmentations, one per image, or one after the other",
        choices=(PARALLEL, SEQUENTIAL),
        result=True,
    )
    probs: tuple[float, ...] | None = setting(
        None,
        "parallel: how often each is drawn, of sum 1 (default equal); sequential: how often "
        "each is applied, in [0, 1] (default 1)",
        check=FINITE,
        result=True,
    )
    num_inference_steps: int = setting(
        50,
        "steps of a full denoising, of which an edit runs strength times as many",
        check=whole(1, 10_000),
        result=True,
    )
    scheduler: str | None = setting(
        None, "another sampler (default: the model's own)", choices=SCHEDULERS, result=True
    )
    batch_size: int = setting(
        4,
        f"images at once; auto: {AUTO_BATCH}, or what fits into the GPU's memory",
        check=whole(1),
        named={"auto": AUTO_BATCH},
    )
    compile: bool = setting(False, "torch.compile the UNet: faster after a minute")
    low_memory: bool = setting(
        False, "keep parts of the model in the CPU's memory and decode in pieces: fits 8 GB, slower"
    )
    embed_path: str | None = setting(
        None,
        "file of learned words, may hold {seed} and {examples_per_class} "
        "(default: the merged file of the trial)",
    )


@settings("surroundings", "for --aug background and --aug paste, which need masks")
class Surroundings:
    places: str | None = setting(
        None,
        "text file with a place per line, of which one is drawn per image, and comments in lines "
        "that begin with # (default: a list that comes with this package)",
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
        "the object is turned by up to that many degrees, either way",
        check=(Check(lambda value: 0 <= value <= 180, "degrees in [0, 180]"),),
        result=True,
        newer=True,
    )
    layout_shift: float = setting(
        0.0,
        "the object is moved by up to that share of the photo's sides",
        check=FRACTION,
        result=True,
        newer=True,
    )
    layout_mirror: bool = setting(
        False, "mirror the object half of the time", result=True, newer=True
    )
    layout_colour: float = setting(
        0.0,
        "how far hue, saturation and brightness of the object alone change, in [0, 1]",
        check=FRACTION,
        result=True,
        newer=True,
    )
    harmonize: float = setting(
        0.0,
        "background: strength of a last mild edit of the whole, such as 0.15, so that light and "
        "shadow meet; 0 for none",
        check=FRACTION,
        result=True,
        newer=True,
    )
    backgrounds: str = setting(
        PHOTOS,
        "paste: photos, which are other photos of the trial with their objects painted over; "
        "generated, places that the model draws; or a folder of images",
        result=True,
        newer=True,
    )
    num_places: int = setting(
        64, "generated: places drawn for a trial", check=whole(1, 100_000), result=True, newer=True
    )
    places_from: str = setting(
        PROMPTS,
        "generated: prompts, from text alone; or photos, as new surroundings of a photo whose "
        "object is then painted over, for a model that draws no place without an object",
        choices=(PROMPTS, PHOTOS),
        result=True,
        newer=True,
    )
    shadow: float = setting(
        0.4,
        "paste: darkness of the object's soft contact shadow, 0 for none",
        check=FRACTION,
        result=True,
        newer=True,
    )


@settings(
    "quality gate",
    "the worst images of each class are marked; train_classifier.py leaves them out, and nothing "
    "is deleted",
    late=True,
)
class Gate:
    filter: str | None = setting(
        None,
        "score every image by its similarity to the name of its class (CLIP), or by the "
        "confidence of a classifier that was trained on the real photos of the trial",
        choices=FILTER_MODELS,
    )
    filter_quantile: float = setting(
        0.1,
        "share of each class to mark, in [0, 1); another one later computes no score again",
        check=FRACTION_BELOW_1,
        of="filter",
    )
    filter_model: str | None = setting(
        None,
        "hub id or folder of the CLIP, or of the classifier's backbone (default "
        f"{', '.join(FILTER_MODELS.values())})",
        of="filter",
    )


@settings()
class Generation(
    Gate, Surroundings, Edits, Sharing, Adapters, Precision, Model, Selection, Name, Stage
):
    """All settings of generate_augmentations.py but those of its run."""


@settings()
class Previewing:
    preview: bool = setting(
        False,
        "make no images, but a sheet of what strengths and methods would make of a few photos, and "
        "say what it costs to make all: seconds, hours, megabytes",
    )
