"""Loading models of transformers that find objects: configurations, weights, processors."""

import importlib.util
from pathlib import Path

import torch

from semantic_aug import UserError, first_line
from semantic_aug.diffusion.identity import commit_of
from semantic_aug.diffusion.loading import quiet_loading


def read_config(flag: str, name: str):
    """The configuration of a model.

    Raises:
        UserError: there is no model of transformers by this name.
    """
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(name, revision=commit_of(name))
    except Exception as error:  # OSError, ValueError, KeyError and more
        if Path(name).is_dir():
            what = f"the folder {name} holds no model of transformers"
        elif Path(name).exists():
            what = f"{name} is a file; an ONNX file goes with --masker salient"
        else:
            what = (
                f"{name!r} is no folder, and no hub model that is cached or can be reached; give a "
                "folder, or fetch it first where there is a network (hf download)"
            )
        raise UserError(f"{flag}: {what}") from error


def load_model(flag: str, cls, name: str, device: torch.device):
    """A model in float32, frozen.

    Raises:
        UserError: weights are missing or broken.
    """
    try:
        with quiet_loading():
            model, report = cls.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True, revision=commit_of(name)
            )
    except Exception as error:  # OSError, ValueError, SafetensorError and more
        raise UserError(f"{flag}: cannot load {name}: {first_line(error)}") from error
    if report["missing_keys"]:
        raise UserError(f"{flag}: {name} lacks weights: {min(report['missing_keys'])}")
    return model.requires_grad_(False).eval().to(device)


def load_processor(flag: str, cls, name: str):
    """The processor that makes a model's inputs from PIL images.

    Raises:
        UserError: its files are missing or broken, or it needs a package that is not installed.
    """
    options = {}
    if cls.__name__ == "AutoImageProcessor":  # the default backend needs torchvision, and warns
        options["backend"] = "pil"
    try:
        return cls.from_pretrained(name, revision=commit_of(name), **options)
    except ImportError as error:
        raise UserError(f"{flag}: {name} needs a package: {first_line(error)}") from error
    except Exception as error:
        raise UserError(f"{flag}: {name} has no usable processor: {first_line(error)}") from error


def needs(flag: str, what: str, package: str, install: str) -> None:
    """Raise UserError, with the command that installs a package, if the package is missing."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{flag}: {what} needs the package {package}: pip install {install}")
