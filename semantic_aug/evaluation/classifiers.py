"""Saved classifiers: the trained weights, and the configuration for using them anywhere.

output/EXP/results/METHOD/classifier_S_N/ holds model.safetensors, with the head and the trained
weights of the backbone, and config.json, which names the backbone and describes the preprocessing.
The backbone's other weights come from the backbone's own folder or hub id.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from semantic_aug import UserError, first_line
from semantic_aug.evaluation.backbone import CHUNK, Backbone, load_backbone
from semantic_aug.evaluation.pictures import pixels_of
from semantic_aug.evaluation.results import results_file
from semantic_aug.evaluation.training import Head
from semantic_aug.experiment.digests import sha256_file
from semantic_aug.experiment.files import atomic_folder, remove_folder
from semantic_aug.experiment.names import CONFIG_FILE, Trial
from semantic_aug.images.masks import binary_mask, object_box, say_empty
from semantic_aug.images.reading import opened_image, read_image
from semantic_aug.settings.classification import FLOAT32

WEIGHTS_FILE = "model.safetensors"
KIND = "semantic-aug classifier"
_BACKBONE = "backbone."  # before the names of its weights in the file


@dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier of images: a backbone, a head on it, and a temperature.

    Attributes:
        temperature: divides the logits to calibrate the probabilities; fitted on the val split.
        facts: the content of config.json: see `classifier_facts` in `stages/kept_classifiers.py`.
    """

    backbone: Backbone
    head: Head
    temperature: float
    facts: Mapping[str, Any]

    @property
    def class_names(self) -> list[str]:
        """The class names in the order of labels."""
        return list(self.facts["class_names"])

    def __call__(self, images, masks: Sequence[np.ndarray] | None = None) -> torch.Tensor:
        """Probabilities of the classes, [N, num_classes] in [0, 1], on the CPU; rows sum to 1.

        Args:
            images: N PIL images of any size and mode, or a single image.
            masks: for each image [H, W], nonzero on the object; only if `crop_to_object` was set.

        Raises:
            UserError: masks are missing, or do not fit.
        """
        images = [images] if isinstance(images, Image.Image) else list(images)
        given = self._checked(masks, len(images))
        empty = [f"number {n}" for n, each in enumerate(given)
                 if each is not None and not binary_mask(each).any()]  # fmt: skip
        say_empty(empty, len(images))
        found = [torch.empty(0, len(self.class_names))]
        for start in range(0, len(images), CHUNK):
            chunk = slice(start, start + CHUNK)
            ready = map(self._ready, images[chunk], given[chunk])
            found.append(self.probabilities(self.backbone.features(torch.stack([*ready]))))
        return torch.cat(found)

    def predict(self, paths: Iterable[str | Path], masks=None) -> list[str]:
        """The most likely class of each image file.

        Args:
            paths: N paths, or a single path.
            masks: see `__call__`.

        Raises:
            UserError: a file cannot be read; or as `__call__`.
        """
        paths = [paths] if isinstance(paths, str | Path) else list(paths)
        masks, names = self._checked(masks, len(paths)), self.class_names
        likeliest: list[str] = []
        for start in range(0, len(paths), CHUNK):
            chunk = slice(start, start + CHUNK)
            images = [read_image(path, self.facts["bits"]) for path in paths[chunk]]
            given = masks[chunk] if self.facts["crop_to_object"] else None
            likeliest += [names[label] for label in self(images, given).argmax(dim=1).tolist()]
        return likeliest

    def _checked(self, masks: Sequence | None, number: int) -> Sequence:
        """A mask or None for each image."""
        if not self.facts["crop_to_object"]:
            if masks is not None:
                raise UserError("masks: this classifier takes whole photos; leave them out")
            return [None] * number
        if masks is None or len(masks) != number:
            got = "none" if masks is None else str(len(masks))
            raise UserError(
                f"masks: got {got} for {number} photos, expected a mask for each photo: this "
                "classifier was trained on photos that were cropped to their objects"
            )
        return masks

    def _ready(self, image: Image.Image, mask: np.ndarray | None) -> torch.Tensor:
        image = opened_image(image)
        if mask is not None:
            mask = binary_mask(mask)
            if mask.shape != image.size[::-1]:
                raise UserError(
                    f"masks: got a mask of {mask.shape[1]}x{mask.shape[0]} pixels for a photo of "
                    f"{image.width}x{image.height}, expected the same size"
                )
            image = image.crop(object_box(mask))
        return pixels_of(image, self.backbone.image_size)

    @torch.no_grad()
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """[N, F] -> [N, num_classes], without the temperature, on the features' device."""
        return self.head(features)

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """Features [N, F] -> [N, num_classes] float32, on the CPU."""
        return (self.logits(features).cpu().double() / self.temperature).softmax(dim=1).float()


# --- on disk ---------------------------------------------------------------------------------


def classifier_folder(folder: Path, trial: Trial) -> Path:
    """The folder of a trial's classifier, beside its results."""
    return folder / f"classifier_{trial.seed}_{trial.examples_per_class}"


def trial_of(path: Path) -> Trial | None:
    """The trial of a classifier folder; None for a folder with another name."""
    name = re.fullmatch(r"classifier_(\d+)_(\d+)", path.name)
    return Trial(int(name[1]), int(name[2])) if name else None


def write_classifier(path: Path, backbone: Backbone, head: Head, facts: Mapping[str, Any]) -> None:
    """Write the folder of a classifier atomically, in place of any existing folder."""
    from safetensors.torch import save_file

    weights = {f"head.{key}": each.cpu() for key, each in head.linear.state_dict().items()}
    weights |= {f"{_BACKBONE}{key}": each for key, each in backbone.changed().items()}
    with atomic_folder(path) as folder:
        save_file(weights, folder / WEIGHTS_FILE)
        content = {"kind": KIND} | dict(facts) | places_of_backbone(path, facts["backbone"])
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def kept_classifiers(folder: Path) -> dict[Trial, Path]:
    """The classifiers of finished trials among the results of a method, in the order of seeds."""
    found = {trial: path for path in folder.glob("classifier_*") if (trial := trial_of(path))}
    return {t: found[t] for t in sorted(found) if results_file(folder, t).exists()}


def keep_selected(folder: Path) -> None:
    """For each number of examples per class, remove all classifiers except the best on val.

    Of equal classifiers the smallest seed stays. The best existing classifier is never removed, so
    processes that finish trials in any order leave the same classifier.
    """
    best: dict[int, tuple[tuple, Path]] = {}
    for trial, path in kept_classifiers(folder).items():
        try:
            scores = read_facts(path)["scores"]
        except UserError:  # another process removed the folder; or it is damaged and stays
            continue
        rank = (scores.get("Validation", {}).get("accuracy", 0.0), -trial.seed)
        here = (rank, path)
        there = best.get(trial.examples_per_class, here)
        best[trial.examples_per_class] = max(here, there)
        if there != here:
            remove_folder(min(here, there)[1])


def is_classifier(path: Path) -> bool:
    """Whether a folder holds a classifier, or has the name of a classifier folder."""
    return trial_of(path) is not None or (path / WEIGHTS_FILE).is_file()


def read_facts(path: Path) -> dict[str, Any]:
    """The content of a classifier's config.json.

    Raises:
        UserError: the folder holds no classifier, or a damaged classifier.
    """
    file, trial = path / CONFIG_FILE, trial_of(path)
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts["kind"] == KIND and not _KEYS - facts.keys() and _is_sound(facts):
            return facts
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(_why_none(path, trial)) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    if trial is None:
        raise UserError(_why_none(path, trial))
    raise UserError(f"{file} is damaged: train the classifier again, with --overwrite")


_KEYS = {
    "backbone", "backbone_identity", "from_scratch", "precision", "device", "image_size",
    "image_mean", "image_std", "class_names", "trained_classes", "crop_to_object", "bits",
    "temperature", "scores", "photos",
}  # fmt: skip


def _is_sound(facts: Mapping) -> bool:
    """Whether the values have valid types, and names are class names."""
    names, trained = facts["class_names"], facts["trained_classes"]
    return (
        0 < facts["temperature"] < math.inf
        and [type(each) for each in facts["image_size"]] == [int, int]
        and len({*names}) == len(names)
        and {*trained} <= {*names}
    )


def _why_none(path: Path, trial: Trial | None) -> str:
    folder = path if trial is None else path.parent
    there = ", ".join(each.name for each in kept_classifiers(folder).values())
    if trial and results_file(folder, trial).exists():
        beside = f" ({there} were kept)" if there else ""
        return (
            f"{path} was not kept{beside}: run the train_classifier.py of these results again with "
            "--overwrite --save_classifier all"
        )
    if there:
        return f"{path} is no classifier; give a classifier in {folder}: {there}"
    return (
        f"{path} is no classifier: expected a folder classifier_SEED_EXAMPLES, which "
        "train_classifier.py writes to output/EXPERIMENT/results/METHOD"
    )


def read_classifier(
    path: Path,
    device: torch.device,
    backbone: str | None = None,
    load: Callable[..., Backbone] = load_backbone,
) -> Classifier:
    """Load a classifier from its folder, with the recorded backbone, or with `backbone`.

    On the device type of its training the classifier uses the same precision, elsewhere float32.

    Args:
        load: loads a frozen backbone: `load_backbone`, or a function that caches backbones.

    Raises:
        UserError: the folder holds no classifier; or the backbone is missing or has changed.
    """
    from safetensors.torch import load_file

    facts = read_facts(path)
    name = backbone or place_of_backbone(path, facts)
    precision = facts["precision"] if device.type == facts["device"] else FLOAT32
    try:
        weights = load_file(path / WEIGHTS_FILE)
        linear = torch.nn.utils.skip_init(torch.nn.Linear, *weights["head.weight"].shape[::-1])
        own = {key.partition(".")[2]: weights.pop(key) for key in ("head.weight", "head.bias")}
        linear.load_state_dict(own)
        trained = [each in facts["trained_classes"] for each in facts["class_names"]]
        if len(trained) != linear.out_features:
            raise ValueError(f"{len(trained)} classes, and a head of {linear.out_features}")
        if not all(each.isfinite().all() for each in (*own.values(), *weights.values())):
            raise ValueError("its numbers are not finite")
    except Exception as error:  # a damaged file raises any kind of exception
        raise UserError(
            f"{path / WEIGHTS_FILE} cannot be read ({first_line(error)}): train it again, with "
            "--overwrite"
        ) from error
    options = {
        "image_size": tuple(facts["image_size"]),
        "from_scratch": facts["from_scratch"],
        "precision": precision,
        # From config.json, since the backbone's identity does not include them.
        "normalisation": (tuple(facts["image_mean"]), tuple(facts["image_std"])),
    }
    load = load_backbone if weights else load  # a changed backbone must not be shared
    try:
        model = load(name, device, **options)
    except UserError as error:
        raise UserError(
            f"{path}: {error}; the backbone of this classifier was "
            f"{facts.get('backbone_places', [facts['backbone']])[0]}; give its present place by "
            "--classifier_backbone"
        ) from error
    if model.identity != facts["backbone_identity"]:
        raise UserError(
            f"{path}: the backbone {name} is another than this classifier was trained on: then "
            f"{facts['backbone_identity']}, now {model.identity}; give the place of the right "
            "backbone by --classifier_backbone"
        )
    if weights:  # cached features belong to an unchanged backbone
        _load_changed(path, model, weights)
        changed = f"{model.identity} with {sha256_file(path / WEIGHTS_FILE)[:16]}"
        model = replace(model, identity=changed)
    head = Head(linear.to(device), torch.tensor(trained, device=device))
    return Classifier(model, head, facts["temperature"], facts)


def places_of_backbone(path: Path, name: str) -> dict[str, list[str]]:
    """For a classifier's config.json: the absolute and relative path of its backbone's folder.

    So the backbone is found from any working folder, after the classifier alone was copied, and
    after both have moved together.
    """
    if not Path(name).is_dir():
        return {}
    there = os.path.realpath(name)
    return {"backbone_places": [there, os.path.relpath(there, os.path.realpath(path))]}


def place_of_backbone(path: Path, facts: Mapping) -> str:
    """The current path of a classifier's backbone, or the backbone's recorded name."""
    places = [path / each for each in facts.get("backbone_places", ())]
    return next((str(place) for place in places if place.is_dir()), facts["backbone"])


def _load_changed(path: Path, model: Backbone, weights: Mapping[str, torch.Tensor]) -> None:
    changed = {key.removeprefix(_BACKBONE): each for key, each in weights.items()}
    try:
        unknown = model.model.load_state_dict(changed, strict=False).unexpected_keys
    except RuntimeError as error:
        unknown = [first_line(error)]
    if unknown:
        raise UserError(f"{path / WEIGHTS_FILE} does not fit its backbone: {unknown[0]}")
