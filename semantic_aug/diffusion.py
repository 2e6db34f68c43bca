"""Loading a diffusion pipeline: model, device, dtype, variant. Nothing else loads one."""

import contextlib
import glob
import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from semantic_aug import UserError, counted
from semantic_aug.experiment.config import Identity
from semantic_aug.experiment.digests import file_digests
from semantic_aug.experiment.sharding import local_rank

log = logging.getLogger(__name__)

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# --scheduler: the class in diffusers and what differs from the model's own configuration.
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}

SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
# What a UNet gives: the noise, the velocity (arXiv 2202.00512), or the latents without noise.
PREDICTIONS = ("epsilon", "v_prediction", "sample")
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


@dataclass(frozen=True)
class ModelInfo:
    """What a model's configuration files tell, before any weights are read.

    Attributes:
        name: hub id or folder, as given.
        identity: of its weights, see `identity_of`.
        revision: the commit of a hub model, so that what is loaded is what was inspected.
        resolution: side in pixels of the images it was made for.
        multiple: what a resolution must be a multiple of, in pixels.
        embedding_dims: width of the rows of each of its text encoders.
        for_inpainting: whether its UNet sees a mask and the masked photo beside the latents.
        few_steps: whether it looks like one that was distilled to a few steps, as LCM and the Turbo
            models are.
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

    @property
    def is_xl(self) -> bool:
        """Whether it has two text encoders (arXiv 2307.01952, section 2.1)."""
        return len(self.embedding_dims) == 2


def inspect_model(name: str, revision: str | None = None, variant: str | None = None) -> ModelInfo:
    """Read the configuration of a model.

    `revision="fp16"` means what it meant when half-precision weights lay in a branch of that
    name: today's `variant="fp16"`.

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
    encoders = ["text_encoder", *(["text_encoder_2"] if "text_encoder_2" in index else [])]
    encoders = [read_json(name, f"{part}/config.json", revision) for part in encoders]
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
            f"{name}: its UNet wants more than an image, as models for instructions or depth do; "
            "expected an ordinary Stable Diffusion or one for inpainting"
        )
    scheduler = read_json(name, SCHEDULER_CONFIG, revision)
    predicts = scheduler.get("prediction_type", PREDICTIONS[0])
    if predicts not in PREDICTIONS:
        raise UserError(
            f"{name}: {SCHEDULER_CONFIG} says that its UNet predicts {predicts!r}; known: "
            f"{', '.join(PREDICTIONS)}"
        )
    few_steps = scheduler.get("timestep_spacing") == "trailing"  # of all models in wide use, theirs
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
    )


def has_part(info: ModelInfo, part: str) -> bool:
    """Whether a model comes with a part that may be absent, such as a safety checker."""
    return any(read_json(info.name, "model_index.json", info.revision).get(part) or [])


def side_of(sample_size: int | Sequence[int]) -> int:
    """The side that a configuration means, where some give height and width."""
    return sample_size if isinstance(sample_size, int) else sample_size[0]


def check_resolution(info: ModelInfo, resolution: int | None) -> int:
    """The resolution to work at, in pixels: the one given, or the model's own."""
    if resolution is None:
        return info.resolution
    if resolution % info.multiple:
        near = max(info.multiple, round(resolution / info.multiple) * info.multiple)
        raise UserError(
            f"--resolution: got {resolution}, this model needs a multiple of {info.multiple}, "
            f"such as {near}"
        )
    return resolution


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
        raise UserError(f"--device: {name!r} is not there: {str(error).splitlines()[0]}") from error
    return device


def pick_dtype(device: torch.device, mixed_precision: str) -> torch.dtype:
    """float16 or bfloat16 where asked for and a GPU is there; float32 on the CPU."""
    dtype = DTYPES[mixed_precision]
    if device.type == "cpu" and dtype != torch.float32:
        log.warning("no GPU: float32 is used in place of --mixed_precision=%s", mixed_precision)
        return torch.float32
    return dtype


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
    options = {}
    if "safety_checker" in index:
        options["safety_checker"] = None
    if "requires_safety_checker" in index or "safety_checker" in index:
        options["requires_safety_checker"] = False
    variant = info.variant
    # A folder without the variant is loaded without a word; so that is looked up here.
    weights = f"*/*.{glob.escape(variant or '')}*"
    if variant and Path(info.name).is_dir() and not any(Path(info.name).glob(weights)):
        variant = _no_variant(info)
    options |= _load_text_encoders(info, index, dtype, variant)
    try:
        pipeline = _from_pretrained(info, dtype, variant, options)
    except UserError as error:
        if variant is None or "variant" not in str(error.__cause__):
            raise
        pipeline = _from_pretrained(info, dtype, _no_variant(info), options)
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


def check_steps(info: ModelInfo, scheduler: str | None, num_inference_steps: int) -> None:
    """Raise UserError where the sampler cannot do so many steps."""
    kind, options = SCHEDULERS.get(scheduler, (None, {}))
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
    """Weights in the order that convolutions of GPUs want, and a compiled UNet if asked for."""
    if pipeline.device.type == "cuda":
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


def _no_variant(info: ModelInfo) -> None:
    log.warning("%s has no %s weights: its ordinary ones are used", info.name, info.variant)


def _cannot_load(info: ModelInfo, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"cannot load {info.name}: {reason}")


def read_json(name: str, file: str, revision: str | None) -> dict:
    """A configuration file of a model; UserError where it is absent or broken."""
    path = model_file(name, file, revision)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{name}: {file} is no configuration")
    return content


def model_file(name: str, file: str, revision: str | None = None) -> Path:
    """A file of a model, in its folder or from the hub (its local cache, without a network)."""
    if Path(name).exists():
        path = Path(name) / file
        if not path.is_file():
            raise UserError(f"{name} is no diffusers pipeline: it has no {file}")
        return path
    if Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise UserError(f"model folder {name} does not exist")
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError

    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        log.info("fetching %s from the hub", name)
        return Path(hf_hub_download(name, file, revision=revision))
    except GatedRepoError as error:
        raise UserError(
            f"{name} asks for a login: accept its terms on its hub page, then run hf auth login"
        ) from error
    except (OSError, ValueError, HFValidationError) as error:
        at = f" at revision {revision}" if revision else ""
        raise UserError(
            f"cannot get {name}{at}: there is no such folder, and the hub has no such model or "
            "cannot be reached, and no copy lies in the local cache; give a folder, or run once "
            "with a network"
        ) from error


# --- which weights ---------------------------------------------------------------------------


def identity_of(
    name: str, revision: str | None = None, variant: str | None = None, older: str | None = None
) -> Identity:
    """What a model, or what joins one, is called in settings and records.

    A folder or file is called by the content of the files that are loaded, wherever they lie; what
    comes from the hub by its commit in the local cache.

    Args:
        older: what something from the hub was called by older versions; default its name alone.

    Raises:
        UserError: a file cannot be read.
    """
    path = Path(name)
    if path.is_dir():
        return Identity(content_of(_files_that_count(path, variant)), older_content(path))
    if path.exists():
        return Identity(content_of({"": path}), older_content(path))
    commit = commit_of(name, revision)
    if commit is None:
        return Identity(older or name)
    return Identity(f"{name}@{commit}" + (f" {variant}" if variant else ""), older or name)


def commit_of(name: str, revision: str | None = None) -> str | None:
    """The commit of a hub id in the local cache; None for a folder, or where it is not there."""
    from huggingface_hub import snapshot_download

    if Path(name).exists():
        return None
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True)).name
    except (OSError, ValueError):
        return None


def content_of(files: Mapping[str, Path]) -> str:
    """Sixteen hex digits of whole files and the names that they have there."""
    # A large file in the hub's cache lies under its sha256.
    real = {name: path.resolve() for name, path in files.items()}
    digests = {name: path.name for name, path in real.items() if _is_named_by_content(path)}
    others = [name for name in real if name not in digests]
    digests |= zip(others, file_digests(real[name] for name in others))
    for name, digest in digests.items():
        if digest.startswith("unreadable"):
            raise UserError(f"cannot read {files[name]}: {digest.partition(': ')[2]}")
    lines = "".join(f"{name}:{digest}\n" for name, digest in sorted(digests.items()))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()[:16]}"


def _is_named_by_content(path: Path) -> bool:
    in_cache = path.parent.name == "blobs" and path.parent.parent.name.startswith("models--")
    return in_cache and re.fullmatch("[0-9a-f]{64}", path.name) is not None


# Of these a folder may hold several for the same part, in other formats or precisions.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".pb")


def _files_that_count(folder: Path, variant: str | None) -> dict[str, Path]:
    """All files of a model by their names in its folder, but for weights that are not loaded.

    Weights of another variant than the one asked for are not loaded where there are ordinary ones;
    nor is another format where there are safetensors of the same variant.
    """
    found, weights = [], defaultdict(list)
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not hidden and file.is_file():
            (weights[file.parent] if file.suffix in _WEIGHTS else found).append(file)
    for files in weights.values():
        wanted = [file for file in files if _variant_of(file) in ("", variant)] or files
        safe = {_variant_of(file) for file in wanted if file.suffix == ".safetensors"}
        found += [
            file
            for file in wanted
            if file.suffix == ".safetensors" or _variant_of(file) not in safe
        ]
    return {file.relative_to(folder).as_posix(): file for file in found}


def _variant_of(file: Path) -> str:
    """`fp16` of `model.fp16.safetensors`, also of one part of several; empty of ordinary ones."""
    return ".".join(re.sub(r"-\d+-of-\d+", "", file.name).split(".")[1:-1])


def older_content(path: Path) -> str:
    """What `content_of` was in older versions: both ends of every file, whether loaded or not."""
    digest, end = hashlib.sha256(), 1 << 20
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        inside = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in inside.parts):
            size = file.stat().st_size
            digest.update(f"{inside.as_posix()}:{size}\n".encode())
            with contextlib.suppress(OSError), open(file, "rb") as opened:
                digest.update(opened.read(end))
                opened.seek(max(size - end, min(size, end)))
                digest.update(opened.read())
    return f"sha256:{digest.hexdigest()[:16]}"
