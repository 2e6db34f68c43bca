"""Additions to a loaded model: another UNet's weights, a ControlNet, a safety checker.

Each is first checked against the model's configuration, without reading the model's weights.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from semantic_aug import UserError, counted, first_line
from semantic_aug.diffusion.identity import commit_of, content_of, identity_of, older_content
from semantic_aug.diffusion.inspecting import ModelInfo, has_part, read_json
from semantic_aug.diffusion.loading import LOADING_ERRORS, check_whole, quiet_loading
from semantic_aug.experiment.config import Identity
from semantic_aug.experiment.names import folder_names

# --- UNets -----------------------------------------------------------------------------------

_UNET_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model-*-of-*.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)


def find_unets(path: str, class_names: Sequence[str]) -> dict[str, Path]:
    """The weights of each class's UNet: `{name}` in the path is the class's name.

    The name may also be written with `_` for blanks.

    Raises:
        UserError: weights are missing.
    """
    folders = folder_names(class_names)
    found = {}
    for name in class_names:
        plain, as_folder = (Path(path.replace("{name}", each)) for each in (name, folders[name]))
        found[name] = find_unet(as_folder if as_folder.exists() else plain)
    return found


def find_unet(path: str | Path) -> Path:
    """`path`, if it exists."""
    if not Path(path).exists():
        raise UserError(
            f"--unet_path: {path} does not exist, expected a UNet's folder in diffusers format or "
            "a file of its weights (.safetensors, .pt)"
        )
    return Path(path)


def check_unet(info: ModelInfo, path: Path) -> Identity:
    """Check that UNet weights have the shapes of the model's UNet; return their identity.

    Raises:
        UserError: the file is unreadable, or has another architecture.
    """
    expected, found = _own_shapes(info), _unet_shapes(path)
    keys = sorted(expected.keys() | found.keys())
    differing = [key for key in keys if found.get(key) != expected.get(key)]
    if differing:
        there, wanted = (shapes.get(differing[0], "no such tensor") for shapes in (found, expected))
        raise UserError(
            f"--unet_path: {path} has another architecture than the UNet of {info.name}: it "
            f"differs in {counted(len(differing), 'tensor')}, such as {differing[0]}: got {there}, "
            f"expected {wanted}"
        )
    files = {str(number): file for number, file in enumerate(_unet_files(path))}
    return Identity(content_of(files), older_content(path))


@functools.cache
def _own_shapes(info: ModelInfo) -> dict[str, tuple[int, ...]]:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(_part(info, "unet"))
    return {key: tuple(tensor.shape) for key, tensor in unet.state_dict().items()}


def put_unet(pipeline, path: Path) -> None:
    """Replace the weights of a pipeline's UNet in place, also for pipelines that share it."""
    weights: dict[str, torch.Tensor] = {}
    for file in _unet_files(path):
        weights |= _read_weights(file)
    pipeline.unet.load_state_dict(weights)


def _unet_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for folder in (path, path / "unet"):
        for pattern in _UNET_FILES:
            if files := sorted(folder.glob(pattern)):
                return files
    raise UserError(f"--unet_path: {path} holds no {_UNET_FILES[0]}, here or in unet/")


def _unet_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for file in _unet_files(path):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt") as opened:
                    for key in opened.keys():  # noqa: SIM118 (it is no dictionary)
                        shapes[key] = tuple(opened.get_slice(key).get_shape())
            except LOADING_ERRORS as error:
                raise UserError(f"--unet_path: cannot read {file}: {error}") from error
        else:
            shapes |= {key: tuple(each.shape) for key, each in _read_weights(file, "meta").items()}
    return shapes


def _read_weights(file: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """A state dict; a pickle is read without running its code."""
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file, device)
        weights = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # a damaged or malicious pickle may raise any error
        reason = first_line(error)
        if "weights_only" in reason:  # torch would advise to run the file's code
            reason = "expected .safetensors, or a file of torch with tensors only"
        raise UserError(f"--unet_path: cannot read {file}: {reason}") from error
    is_weights = isinstance(weights, Mapping) and all(map(torch.is_tensor, weights.values()))
    if not is_weights:
        raise UserError(f"--unet_path: {file} holds no state dict of a UNet")
    return dict(weights)


# --- safety checker --------------------------------------------------------------------------

SafetyChecker = Callable[[Sequence[Image.Image]], list[bool]]  # tells which images are flagged


def check_safety_checker(info: ModelInfo, name: str | None) -> Identity | str:
    """The identity of a named safety checker; for None, of the model's own checker.

    Raises:
        UserError: the model has no safety checker, or no safety checker has this name.
    """
    if name is None:
        if not has_part(info, "safety_checker"):
            raise UserError(
                f"--safety_checker: {info.name} has no safety checker; name one, such as "
                "CompVis/stable-diffusion-safety-checker"
            )
        return "the model's own"
    config = read_json(name, "config.json", None)
    if "StableDiffusionSafetyChecker" not in config.get("architectures", []):
        raise UserError(f"--safety_checker: {name} is no StableDiffusionSafetyChecker")
    return identity_of(name)


def load_safety_checker(info: ModelInfo, name: str | None, device: torch.device) -> SafetyChecker:
    """A function that tells for each image whether it is flagged, and changes no image.

    Raises:
        UserError: its weights are missing or broken.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    source = name or info.name
    parts: list[dict[str, Any]] = [{}, {}]
    if name is None:
        parts = [{"subfolder": "safety_checker"}, {"subfolder": "feature_extractor"}]
    revision = info.revision if name is None else commit_of(name)
    parts = [each | {"revision": revision} for each in parts]
    try:
        with quiet_loading():
            checker, report = StableDiffusionSafetyChecker.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, **parts[0]
            )
            processor = CLIPImageProcessor.from_pretrained(source, **parts[1])
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"--safety_checker: cannot load {source}: {reason}") from error
    check_whole(checker, f"--safety_checker: {source}", report["missing_keys"])
    checker.requires_grad_(False).eval().to(device)

    def flagged(images: Sequence[Image.Image]) -> list[bool]:
        pixels = processor(list(images), return_tensors="pt").pixel_values.to(device)
        # The checker blackens its second argument; we blacken images after the last attempt.
        return list(checker(clip_input=pixels, images=[torch.zeros(1) for _ in images])[1])

    return flagged


def _part(info: ModelInfo, part: str) -> dict:
    return read_json(info.name, f"{part}/config.json", info.revision)


# --- ControlNet ------------------------------------------------------------------------------


def check_controlnet(info: ModelInfo, name: str) -> Identity:
    """Check that a ControlNet's configuration fits the model; return the ControlNet's identity.

    Args:
        name: hub id or folder.

    Raises:
        UserError: it is no ControlNet, or was made for another architecture.
    """
    folder = Path(name)
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(f"--controlnet: {name} is no ControlNet: it has no config.json")
    try:
        config = read_json(name, "config.json", None)
    except UserError as error:
        raise UserError(f"--controlnet: {error}") from error
    if config.get("_class_name") != "ControlNetModel":
        kind = config.get("_class_name") or ", ".join(config.get("architectures") or ["no model"])
        raise UserError(f"--controlnet: {name} holds {kind}, expected ControlNetModel")
    unet, vae = _part(info, "unet"), _part(info, "vae")
    keys = ("block_out_channels", "cross_attention_dim", "layers_per_block", "down_block_types")
    # A ControlNet sees only the latents, even if the UNet also sees a mask.
    expected = {"in_channels": vae.get("latent_channels", 4)} | {key: unet.get(key) for key in keys}
    for key, wanted in expected.items():
        if config.get(key, wanted) != wanted:
            raise UserError(
                f"--controlnet: {name} was made for another architecture than {info.name}: "
                f"{key}: got {config[key]}, expected {wanted}"
            )
    # A ControlNet halves the picture of the edges until it has the size of the latents.
    halvings = [len(config.get("conditioning_embedding_out_channels", [])) - 1]
    halvings.append(len(vae["block_out_channels"]) - 1)
    if halvings[0] != halvings[1]:
        raise UserError(
            f"--controlnet: {name} needs images {2 ** halvings[0]} times as large as the latents, "
            f"but images of {info.name} are {2 ** halvings[1]} times as large"
        )
    return identity_of(name)


def load_controlnet(name: str, device: torch.device, dtype: torch.dtype):
    """A ControlNet (arXiv 2302.05543), frozen.

    Raises:
        UserError: its weights are missing or broken.
    """
    from diffusers import ControlNetModel

    try:
        with quiet_loading():
            controlnet = ControlNetModel.from_pretrained(
                name, torch_dtype=dtype, revision=commit_of(name)
            )
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"--controlnet: cannot load {name}: {reason}") from error
    check_whole(controlnet, f"--controlnet: {name}")
    return controlnet.requires_grad_(False).eval().to(device)


def canny_edges(images: Sequence[Image.Image]) -> list[Image.Image]:
    """The edges of photos as white lines on black, as in the training of ControlNets for edges.

    Canny's method with the thresholds 100 and 200 of 255 on Sobel gradients, without smoothing.
    """
    import kornia
    from scipy import ndimage

    found = []
    for image in images:
        gray = torch.from_numpy(np.array(image.convert("L"), dtype=np.float32) / 255)[None, None]
        # A kernel of one pixel smooths nothing, so fine teeth stay apart. 0.5 is a weak edge, 1 a
        # strong edge.
        _, edges = kornia.filters.canny(gray, 100 / 255, 200 / 255, 1, (1.0, 1.0), hysteresis=False)
        edges = edges[0, 0].numpy()
        # kornia's own search for weak edges that touch a strong edge takes seconds.
        connected, _ = ndimage.label(edges > 0, structure=np.ones((3, 3)))
        kept = np.isin(connected, connected[edges == 1])
        found.append(Image.fromarray(kept.astype(np.uint8) * 255).convert("RGB"))
    return found
