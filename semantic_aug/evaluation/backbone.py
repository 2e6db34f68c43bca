"""An image model of transformers: images in, one feature vector per image out.

The model is frozen, unless a part of the model is trained together with the head.
"""

import contextlib
import hashlib
import inspect
import json
import logging
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from semantic_aug import UserError, counted, first_line, stable_hash
from semantic_aug.settings.classification import ALL, FLOAT32, FROZEN, SHORT_NAMES

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_SIZE = 224  # pixels, if a backbone specifies no size
CHUNK = 64  # batch size of a frozen backbone

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Backbone:
    """An image model in eval mode: BatchNorm keeps its statistics, and dropout is off.

    Attributes:
        model: float32; without gradients, except for the parameters of `trained`.
        mean: for normalisation of values in [0, 1], [3, 1, 1].
        std: likewise.
        image_size: height and width in pixels of the input images.
        identity: the model's class and a digest of its weights, independent of their path.
        num_features: length of a feature vector.
        precision: of a frozen backbone, from `BACKBONE_PRECISIONS`.
        trained: the modules that are trained together with the head; none if frozen.
        keeps_statistics: BatchNorm uses the pretrained statistics even in training. A few-shot
            trial has too few photos to estimate new statistics.
    """

    model: torch.nn.Module
    mean: torch.Tensor
    std: torch.Tensor
    image_size: tuple[int, int]
    identity: str
    num_features: int = 0
    precision: str = FLOAT32
    trained: tuple[torch.nn.Module, ...] = ()
    keeps_statistics: bool = True
    _initial: dict = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of a batch; a frozen backbone computes without gradients in its `precision`.

        Images whose features are not finite in this precision are computed again in float32. An
        image's features depend on no other image.

        Args:
            images: [B, 3, H, W], uint8, or float in [0, 1]; on any device.

        Returns:
            [B, F] float32 on the backbone's device: the class token if the model has such a token,
            otherwise the mean over tokens or over the feature map. A transformer's own pooler is
            not used, since classification checkpoints have no weights for the pooler. CLIP's
            pooler is used: it gives the normalised class token.
        """
        images = images.to(self.device)
        if images.dtype == torch.uint8:
            images = images.float() / 255
        features = self._pass(images, self.precision)
        if self.precision != FLOAT32:
            overflown = ~features.isfinite().all(dim=1)
            if overflown.any():
                log.warning(
                    "the backbone overflows in %s: float32 is used for some images",
                    self.precision,
                )
                features[overflown] = self._pass(images[overflown], FLOAT32)
        return features

    def _pass(self, images: torch.Tensor, precision: str) -> torch.Tensor:
        options = {}
        if "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters:
            options["interpolate_pos_encoding"] = True  # without effect at the model's own size
        grad = torch.is_grad_enabled() and bool(self.trained)
        lower = contextlib.nullcontext()
        if precision != FLOAT32:
            lower = torch.autocast(self.device.type, getattr(torch, precision))
        with torch.set_grad_enabled(grad), lower:
            output = self.model(pixel_values=(images - self.mean) / self.std, **options)
        states = output.last_hidden_state
        pooled: Any = getattr(output, "pooler_output", None)
        if states.ndim == 3:
            if self.model.config.model_type == "clip_vision_model":
                return pooled.float()
            token = states[:, 0] if _has_class_token(self.model) else states.mean(dim=1)
            return token.float()
        return (states.mean(dim=(2, 3)) if pooled is None else pooled.flatten(1)).float()

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features [N, F] of uint8 images [N, 3, H, W], in chunks of a fixed size."""
        return torch.cat([self(chunk) for chunk in images.split(CHUNK)])

    def frozen(self) -> "Backbone":
        """The same model with its current weights, frozen."""
        return replace(self, trained=())

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        return [p for module in self.trained for p in module.parameters(recurse=False)]

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Within the block, the trained modules are in training mode: dropout is on."""
        for module in self.trained:
            is_norm = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
            module.training = not (is_norm and self.keeps_statistics)
        try:
            yield
        finally:
            self.model.eval()

    def reset(self) -> None:
        """Reset the trained weights to their loaded values."""
        if self._initial:
            self.model.load_state_dict(self._initial)

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the current weights; empty for a frozen backbone."""
        state = self.model.state_dict() if self.trained else {}
        return {key: tensor.clone() for key, tensor in state.items()}

    def restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Load weights that `weights` returned."""
        if weights:
            self.model.load_state_dict(weights)

    def changed(self) -> dict[str, torch.Tensor]:
        """The weights that training has changed, on the CPU; none if the backbone is frozen."""
        state = self.model.state_dict() if self._initial else {}
        return {
            key: tensor.detach().cpu().clone()
            for key, tensor in state.items()
            if not torch.equal(tensor, self._initial[key])
        }


def _has_class_token(model: torch.nn.Module) -> bool:
    return any(
        name.endswith(("cls_token", "class_embedding")) for name, _ in model.named_parameters()
    )


def default_precision(device: torch.device, finetune: str = FROZEN) -> str:
    """The default precision: half precision for a frozen backbone on CUDA, else float32."""
    return "float16" if device.type == "cuda" and finetune == FROZEN else FLOAT32


def load_backbone(
    name: str,
    device: torch.device,
    image_size: tuple[int, int] | None = None,
    finetune: str = FROZEN,
    from_scratch: bool = False,
    precision: str | None = None,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Backbone:
    """Any image model that `transformers.AutoModel` loads.

    Args:
        name: hub id, folder, or short name from `SHORT_NAMES`.
        image_size: height and width in pixels; default the backbone's own, from its preprocessor
            configuration, then from its configuration, then 224.
        finetune: `none`, `all`, or `last:N` for the last N blocks and all layers after them.
        from_scratch: read only the configuration; the weights are random, always the same.
        precision: of a frozen backbone, from `BACKBONE_PRECISIONS`; default `default_precision`.
        normalisation: mean and standard deviation of the three channels, for values in [0, 1];
            default from the preprocessor configuration.

    Raises:
        UserError: the model does not exist, cannot be downloaded, has no weights, is no image
            model, or has fewer than N blocks; or its preprocessor configuration is damaged.
    """
    name = SHORT_NAMES.get(name, name)
    if normalisation and image_size:
        mean, std, own_size = *normalisation, None
    else:
        mean, std, own_size = read_preprocessing(name)  # first, since the file may be damaged
    model, identity = _new_model(name) if from_scratch else _load_model(name)
    if image_size is None:
        image_size = own_size or _pair(getattr(model.config, "image_size", None) or DEFAULT_SIZE)
    model.to(device).eval().requires_grad_(False)
    backbone = Backbone(
        model,
        torch.tensor(mean, device=device).reshape(-1, 1, 1),
        torch.tensor(std, device=device).reshape(-1, 1, 1),
        image_size,
        identity,
        precision=precision or default_precision(device, finetune),
    )
    try:
        with torch.no_grad():
            shape = backbone(torch.zeros(1, 3, *image_size)).shape
    except Exception as error:  # models raise any kind of exception for unsuitable input
        shape, reason = (), first_line(error)
    else:
        reason = f"its output has the shape {list(shape)}"
    if len(shape) != 2:
        raise UserError(
            f"--classifier_backbone: {name} gives no features for images of {image_size[0]}x"
            f"{image_size[1]} pixels: {reason}"
        )
    return _with_trained_part(replace(backbone, num_features=shape[1]), finetune, from_scratch)


def _with_trained_part(backbone: Backbone, finetune: str, from_scratch: bool) -> Backbone:
    trained = trained_modules(backbone.model, finetune)
    for module in trained:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(True)
    backbone = replace(backbone, trained=trained, keeps_statistics=not from_scratch)
    return replace(backbone, _initial=backbone.weights())


def trained_modules(model: torch.nn.Module, finetune: str) -> tuple[torch.nn.Module, ...]:
    """The modules that `--finetune` names, without their submodules.

    Blocks are the blocks of a transformer or the stages of a convolutional network: the members of
    the outermost list of modules that has the most parameters.

    Raises:
        UserError: the model has too few blocks.
    """
    if finetune == FROZEN:
        return ()
    names, modules = zip(*model.named_modules())
    if finetune == ALL:
        return modules
    wanted = int(finetune.removeprefix("last:"))
    lists: dict[str, torch.nn.ModuleList] = {}
    for name, module in zip(names, modules):
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, torch.nn.ModuleList) and len(module) and not inside:
            lists[name] = module
    if not lists:
        raise UserError(f"--finetune: {type(model).__name__} has no blocks; use all")
    name = max(lists, key=lambda each: sum(p.numel() for p in lists[each].parameters()))
    if wanted > len(lists[name]):
        raise UserError(
            f"--finetune: got {finetune}, but {type(model).__name__} has "
            f"{counted(len(lists[name]), 'block')}"
        )
    # Modules are in the order of their definition: later modules use the output of earlier ones.
    return modules[names.index(f"{name}.{len(lists[name]) - wanted}") :]


def _load_model(name: str) -> tuple[torch.nn.Module, str]:
    # Imported late: `cli.command` first silences the library through the environment.
    import transformers

    with quiet(transformers):
        try:
            # Without a dtype, a half-precision checkpoint would stay in half precision.
            model, report = transformers.AutoModel.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, and more
            raise UserError(_why_no_model(name, error)) from error
    missing = set(report["missing_keys"])
    needed = sorted(key for key in missing if not re.search("pooler|mask_token", key))
    if needed:
        raise UserError(
            f"--classifier_backbone: {name} has no weights for "
            f"{counted(len(needed), 'tensor')} of "
            f"{type(model).__name__}, such as {needed[0]}"
        )
    return _image_half(model), _identity(model, missing)


def _new_model(name: str) -> tuple[torch.nn.Module, str]:
    """A model of this configuration with random weights, always the same."""
    import transformers

    with quiet(transformers), torch.random.fork_rng(devices=[]):
        try:
            config = transformers.AutoConfig.from_pretrained(name)
            config = getattr(config, "vision_config", config)
            torch.manual_seed(stable_hash("backbone", config.model_type))
            model = transformers.AutoModel.from_config(config, dtype=torch.float32)
        except Exception as error:
            raise UserError(_why_no_model(name, error)) from error
    return _image_half(model), f"from scratch {_identity(model)}"


def _image_half(model: torch.nn.Module) -> torch.nn.Module:
    """The vision tower of CLIP and similar models; any other model unchanged."""
    return getattr(model, "vision_model", model)


def _identity(model: torch.nn.Module, without: Collection[str] = ()) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        if key not in without:
            digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    return f"{type(model).__name__} {digest.hexdigest()[:16]}"


@contextlib.contextmanager
def quiet(transformers) -> Iterator[None]:
    """Suppress transformers' progress bars and load report; unused heads are expected here."""
    logging_of = transformers.utils.logging
    level, bars = logging_of.get_verbosity(), logging_of.is_progress_bar_enabled()
    logging_of.set_verbosity_error()
    logging_of.disable_progress_bar()
    try:
        yield
    finally:
        logging_of.set_verbosity(level)
        if bars:
            logging_of.enable_progress_bar()


def _why_no_model(name: str, error: Exception) -> str:
    if Path(name).is_dir():
        what = f"the folder {name} holds no usable image model"
    else:
        what = f"{name!r} is no folder, and no hub model that is cached or can be reached"
        what += "; give a folder, or fetch the model first where there is a network (hf download)"
    return f"--classifier_backbone: {what}: {first_line(error)}"


def read_preprocessing(
    name: str,
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, int] | None]:
    """Mean, standard deviation and input size from a model's preprocessor configuration.

    Without such a file, ImageNet's mean and deviation with a notice, and None for the size.

    Raises:
        UserError: the configuration cannot be read.
    """
    from transformers.image_processing_base import ImageProcessingMixin  # needs no torchvision

    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except (OSError, ValueError):
        damaged = next(filter(_is_damaged, _preprocessor_files(name)), None)
        if damaged is not None:
            raise UserError(
                f"--classifier_backbone: {damaged} cannot be read, expected JSON: fetch it again"
            ) from None
        log.warning(
            "%s has no preprocessor_config.json: images are normalised with ImageNet's mean and "
            "standard deviation",
            name,
        )
        return IMAGENET_MEAN, IMAGENET_STD, None
    try:
        mean = _triple(config.get("image_mean") or IMAGENET_MEAN)
        std = _triple(config.get("image_std") or IMAGENET_STD)
        size = _input_size(config)
        if not (min(std) > 0 and min(size or (1,)) > 0 and math.isfinite(sum(mean + std))):
            raise ValueError(f"mean {mean}, deviation {std}, size {size}")
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"--classifier_backbone: preprocessor_config.json of {name} has invalid values: {error}"
        ) from error
    return (mean, std, size) if config.get("do_normalize", True) else ((0.0,) * 3, (1.0,) * 3, size)


def _preprocessor_files(name: str) -> Iterator[Path]:
    """The local files that may hold a model's preprocessor configuration."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("processor_config.json", "preprocessor_config.json"):
        found: Any = Path(name) / file
        if not Path(name).is_dir():
            with contextlib.suppress(ValueError):  # the name is no hub id
                found = try_to_load_from_cache(name, file)
        if isinstance(found, (str, Path)) and os.path.lexists(found):
            yield Path(found)


def _is_damaged(file: Path) -> bool:
    try:
        return not isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return True


def _input_size(config: Mapping) -> tuple[int, int] | None:
    """Height and width of the model's input, after a centre crop if configured."""
    size = config.get("size")
    if config.get("do_center_crop") and config.get("crop_size"):
        size = config["crop_size"]
    if isinstance(size, Mapping):
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        size = size.get("shortest_edge")
    return None if size is None else _pair(size)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _triple(value: float | Sequence[float]) -> tuple[float, ...]:
    if isinstance(value, (int, float)):
        return (float(value),) * 3
    if len(value) not in (1, 3):
        raise ValueError(f"{value} is not of three channels")
    return tuple(map(float, value))
