"""Loading a diffusion pipeline: model, device, dtype, variant, sampler. Nothing else loads one."""

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

# --scheduler: the class in diffusers and what differs from the model's own configuration.
MOST_TIMESTEPS = 100_000  # models have 1000

# What the libraries raise on missing, broken or unknown files of a model.
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
    """The device that was asked for, else CUDA, else MPS, else the CPU.

    Processes that one launcher started on this machine take one GPU each.
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
    """The type that was asked for; on the CPU, which computes in float16 slowly, float32 for it."""
    dtype = DTYPES[mixed_precision]
    if device.type == "cpu" and dtype == torch.float16:
        log.warning("no GPU: float32 is used in place of --mixed_precision=%s", mixed_precision)
        return torch.float32
    return dtype


def warn_if_slow(device: torch.device, mixed_precision: str) -> None:
    """Say where bfloat16 was asked for on a CPU that has no instructions for it."""
    if device.type == "cpu" and DTYPES[mixed_precision] == torch.bfloat16 and not cpu_has_bf16():
        log.warning(
            "this CPU has no instructions for bfloat16: --mixed_precision=bf16 is many times "
            "slower than float32, which --mixed_precision=no means"
        )


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies in bfloat16: AVX-512 BF16 or AMX, or Arm's BF16."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")  # which converts, where it has not
    native = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    return not is_x86 or any(each() for each in native)


def load_tokenizer(info: ModelInfo):
    """The model's first tokenizer, which is small, without the model."""
    from transformers import CLIPTokenizer

    # Not AutoTokenizer, which looks for a configuration that a pipeline in the cache has not.
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            info.name, subfolder="tokenizer", revision=info.revision
        )
    except LOADING_ERRORS as error:
        raise _cannot_load(info, error) from error
    _check_tokenizer(info, tokenizer)
    return tokenizer


def _check_tokenizer(info: ModelInfo, tokenizer) -> None:
    """Raise UserError for a tokenizer whose files are missing: it loads, and knows no word."""
    if len(tokenizer) < 256:  # a byte-level vocabulary has every byte at least
        raise UserError(f"cannot load {info.name}: files of its tokenizer are missing")


def load_pipeline(info: ModelInfo, device: torch.device, dtype: torch.dtype):
    """The model's own text-to-image pipeline, frozen, in one dtype, without a safety checker.

    A text encoder or VAE kept in half precision is brought to `dtype` too: mixed parts crash.

    Raises:
        UserError: weights are missing, broken, or not to be had offline.
    """
    index = read_json(info.name, "model_index.json", info.revision)
    options: dict[str, Any] = {}
    if "safety_checker" in index:
        options["safety_checker"] = None
    if "requires_safety_checker" in index or "safety_checker" in index:
        options["requires_safety_checker"] = False
    variant = info.variant
    # A folder without the variant is loaded without a word; so that is looked up here.
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
    """Raise UserError where weights lacked a tensor, which diffusers leaves without numbers.

    Args:
        lacking: what transformers says was missing; it fills that at random.
    """
    state = model.state_dict().items()
    lacking = sorted(lacking) or [key for key, tensor in state if tensor.is_meta]
    if lacking:
        raise UserError(
            f"{name}: its weights lack {counted(len(lacking), 'tensor')}, as {lacking[0]}: fetch "
            "them again"
        )


def _load_text_encoders(info: ModelInfo, index: dict, dtype: torch.dtype, variant) -> dict:
    """The text encoders by name: a pipeline would not say what their weights lack."""
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
    """A latent consistency model's parts in the pipeline that edits and inpaints like any other.

    Its own one does neither inpainting nor a strength that takes that share of the steps.
    """
    from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline

    if not isinstance(pipeline, LatentConsistencyModelPipeline):
        return pipeline
    return StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)


def make_scheduler(info: ModelInfo, kind: str | None = None, **options):
    """A scheduler of diffusers from the model's configuration, before any weights are read.

    Args:
        kind: its class; default the model's own.
        options: what differs from the configuration.

    Raises:
        UserError: the configuration makes none.
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
    """What noises latents in training, with the levels of a model's own sampler."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipeline.scheduler.config)


def check_steps(info: ModelInfo, scheduler: str | None, num_inference_steps: int) -> None:
    """Raise UserError where the sampler cannot do so many steps."""
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
    """Exchange the sampler: a name of SCHEDULERS, or None for the model's own."""
    if name is None:
        return
    import diffusers

    kind, options = SCHEDULERS[name]
    pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **options)


def tune_for_speed(pipeline, compile_unet: bool) -> None:
    """Weights in the order that convolutions want, and a compiled UNet if asked for.

    Convolutions in float32 on the CPU want none, and would round differently.
    """
    on_cpu_in_half = pipeline.device.type == "cpu" and pipeline.unet.dtype == torch.bfloat16
    if pipeline.device.type == "cuda" or on_cpu_in_half:
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
    if compile_unet:
        pipeline.unet.compile()


def tune_for_memory(pipeline) -> None:
    """Attention is computed, and images are decoded, piece by piece."""
    pipeline.vae.enable_slicing()
    pipeline.vae.enable_tiling()
    pipeline.enable_attention_slicing()


def offload(pipelines: Iterable, device: torch.device) -> None:
    """Let the parts of pipelines wait in the CPU's memory until `device` is to compute with them.

    They may share parts. Learned words go in before: diffusers would set all anew for the device
    where the text encoder waits.
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
    # Not `vae.to`, which diffusers has made to warn of every change of the type.
    if overflows:
        torch.nn.Module.to(vae, torch.float32)
    posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
    if overflows:
        torch.nn.Module.to(vae, dtype)
    return posterior.mean, posterior.std


def scale_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the UNet expects them, of about unit variance."""
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
    """Inside, no bars of reading weights, of a second each, and no errors that are raised as well.

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
    log.warning("%s has no %s weights: its ordinary ones are used", info.name, info.variant)


def _cannot_load(info: ModelInfo, error: Exception) -> UserError:
    return UserError(f"cannot load {info.name}: {first_line(error)}")
