"""Loading a diffusion pipeline: model, device, dtype, variant, sampler. Only done here."""

import contextlib
import glob
import logging
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from semantic_aug import UserError, counted, first_line
from semantic_aug.diffusion.inspecting import SCHEDULER_CONFIG, ModelInfo, read_json
from semantic_aug.experiment.sharding import local_rank
from semantic_aug.settings.generation import SCHEDULERS

log = logging.getLogger(__name__)

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

MOST_TIMESTEPS = 100_000  # models have 1000

# Errors of the libraries on missing, broken or unknown files of a model.
LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    SafetensorError,
)


def pick_device(name: str | None = None) -> torch.device:
    """The given device, else CUDA, else MPS, else the CPU.

    Each process of a launch takes its own GPU of this machine.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank() % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device: {name!r} is not there: {first_line(error)}") from error
    return device


def pick_dtype(device: torch.device, mixed_precision: str) -> torch.dtype:
    """The given type; on the CPU, float32 replaces float16, which is slow there."""
    dtype = DTYPES[mixed_precision]
    if device.type == "cpu" and dtype == torch.float16:
        log.warning("no GPU: float32 is used in place of --mixed_precision=%s", mixed_precision)
        return torch.float32
    return dtype


def warn_if_slow(device: torch.device, mixed_precision: str) -> None:
    """Warn of bfloat16 on a CPU without instructions for it."""
    if device.type == "cpu" and DTYPES[mixed_precision] == torch.bfloat16 and not cpu_has_bf16():
        log.warning(
            "this CPU has no instructions for bfloat16: --mixed_precision=bf16 is many times "
            "slower than --mixed_precision=no (float32)"
        )


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies in bfloat16: AVX-512 BF16 or AMX, or Arm's BF16."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    # Without these instructions, x86 converts to float32 and back.
    native = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    return not is_x86 or any(each() for each in native)


def load_tokenizer(info: ModelInfo):
    """The model's first tokenizer, which is small, without the model."""
    from transformers import CLIPTokenizer

    # Not AutoTokenizer, which needs a configuration that a cached pipeline lacks.
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            info.name, subfolder="tokenizer", revision=info.revision
        )
    except LOADING_ERRORS as error:
        raise _cannot_load(info, error) from error
    _check_tokenizer(info, tokenizer)
    return tokenizer


def _check_tokenizer(info: ModelInfo, tokenizer) -> None:
    """Raise UserError if a tokenizer's files are missing: it loads, but knows no words."""
    if len(tokenizer) < 256:  # a byte-level vocabulary has at least every byte
        raise UserError(f"cannot load {info.name}: files of its tokenizer are missing")


def load_pipeline(info: ModelInfo, device: torch.device, dtype: torch.dtype):
    """The model's own text-to-image pipeline, frozen, in one dtype, without a safety checker.

    A text encoder or VAE in half precision is converted to `dtype` too, because mixed parts crash.

    Raises:
        UserError: weights are missing, broken, or not available offline.
    """
    index = read_json(info.name, "model_index.json", info.revision)
    options: dict[str, Any] = {}
    if "safety_checker" in index:
        options["safety_checker"] = None
    if "requires_safety_checker" in index or "safety_checker" in index:
        options["requires_safety_checker"] = False
    variant = info.variant
    # diffusers silently loads a folder that lacks the variant, so the variant is checked here.
    weights = f"*/*.{glob.escape(variant or '')}*"
    if variant and Path(info.name).is_dir() and not any(Path(info.name).glob(weights)):
        _warn_of_no_variant(info)
        variant = None
    options |= _load_text_encoders(info, index, dtype, variant)
    try:
        pipeline = _from_pretrained(info, dtype, variant, options)
    except UserError as error:
        if variant is None or "variant" not in str(error.__cause__):
            raise
        _warn_of_no_variant(info)
        pipeline = _from_pretrained(info, dtype, None, options)
    _check_tokenizer(info, pipeline.tokenizer)
    pipeline = _as_stable_diffusion(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    for part, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            check_whole(component, f"{info.name}/{part}")
            component.requires_grad_(False).eval()
    return pipeline.to(device)


def check_whole(model: torch.nn.Module, name: str, lacking: Iterable[str] = ()) -> None:
    """Raise UserError if weights lack a tensor, which diffusers would leave without values.

    Args:
        lacking: tensors that transformers reports as missing and fills at random.
    """
    state = model.state_dict().items()
    lacking = sorted(lacking) or [key for key, tensor in state if tensor.is_meta]
    if lacking:
        raise UserError(
            f"{name}: its weights lack {counted(len(lacking), 'tensor')}, such as {lacking[0]}: "
            "fetch the weights again"
        )


def _load_text_encoders(info: ModelInfo, index: dict, dtype: torch.dtype, variant) -> dict:
    """The text encoders by name; a pipeline would not report missing weights."""
    import transformers

    encoders = {}
    for part in ("text_encoder", "text_encoder_2")[: len(info.embedding_dims)]:
        options = {"subfolder": part, "revision": info.revision, "dtype": dtype}
        kind = getattr(transformers, index[part][1])
        try:
            with quiet_loading():
                try:
                    loaded = kind.from_pretrained(
                        info.name, variant=variant, output_loading_info=True, **options
                    )
                except OSError:
                    if variant is None:
                        raise
                    loaded = kind.from_pretrained(info.name, output_loading_info=True, **options)
        except LOADING_ERRORS as error:
            raise _cannot_load(info, error) from error
        encoders[part], report = loaded
        check_whole(encoders[part], f"{info.name}/{part}", report["missing_keys"])
    return encoders


def _as_stable_diffusion(pipeline):
    """A latent consistency model's parts in the ordinary pipelines for edits and inpainting.

    Its own pipeline cannot inpaint, and its strength does not set the share of the steps.
    """
    from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline

    if not isinstance(pipeline, LatentConsistencyModelPipeline):
        return pipeline
    return StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)


def make_scheduler(info: ModelInfo, kind: str | None = None, **options):
    """A scheduler of diffusers from the model's configuration, before any weights are read.

    Args:
        kind: its class (default: the model's own).
        options: changes to the configuration.

    Raises:
        UserError: the configuration is wrong.
    """
    import diffusers

    config = read_json(info.name, SCHEDULER_CONFIG, info.revision)
    kind = kind or str(config.get("_class_name"))
    try:
        if not 1 <= config.get("num_train_timesteps", 1000) <= MOST_TIMESTEPS:
            raise ValueError(f"num_train_timesteps: expected 1 to {MOST_TIMESTEPS}")
        return getattr(diffusers, kind).from_config(config, **options)
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{info.name}: {SCHEDULER_CONFIG} makes no {kind}: {reason}") from error


def noise_scheduler_of(pipeline):
    """The scheduler that adds noise in training, with the levels of the model's own sampler."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipeline.scheduler.config)


def check_steps(info: ModelInfo, scheduler: str | None, num_inference_steps: int) -> None:
    """Raise UserError if the sampler cannot do so many steps."""
    kind, options = SCHEDULERS.get(scheduler or "", (None, {}))
    sampler = make_scheduler(info, kind, **options)
    try:
        sampler.set_timesteps(num_inference_steps)
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--num_inference_steps: {type(sampler).__name__} cannot do {num_inference_steps}: "
            f"{reason}"
        ) from error


def set_scheduler(pipeline, name: str | None) -> None:
    """Replace the sampler: a name of SCHEDULERS, or None for the model's own."""
    if name is None:
        return
    import diffusers

    kind, options = SCHEDULERS[name]
    pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **options)


def tune_for_speed(pipeline, compile_unet: bool) -> None:
    """Reorder weights for fast convolutions, and compile the UNet if asked for.

    On the CPU, float32 convolutions gain nothing, and would round differently.
    """
    on_cpu_in_half = pipeline.device.type == "cpu" and pipeline.unet.dtype == torch.bfloat16
    if pipeline.device.type == "cuda" or on_cpu_in_half:
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
    if compile_unet:
        pipeline.unet.compile()


def tune_for_memory(pipeline) -> None:
    """Compute attention and decode images in pieces."""
    pipeline.vae.enable_slicing()
    pipeline.vae.enable_tiling()
    pipeline.enable_attention_slicing()


def offload(pipelines: Iterable, device: torch.device) -> None:
    """Keep the parts of pipelines in the CPU's memory until `device` computes with them.

    Pipelines may share parts. Add learned words before: otherwise diffusers would set up everything
    again for the device where the text encoder waits.
    """
    for pipeline in pipelines:
        pipeline.enable_model_cpu_offload(device=device)


def text_encoders(pipeline) -> list[tuple]:
    """The (tokenizer, text encoder) pairs of a pipeline: two in an SDXL, else one."""
    parts = pipeline.components
    pairs = [(parts["tokenizer"], parts["text_encoder"])]
    if parts.get("text_encoder_2") is not None:
        pairs.append((parts["tokenizer_2"], parts["text_encoder_2"]))
    return pairs


@torch.no_grad()
def encode_image(vae, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the VAE's posterior, [B, C, h, w], of images [B, 3, H, W] in [-1, 1].

    SDXL's VAE overflows in float16 and says so in its configuration: it is used in float32.
    """
    dtype = vae.dtype
    overflows = dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    # Not `vae.to`, because diffusers warns of every change of the type.
    if overflows:
        torch.nn.Module.to(vae, torch.float32)
    posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
    if overflows:
        torch.nn.Module.to(vae, dtype)
    return posterior.mean, posterior.std


def scale_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """Latents for the UNet, of about unit variance."""
    config = vae.config
    shift = torch.tensor(getattr(config, "latents_mean", None) or 0.0).view(-1, 1, 1).to(latents)
    scale = torch.tensor(getattr(config, "latents_std", None) or 1.0).view(-1, 1, 1).to(latents)
    return (latents - shift) * config.scaling_factor / scale


def _from_pretrained(info: ModelInfo, dtype: torch.dtype, variant: str | None, options: dict):
    from diffusers import DiffusionPipeline

    try:
        with quiet_loading():
            return DiffusionPipeline.from_pretrained(
                info.name, dtype=dtype, variant=variant, revision=info.revision, **options
            )
    except LOADING_ERRORS as error:
        raise _cannot_load(info, error) from error


@contextlib.contextmanager
def quiet_loading():
    """Hide the short progress bars of reading weights, and log lines of errors that are raised.

    Downloads keep their bars.
    """
    import diffusers.utils.logging
    import transformers.utils.logging

    loggers = (diffusers.utils.logging, transformers.utils.logging)
    levels = [each.get_verbosity() for each in loggers]
    for each in loggers:
        each.disable_progress_bar()
        each.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels):
            each.enable_progress_bar()
            each.set_verbosity(level)


def _warn_of_no_variant(info: ModelInfo) -> None:
    log.warning("%s has no %s weights: its ordinary weights are used", info.name, info.variant)


def _cannot_load(info: ModelInfo, error: Exception) -> UserError:
    return UserError(f"cannot load {info.name}: {first_line(error)}")
