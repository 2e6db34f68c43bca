"""Export of a classifier to transformers and ONNX, for programs without this package."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from semantic_aug import UserError, first_line
from semantic_aug.evaluation.backbone import quiet
from semantic_aug.evaluation.classifiers import Classifier

NEVER = -1e4  # logit of an untrained class: its probability is 0 in every precision
AGREE = 1e-4  # largest accepted difference between probabilities
ONNX_FILE = "model.onnx"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BICUBIC = 3  # Pillow's number of this filter


def to_transformers(classifier: Classifier) -> torch.nn.Module:
    """The backbone's `...ForImageClassification` model, with the head and the temperature in it.

    The softmax of its logits gives the classifier's probabilities; images of noise check this.

    Raises:
        UserError: transformers has no such model; or the model takes no images of this size, or its
            head uses other features than the classifier's head.
    """
    import transformers

    backbone = classifier.backbone
    kind = backbone.model.config.model_type
    config = type(backbone.model.config).from_dict(backbone.model.config.to_dict())
    config.architectures = []  # DeiT's architecture with a teacher has two heads
    config.num_labels = len(classifier.class_names)
    config.id2label = dict(enumerate(classifier.class_names))
    config.label2id = {name: label for label, name in enumerate(classifier.class_names)}
    config.problem_type = "single_label_classification"
    with torch.random.fork_rng(devices=[]):
        try:
            model = transformers.AutoModelForImageClassification.from_config(config)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"transformers has no classifier on a backbone of kind {kind} "
                f"({first_line(error)}): {_INSTEAD}"
            ) from error
    model.float().eval().requires_grad_(False)
    inner = model.base_model
    lacking, _ = inner.load_state_dict(
        {key: each.cpu() for key, each in backbone.model.state_dict().items()}, strict=False
    )
    linear = [each for each in model.modules() if isinstance(each, torch.nn.Linear)][-1]
    weight, bias = folded_head(classifier)
    if linear.in_features == 2 * weight.shape[1]:  # DINOv2: class token, and mean of the patches
        weight = torch.cat([weight, torch.zeros_like(weight)], dim=1)
    if lacking or linear.weight.shape != weight.shape:
        raise UserError(_other(model, kind))
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    stream = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, *backbone.image_size, generator=stream)
    try:
        logits = model((images - backbone.mean.cpu()) / backbone.std.cpu()).logits
    except Exception as error:  # models raise any kind of exception for unsuitable sizes
        size = "x".join(map(str, backbone.image_size))
        raise UserError(
            f"{type(model).__name__} takes no images of {size} pixels ({first_line(error)}), on "
            f"which this classifier was trained: {_INSTEAD}"
        ) from error
    expected = classifier.probabilities(backbone.features(images))
    if (logits.softmax(dim=1) - expected).abs().max() > AGREE:
        raise UserError(_other(model, kind))
    return model


_INSTEAD = "use the classifier by semantic-aug predict, or by load_classifier in Python"


def _other(model: torch.nn.Module, kind: str) -> str:
    return (
        f"the head of transformers' {type(model).__name__} uses other features of a backbone of "
        f"kind {kind} than this classifier: {_INSTEAD}"
    )


def folded_head(classifier: Classifier) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [num_classes, F] and bias [num_classes] of a head that includes the temperature.

    A class without a training photo keeps its label: its weights are 0, its bias is `NEVER`.
    """
    linear, trained = classifier.head.linear, classifier.head.trained.cpu()
    weight = linear.weight.detach().cpu() / classifier.temperature
    bias = linear.bias.detach().cpu() / classifier.temperature
    weight[~trained], bias[~trained] = 0, NEVER
    return weight, bias


def image_processor(classifier: Classifier) -> dict:
    """The content of preprocessor_config.json: photos are resized as in training."""
    height, width = classifier.backbone.image_size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": classifier.backbone.mean.flatten().tolist(),
        "image_std": classifier.backbone.std.flatten().tolist(),
    }


def write_transformers(folder: Path, model: torch.nn.Module, classifier: Classifier) -> None:
    """Write the weights, configuration and image processor, for `from_pretrained`."""
    import transformers

    with quiet(transformers):
        model.save_pretrained(folder)
    text = json.dumps(image_processor(classifier), indent=2)
    (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")


# --- ONNX ------------------------------------------------------------------------------------


def check_onnx() -> None:
    """Raise UserError unless the packages for ONNX are installed."""
    import importlib.util

    absent = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"--onnx needs {', '.join(absent)}: pip install 'semantic-aug[onnx]', or pip install "
            f"{' '.join(ONNX_PACKAGES)}"
        )


class _Logits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits


def write_onnx(path: Path, model: torch.nn.Module, size: tuple[int, int]) -> None:
    """Write a model as ONNX, for batches of any size B.

    The input `pixel_values` [B, 3, H, W] comes from the image processor; the output is `logits`
    [B, num_classes].

    Args:
        size: H and W in pixels.

    Raises:
        UserError: torch cannot write this model, or onnxruntime gives other probabilities.
    """
    import onnxruntime

    stream = torch.Generator().manual_seed(1)
    images, example = torch.rand(5, 3, *size, generator=stream), torch.rand(2, 3, *size)
    whole = _Logits(model).eval()  # otherwise the exporter would leave the model in training mode
    batch = {name: {0: "batch"} for name in ("pixel_values", "logits")}
    names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    try:
        with _silent():
            # torch's older exporter takes a second, the newer exporter fifteen.
            torch.onnx.export(whole, (example,), path, dynamo=False, dynamic_axes=batch, **names)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"pixel_values": images.numpy()})
    except Exception as error:  # exporters raise any kind of exception for unknown models
        raise UserError(
            f"--onnx: torch cannot write {type(model).__name__} as ONNX: {first_line(error)}"
        ) from error
    with torch.no_grad():
        expected = model(pixel_values=images).logits.softmax(dim=1)
    apart = float((torch.from_numpy(found).softmax(dim=1) - expected).abs().max())
    if apart > AGREE:
        raise UserError(f"--onnx: the probabilities of onnxruntime and torch differ by {apart:.2g}")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress the notices of the exporter, which do not concern the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
