"""A linear head on a frozen backbone: features, training, evaluation.

Nothing here touches the global random state. Every number that is drawn for a trial, from the
head's first weights to the last rotation, comes from one CPU generator that the trial seeds.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from semantic_aug import UserError, stable_hash
from semantic_aug.cli import progress_bar
from semantic_aug.experiment import Trial
from semantic_aug.few_shot_dataset import FewShotDataset, read_image, resized_pixels, to_rgb
from semantic_aug.standard_augmentation import AUGMENTATIONS

SHORT_NAMES = {
    "resnet50": "microsoft/resnet-50",
    "deit": "facebook/deit-base-distilled-patch16-224",
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_SIZE = 224  # pixels, where a backbone names no size of its own
CHUNK = 64  # images that are decoded, and pass the backbone, together

log = logging.getLogger(__name__)


# --- the backbone ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen image model: images in, one feature vector per image out.

    Attributes:
        model: in eval mode (BatchNorm keeps its statistics), float32, without gradients.
        mean: what the model's images are normalised with, [3, 1, 1], for values in [0, 1].
        std: likewise.
        image_size: height and width in pixels of the images it is given here.
        identity: the model's class and a digest of its weights; the same wherever they lie.
        num_features: length of a feature vector.
    """

    model: torch.nn.Module
    mean: torch.Tensor
    std: torch.Tensor
    image_size: tuple[int, int]
    identity: str
    num_features: int = 0

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of a batch.

        Args:
            images: [B, 3, H, W], uint8, or float in [0, 1]; on any device.

        Returns:
            [B, F] float32 on the backbone's device: the class token of a model that has one,
            otherwise the mean over tokens or over the feature map. A transformer's own pooler is
            not used: a checkpoint made for classification has no weights for it.
        """
        images = images.to(self.device)
        if images.dtype == torch.uint8:
            images = images.float() / 255
        options = {}
        if "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters:
            options["interpolate_pos_encoding"] = True  # no effect at the model's own size
        output = self.model(pixel_values=(images - self.mean) / self.std, **options)
        states = output.last_hidden_state
        if states.ndim == 3:
            return states[:, 0] if _has_class_token(self.model) else states.mean(dim=1)
        pooled = getattr(output, "pooler_output", None)
        return states.mean(dim=(2, 3)) if pooled is None else pooled.flatten(1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features [N, F] of uint8 images [N, 3, H, W], in chunks of a fixed size."""
        return torch.cat([self(chunk) for chunk in images.split(CHUNK)])


def _has_class_token(model: torch.nn.Module) -> bool:
    return any(
        name.endswith(("cls_token", "class_embedding")) for name, _ in model.named_parameters()
    )


def load_backbone(
    name: str, device: torch.device, image_size: tuple[int, int] | None = None
) -> Backbone:
    """Any image model that `transformers.AutoModel` loads.

    Args:
        name: hub id, folder, or one of `SHORT_NAMES`.
        image_size: height and width in pixels; default the backbone's own, from its preprocessor
            configuration, then from its configuration, then 224.

    Raises:
        UserError: no such model, no network and no copy of it, no weights, or no image model.
    """
    name = SHORT_NAMES.get(name, name)
    model, identity = _load_model(name)
    mean, std, own_size = read_preprocessing(name)
    if image_size is None:
        image_size = own_size or _pair(getattr(model.config, "image_size", None) or DEFAULT_SIZE)
    backbone = Backbone(
        model.to(device).eval().requires_grad_(False),
        torch.tensor(mean, device=device).reshape(-1, 1, 1),
        torch.tensor(std, device=device).reshape(-1, 1, 1),
        image_size,
        identity,
    )
    try:
        shape = backbone(torch.zeros(1, 3, *image_size)).shape
    except Exception as error:  # whatever a model says about input that it was not made for
        shape, reason = (), _first_line(error)
    else:
        reason = f"its output has the shape {list(shape)}"
    if len(shape) != 2:
        raise UserError(
            f"--classifier_backbone: {name} gives no features for images of {image_size[0]}x"
            f"{image_size[1]} pixels: {reason}"
        )
    return dataclasses.replace(backbone, num_features=shape[1])


def _load_model(name: str) -> tuple[torch.nn.Module, str]:
    # Imported late: `cli.command` first tells the library, through the environment, to be quiet.
    import transformers

    with _quiet(transformers):
        try:
            # The dtype is given because a half-precision checkpoint would keep its own.
            model, report = transformers.AutoModel.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, and more
            raise UserError(_why_no_model(name, error)) from error
    missing = set(report["missing_keys"])
    needed = sorted(key for key in missing if not re.search("pooler|mask_token", key))
    if needed:
        raise UserError(
            f"--classifier_backbone: {name} has no weights for {len(needed)} tensors of "
            f"{type(model).__name__}, such as {needed[0]}"
        )
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        if key not in missing:
            digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    identity = f"{type(model).__name__} {digest.hexdigest()[:16]}"
    return getattr(model, "vision_model", model), identity  # the image half of CLIP and its like


@contextlib.contextmanager
def _quiet(transformers):
    """No bars and no load report of transformers: that a head is not used is expected here."""
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
    return f"--classifier_backbone: {what}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def read_preprocessing(
    name: str,
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, int] | None]:
    """Mean, standard deviation and input size that a model's preprocessor configuration names.

    Where there is none, ImageNet's mean and deviation serve, with a notice, and the size is None.
    """
    from transformers.image_processing_base import ImageProcessingMixin  # needs no torchvision

    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except (OSError, ValueError):
        log.warning(
            "%s has no preprocessor_config.json: images are normalised with ImageNet's mean and "
            "standard deviation",
            name,
        )
        return IMAGENET_MEAN, IMAGENET_STD, None
    if not config.get("do_normalize", True):
        return (0.0,) * 3, (1.0,) * 3, _input_size(config)
    mean = _triple(config.get("image_mean") or IMAGENET_MEAN)
    std = _triple(config.get("image_std") or IMAGENET_STD)
    return mean, std, _input_size(config)


def _input_size(config: Mapping) -> tuple[int, int] | None:
    """Height and width of what the model sees: after the centre crop, where there is one."""
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
    return (float(value),) * 3 if isinstance(value, (int, float)) else tuple(map(float, value))


# --- images in memory ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Examples:
    """The images of one trial: N photos, then all their synthetic variants, M in all.

    Attributes:
        images: [N + M, 3, H, W] uint8.
        labels: [N + M] int64; a variant's label is its own, as its record says.
        first_variant: [N] int64, where in `images` the variants of photo n start.
        num_variants: [N] int64, how many there are.
    """

    images: torch.Tensor
    labels: torch.Tensor
    first_variant: torch.Tensor
    num_variants: torch.Tensor

    @property
    def num_photos(self) -> int:
        return len(self.num_variants)


def load_examples(
    dataset: FewShotDataset, image_size: tuple[int, int], classes: Iterable[str] | None = None
) -> Examples:
    """Decode the photos of a trial, and the variants in `dataset.synthetic_examples`, once.

    Raises:
        UserError: there is no photo of these classes, or an image cannot be read.
    """
    indices = dataset.indices(classes)
    if not indices:
        raise UserError("no training photo of the selected classes")
    variants = dataset.synthetic_examples or {}
    items, first, count = list(indices), [], []
    labels = [dataset.get_label_by_idx(idx) for idx in indices]
    for idx in indices:
        own = variants.get(idx, [])
        first.append(len(items))
        count.append(len(own))
        items += [image for image, _ in own]
        labels += [label for _, label in own]
    images = torch.empty((len(items), 3, *image_size), dtype=torch.uint8)
    for n, pixels in enumerate(_decode(dataset, items, image_size)):
        if isinstance(pixels, Exception):
            raise UserError(f"training image {_name(dataset, items[n])}: {pixels}") from pixels
        images[n] = pixels
    return Examples(images, torch.tensor(labels), torch.tensor(first), torch.tensor(count))


@dataclass(frozen=True, eq=False)
class LabelledFeatures:
    """Features [N, F] on the backbone's device and labels [N] on the CPU of a whole split."""

    features: torch.Tensor
    labels: torch.Tensor


def split_features(
    backbone: Backbone, dataset: FewShotDataset, classes: Iterable[str] | None = None
) -> LabelledFeatures:
    """Every photo of a split through the backbone, once, in the dataset's order.

    Photos that cannot be read are named, counted and left out.

    Raises:
        UserError: no photo is left.
    """
    indices = dataset.indices(classes)
    features, labels, chunk, unreadable = [], [], [], 0
    bar = progress_bar(total=len(indices), desc=f"{dataset.split} features", unit="image")
    with bar as progress:
        for n, pixels in enumerate(_decode(dataset, indices, backbone.image_size)):
            if isinstance(pixels, Exception):
                unreadable += 1
                log.warning("%s: %s; skipped", _name(dataset, indices[n]), pixels)
            else:
                chunk.append(pixels)
                labels.append(dataset.get_label_by_idx(indices[n]))
            if len(chunk) == CHUNK or (chunk and n + 1 == len(indices)):
                features.append(backbone(torch.stack(chunk)))
                chunk = []
            progress.update()
    if chunk:
        features.append(backbone(torch.stack(chunk)))
    if unreadable:
        log.warning(
            "%d of %d photos of split %r cannot be read", unreadable, len(indices), dataset.split
        )
    if not labels:
        raise UserError(f"no photo of split {dataset.split!r} to evaluate on")
    result = LabelledFeatures(torch.cat(features), torch.tensor(labels))
    if not result.features.isfinite().all():
        raise UserError("--classifier_backbone: its features are not finite numbers")
    return result


def _decode(
    dataset: FewShotDataset, items: Sequence, image_size: tuple[int, int]
) -> Iterator[torch.Tensor | Exception]:
    """Each item (index of a photo, path, or PIL image) as uint8 [3, H, W], or why it cannot be.

    In order, and one chunk ahead at most, so that a large split never lies in memory as pixels.
    """

    def read(item):
        try:
            if isinstance(item, int):
                image = dataset.get_image_by_idx(item)
            else:
                image = item if isinstance(item, Image.Image) else read_image(item)
            return torch.from_numpy(resized_pixels(to_rgb(image), image_size)).permute(2, 0, 1)
        except (UserError, OSError) as error:
            return error

    # A subclass that reads photos in its own way need not be safe for threads.
    own_reader = type(dataset).get_image_by_idx is not FewShotDataset.get_image_by_idx
    with ThreadPoolExecutor(1 if own_reader else min(os.cpu_count() or 1, 16)) as threads:
        for start in range(0, len(items), CHUNK):
            yield from threads.map(read, items[start : start + CHUNK])


def _name(dataset: FewShotDataset, item) -> str:
    if not isinstance(item, int):
        return "of the synthetic ones"
    records = getattr(dataset, "records", None)
    return records[item].source if records else f"photo {item} of split {dataset.split!r}"


# --- training --------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingOptions:
    """How a head is trained; everything here changes the result.

    Attributes:
        iterations_per_epoch: batches per epoch.
        batch_size: photos per batch, drawn with replacement.
        learning_rate: of Adam.
        synthetic_probability: how often a drawn photo is replaced by one of its own synthetic
            variants, in [0, 1] (DA-Fusion, section 4).
        augmentation: one of `AUGMENTATIONS`.
    """

    num_epochs: int = 50
    iterations_per_epoch: int = 200
    batch_size: int = 32
    learning_rate: float = 1e-4
    synthetic_probability: float = 0.5
    augmentation: str = "flip-rotate"


@dataclass(frozen=True, eq=False)
class Head:
    """Features -> logits. Classes without a training image have logit -inf: never predicted.

    Attributes:
        linear: F -> num_classes.
        trained: [num_classes] bool, the classes with a training image.
    """

    linear: torch.nn.Linear
    trained: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """[B, F] -> [B, num_classes]."""
        return self.linear(features).masked_fill(~self.trained, -math.inf)


@dataclass(frozen=True, eq=False)
class Scores:
    """Mean loss and accuracy of each class, [num_classes]; nan where it has no example."""

    loss: torch.Tensor
    accuracy: torch.Tensor

    @property
    def mean_loss(self) -> float:
        return float(self.loss.nanmean())

    @property
    def mean_accuracy(self) -> float:
        return float(self.accuracy.nanmean())


def trial_generator(trial: Trial) -> torch.Generator:
    """The random stream of a trial. Methods share it: their differences are not luck of draws."""
    seed = stable_hash("classifier", trial.seed, trial.examples_per_class)
    return torch.Generator().manual_seed(seed)


def make_head(
    num_features: int, trained: torch.Tensor, device: torch.device, generator: torch.Generator
) -> Head:
    """A head with weights uniform in ±1/sqrt(F), torch's default, but from our generator."""
    linear = torch.nn.utils.skip_init(torch.nn.Linear, num_features, len(trained))
    bound = num_features**-0.5
    with torch.no_grad():
        linear.weight.uniform_(-bound, bound, generator=generator)
        linear.bias.uniform_(-bound, bound, generator=generator)
    return Head(linear.to(device), trained.to(device))


def draw_epoch(
    examples: Examples, options: TrainingOptions, generator: torch.Generator
) -> torch.Tensor:
    """Which images an epoch shows: indices into `examples.images`, [iterations, batch_size].

    Photos are drawn with replacement; each is replaced, with `synthetic_probability`, by one of
    its own variants, drawn uniformly. A photo without variants stays. The stream advances by the
    same amount whether there are variants or not.
    """
    shape = (options.iterations_per_epoch, options.batch_size)
    photo = torch.randint(examples.num_photos, shape, generator=generator)
    # In double precision a fraction below 1, times a count, never rounds up to that count.
    coin, fraction = torch.rand((2, *shape), generator=generator, dtype=torch.float64)
    count = examples.num_variants[photo]
    variant = examples.first_variant[photo] + (fraction * count).long()
    return torch.where((coin < options.synthetic_probability) & (count > 0), variant, photo)


def train_trial(
    examples: Examples,
    validation: LabelledFeatures,
    backbone: Backbone,
    options: TrainingOptions,
    trial: Trial,
    num_classes: int,
) -> tuple[Head, list[tuple[Scores, Scores]]]:
    """Train a head on one trial.

    Without random augmentation every image passes the backbone once, however many epochs.

    Returns:
        The head after the last epoch, and (training, validation) scores of every epoch. Those of
        training are running values: of each batch before its step.

    Raises:
        UserError: the loss is no longer finite.
    """
    generator = trial_generator(trial)
    trained = torch.zeros(num_classes, dtype=torch.bool)
    trained[examples.labels] = True
    augment = AUGMENTATIONS[options.augmentation]
    features = backbone.features(examples.images) if augment is None else None
    head = make_head(backbone.num_features, trained, backbone.device, generator)
    optimizer = torch.optim.Adam(head.linear.parameters(), lr=options.learning_rate)

    def batch_features(indices):
        if augment is None:
            return features[indices.to(features.device)]
        images = examples.images[indices].to(backbone.device).float() / 255
        return backbone(augment(images, generator))

    history = []
    bar = progress_bar(total=options.num_epochs, desc=trial.name, unit="epoch")
    with bar as progress, _one_thread() if augment is None else contextlib.nullcontext():
        for epoch in range(options.num_epochs):
            draws = draw_epoch(examples, options, generator)
            scores = _train_epoch(head, optimizer, draws, examples.labels, batch_features)
            validated = evaluate(head, validation)
            loss, accuracy = scores.mean_loss, validated.mean_accuracy
            if not math.isfinite(loss) or not math.isfinite(validated.mean_loss):
                raise UserError(
                    f"{trial.name}: the loss is not finite in epoch {epoch} at --learning_rate "
                    f"{options.learning_rate:g}: choose a smaller one"
                )
            history.append((scores, validated))
            progress.set_postfix(loss=f"{loss:.3f}", val=f"{accuracy:.1%}", refresh=False)
            progress.update()
    return head, history


@contextlib.contextmanager
def _one_thread():
    """Steps of a head alone are too small to share: on busy cores, threads wait for each other.

    With two threads beside other work they took up to a hundred times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train_epoch(
    head: Head,
    optimizer: torch.optim.Optimizer,
    draws: torch.Tensor,
    labels: torch.Tensor,
    batch_features: Callable[[torch.Tensor], torch.Tensor],
) -> Scores:
    losses, hits = [], []
    for indices in draws:
        target = labels[indices].to(head.trained.device)
        logits = head(batch_features(indices))
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.detach())  # left on the device: reading a value would wait for it
        hits.append(logits.argmax(dim=1) == target)
    shown = labels[draws.flatten()]
    return class_scores(torch.cat(losses), torch.cat(hits), shown, len(head.trained))


@torch.no_grad()
def evaluate(head: Head, split: LabelledFeatures) -> Scores:
    """Scores of a whole split. Classes that the head was not trained for are left out: nan.

    Raises:
        UserError: no class of the split is one of the trained ones.
    """
    known = head.trained.cpu()[split.labels]
    if not known.any():
        raise UserError("the photos to evaluate on are all of classes without a training image")
    labels, features = split.labels[known], split.features[known.to(split.features.device)]
    target = labels.to(features.device)
    logits = head(features)
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    return class_scores(losses, logits.argmax(dim=1) == target, labels, len(head.trained))


def class_scores(
    losses: torch.Tensor, hits: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> Scores:
    """Means per class of losses [N] and hits [N], by labels [N]."""
    count = torch.bincount(labels, minlength=num_classes)
    loss = torch.bincount(labels, losses.cpu().double(), num_classes) / count
    accuracy = torch.bincount(labels, hits.cpu().double(), num_classes) / count
    return Scores(loss, accuracy)  # 0 / 0 is nan
