"""The kind of a model, from its configuration alone, before anything is loaded."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.diffusion.identity import commit_of, identity_of
from semantic_aug.experiment.config import Identity

log = logging.getLogger(__name__)

SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
# The prediction of a UNet: the noise, the velocity (arXiv 2202.00512), or the clean latents.
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class ModelInfo:
    """The facts from a model's configuration files, before any weights are read.

    Attributes:
        name: hub id or folder, as given.
        identity: of its weights, see `identity_of`.
        revision: the commit of a hub model, so that the inspected model is loaded.
        resolution: pixels per side of the model's images.
        multiple: pixels; a resolution must be a multiple of this number.
        embedding_dims: width of the rows of each text encoder.
        for_inpainting: the UNet also sees a mask and the masked photo.
        few_steps: the model was probably distilled to a few steps, like LCM and the Turbo models.
        is_told_guidance: the UNet takes the guidance scale, in place of classifier-free guidance
            (arXiv 2310.04378, section 4.2).
    """

    name: str
    identity: Identity
    revision: str | None
    variant: str | None
    resolution: int
    multiple: int
    embedding_dims: tuple[int, ...]
    for_inpainting: bool = False
    few_steps: bool = False
    is_told_guidance: bool = False

    @property
    def is_xl(self) -> bool:
        """Whether the model has two text encoders (arXiv 2307.01952, section 2.1)."""
        return len(self.embedding_dims) == 2


def inspect_model(name: str, revision: str | None = None, variant: str | None = None) -> ModelInfo:
    """Read the configuration of a model.

    `revision="fp16"` means today's `variant="fp16"`: half-precision weights once lay in a branch
    of this name.

    Raises:
        UserError: the folder is no Stable Diffusion pipeline, or the hub model is neither
            reachable nor in the local cache.
    """
    if revision == "fp16":
        revision, variant = None, variant or "fp16"
    index = read_json(name, "model_index.json", revision)
    missing = [key for key in ("unet", "vae", "text_encoder", "tokenizer") if key not in index]
    if missing:
        raise UserError(f"{name} is no Stable Diffusion pipeline: it has no {', '.join(missing)}")
    unet = read_json(name, "unet/config.json", revision)
    vae = read_json(name, "vae/config.json", revision)
    texts = ["text_encoder", *(["text_encoder_2"] if "text_encoder_2" in index else [])]
    encoders = [read_json(name, f"{part}/config.json", revision) for part in texts]
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    try:
        widths = [part["block_out_channels"] for part in (vae, unet)]
        side = side_of(unet["sample_size"])
        dims = tuple(encoder["hidden_size"] for encoder in encoders)
        levels = [len(each) for each in widths]
        for number in (channels, latents, *levels, *widths[0], *widths[1], side, *dims):
            if not (isinstance(number, int) and 0 < number < 100_000):
                raise ValueError(f"a number of pixels, channels or levels is {number!r}")
    except (LookupError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{name}: its configuration files are damaged: {reason}") from error
    factor, depth = (2 ** (level - 1) for level in levels)
    if channels not in (latents, 2 * latents + 1):
        raise UserError(
            f"{name}: its UNet needs more than an image, like models for instructions or depth; "
            "expected an ordinary Stable Diffusion or an inpainting model"
        )
    scheduler = read_json(name, SCHEDULER_CONFIG, revision)
    predicts = scheduler.get("prediction_type", PREDICTIONS[0])
    if predicts not in PREDICTIONS:
        raise UserError(
            f"{name}: {SCHEDULER_CONFIG} says that its UNet predicts {predicts!r}; known: "
            f"{', '.join(PREDICTIONS)}"
        )
    few_steps = scheduler.get("timestep_spacing") == "trailing"  # other models lack it
    few_steps |= scheduler.get("_class_name") == "LCMScheduler"
    return ModelInfo(
        name=name,
        identity=identity_of(name, revision, variant, older=f"{name}@{revision or 'main'}"),
        revision=commit_of(name, revision) or revision,
        variant=variant,
        resolution=side * factor,
        multiple=factor * depth,
        embedding_dims=dims,
        for_inpainting=channels != latents,
        few_steps=few_steps,
        is_told_guidance=unet.get("time_cond_proj_dim") is not None,
    )


def has_part(info: ModelInfo, part: str) -> bool:
    """Whether a model has an optional part, such as a safety checker."""
    return any(read_json(info.name, "model_index.json", info.revision).get(part) or [])


def side_of(sample_size: int | Sequence[int]) -> int:
    """The side of a `sample_size`, which may be a number or height and width."""
    return sample_size if isinstance(sample_size, int) else sample_size[0]


def check_resolution(info: ModelInfo, resolution: int | None) -> int:
    """The working resolution in pixels: as given, or the model's own."""
    if resolution is None:
        return info.resolution
    if resolution % info.multiple:
        near = max(info.multiple, round(resolution / info.multiple) * info.multiple)
        raise UserError(
            f"--resolution: got {resolution}, this model needs a multiple of {info.multiple}, "
            f"such as {near}"
        )
    return resolution


def read_json(name: str, file: str, revision: str | None) -> dict:
    """A configuration file of a model; UserError if it is absent or broken."""
    path = model_file(name, file, revision)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{name}: {file} is no configuration")
    return content


def model_file(name: str, file: str, revision: str | None = None) -> Path:
    """A file of a model, from its folder or the hub; without a network, from the hub's cache."""
    if Path(name).exists():
        path = Path(name) / file
        if not path.is_file():
            raise UserError(f"{name} is no diffusers pipeline: it has no {file}")
        return path
    if Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise UserError(f"model folder {name} does not exist")
    from huggingface_hub import hf_hub_download, is_offline_mode, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError

    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        if not is_offline_mode():
            log.info("downloading %s from the hub", name)
        return Path(hf_hub_download(name, file, revision=revision))
    except GatedRepoError as error:
        raise UserError(
            f"{name} needs a login: accept its terms on its hub page, then run hf auth login"
        ) from error
    except (OSError, ValueError, HFValidationError) as error:
        at = f" at revision {revision}" if revision else ""
        raise UserError(
            f"cannot get {name}{at}: it is no folder, the local cache has no copy, and the hub has "
            "no such model or cannot be reached; give a folder, or run once with a network"
        ) from error
