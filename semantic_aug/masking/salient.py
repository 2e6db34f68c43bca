"""Salient objects in photos, without class names: models of rembg, or a similar ONNX file."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.special import expit

from semantic_aug import UserError, first_line
from semantic_aug.experiment.digests import sha256_file
from semantic_aug.masking.loading import needs
from semantic_aug.masking.masker import Found, Masker
from semantic_aug.settings.masking import MASKER_MODELS, SALIENT, Masking

FLAG = "--masker_models"
INSTALL = "semantic-aug[masks]"
# Normalisation of photos for U²-Net and its successors, and for ISNet, which takes larger photos.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTRED = ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
LARGE = 1024  # pixels: a model with a side of this length or more counts as an ISNet
USUAL_SIDE = 320  # pixels, if the file does not fix the size


def make(settings: Masking) -> Masker:
    """See `make_masker`."""
    names = settings.masker_models or MASKER_MODELS[SALIENT]
    if len(names) > 1:
        raise UserError(f"{FLAG}: got {len(names)} models, expected one with --masker salient")
    (name,) = names
    path = Path(name).expanduser()
    if path.suffix == ".onnx" or path.exists():
        needs("--masker salient", f"the file {name}", "onnxruntime", INSTALL)
        if not path.is_file():
            raise UserError(f"{FLAG}: there is no file {path}")
        identity, loader = sha256_file(path)[:16], functools.partial(load_file, path)
    else:
        needs("--masker salient", f"the model {name}", "rembg", INSTALL)
        from rembg.sessions import sessions_names

        if name not in sessions_names:
            known = ", ".join(each for each in sessions_names if not each.endswith("custom"))
            raise UserError(f"{FLAG}: got {name!r}, expected a file.onnx, or one of {known}")
        identity, loader = name, functools.partial(load_rembg, name)
    return Masker({"model": identity}, lambda words: None, loader)


def providers(device: torch.device) -> list[str]:
    """The execution providers of onnxruntime, in order of preference."""
    import onnxruntime

    wanted = ["CUDAExecutionProvider"] * (device.type == "cuda") + ["CPUExecutionProvider"]
    return [each for each in wanted if each in onnxruntime.get_available_providers()]


def load_rembg(name: str, device: torch.device):
    """A function from photos to their salient objects, by a model of rembg."""
    import rembg

    try:
        session: Any = rembg.new_session(name, providers=providers(device))
    except Exception as error:  # rembg may fail to download the model
        raise UserError(f"{FLAG}: rembg cannot load {name}: {first_line(error)}") from error
    side = session.inner_session.get_inputs()[0].shape[-1]

    def find(images: Sequence[Image.Image], words: Sequence[str]) -> list[Found]:
        masks = [session.predict(image)[0].convert("L") for image in images]
        grid = (side, side) if isinstance(side, int) else None
        return [Found(np.asarray(mask, np.float32) / 255, grid=grid) for mask in masks]

    return find


def load_file(path: Path, device: torch.device):
    """A function from photos to their salient objects, by an ONNX file.

    Raises:
        UserError: the file is no ONNX model, or its model does not map a photo to a mask.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers(device))
    except Exception as error:  # onnxruntime raises many kinds of exceptions
        raise UserError(f"{FLAG}: {path} is no ONNX model: {first_line(error)}") from error
    wanted, given = session.get_inputs()[0], session.get_outputs()[0]
    if len(session.get_inputs()) > 1 or len(wanted.shape) != 4 or wanted.shape[1] not in (3, "3"):
        raise UserError(
            f"{FLAG}: {path} takes {wanted.name} of shape {wanted.shape}, expected one photo, "
            "[1, 3, height, width]"
        )
    height, width = (n if isinstance(n, int) else USUAL_SIDE for n in wanted.shape[2:])
    dtype = np.float16 if wanted.type == "tensor(float16)" else np.float32
    mean, std = (
        np.array(each, np.float32)
        for each in (CENTRED if max(height, width) >= LARGE else IMAGENET)
    )

    def find(images: Sequence[Image.Image], words: Sequence[str]) -> list[Found]:
        found = []
        for image in images:
            small = image.resize((width, height), Image.Resampling.BILINEAR)
            pixels = ((np.asarray(small, np.float32) / 255 - mean) / std).transpose(2, 0, 1)
            said = session.run([given.name], {wanted.name: pixels[None].astype(dtype)})[0]
            shares = np.squeeze(np.asarray(said, np.float32))
            if shares.ndim != 2:
                raise UserError(f"{FLAG}: {path} gives {said.shape}, expected a mask, [1, 1, H, W]")
            if shares.min() < 0 or shares.max() > 1:  # logits
                shares = expit(shares)
            found.append(Found(shares))
        return found

    return find
