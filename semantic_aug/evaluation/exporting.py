"""A classifier as a whole model of transformers, and as ONNX: for programs without this package."""

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

NEVER = -1e4  # logit of a class that was not trained: its probability is 0 in every precision
AGREE = 1e-4  # how far probabilities may be apart
ONNX_FILE = "model.onnx"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BICUBIC = 3  # of Pillow


def to_transformers(classifier: Classifier) -> torch.nn.Module:
    """The `...ForImageClassification` of the backbone, with the head and the temperature in it.

    Its softmax gives the classifier's probabilities, which is tried out on images of noise.

    Raises:
        UserError: transformers has none, or one whose head sees other features than this one.
    """
    import transformers

    backbone = classifier.backbone
    kind = backbone.model.config.model_type
    config = type(backbone.model.config).from_dict(backbone.model.config.to_dict())
    config.architectures = []  # DeiT's with a teacher has two heads
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
    except Exception as error:  # of a size that it does not take, whatever a model says
        size = "x".join(map(str, backbone.image_size))
        raise UserError(
            f"{type(model).__name__} takes no images of {size} pixels ({first_line(error)}), on "
            f"which this classifier was trained: {_INSTEAD}"
        ) from error
    expected = classifier.probabilities(backbone.features(images))
    if (logits.softmax(dim=1) - expected).abs().max() > AGREE:
        raise UserError(_other(model, kind))
    return model


_INSTEAD = "use it by semantic-aug predict, or load_classifier in Python"


def _other(model: torch.nn.Module, kind: str) -> str:
    return (
        f"{type(model).__name__} of transformers sees other features of a backbone of kind {kind} "
        f"than this classifier: {_INSTEAD}"
    )


def folded_head(classifier: Classifier) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [num_classes, F] and bias of a head whose softmax gives calibrated probabilities.

    A class without a training photo keeps its label: its weights are 0, its bias is `NEVER`.
    """
    linear, trained = classifier.head.linear, classifier.head.trained.cpu()
    weight = linear.weight.detach().cpu() / classifier.temperature
    bias = linear.bias.detach().cpu() / classifier.temperature
    weight[~trained], bias[~trained] = 0, NEVER
    return weight, bias


def image_processor(classifier: Classifier) -> dict:
    """preprocessor_config.json: photos resized as here, without keeping their proportions."""
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
    """Weights, configuration and image processor, as `from_pretrained` takes them."""
    import transformers

    with quiet(transformers):
        model.save_pretrained(folder)
    text = json.dumps(image_processor(classifier), indent=2)
    (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")


# --- ONNX ------------------------------------------------------------------------------------


def check_onnx() -> None:
    """Raise UserError unless the packages for ONNX are there."""
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
    """`pixel_values` [B, 3, H, W], as the image processor makes them -> `logits`, for any B.

    Raises:
        UserError: torch cannot write this model, or onnxruntime answers otherwise.
    """
    import onnxruntime

    stream = torch.Generator().manual_seed(1)
    images, example = torch.rand(5, 3, *size, generator=stream), torch.rand(2, 3, *size)
    whole = _Logits(model).eval()  # else the exporter would leave the model in training mode
    batch = {name: {0: "batch"} for name in ("pixel_values", "logits")}
    names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    try:
        with _silent():
            # The older of torch's two exporters takes a second, the newer one a quarter of a minute.
            torch.onnx.export(whole, (example,), path, dynamo=False, dynamic_axes=batch, **names)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"pixel_values": images.numpy()})
    except Exception as error:  # whatever an exporter says of a model that it does not know
        raise UserError(
            f"--onnx: torch cannot write {type(model).__name__} as ONNX: {first_line(error)}"
        ) from error
    with torch.no_grad():
        expected = model(pixel_values=images).logits.softmax(dim=1)
    apart = float((torch.from_numpy(found).softmax(dim=1) - expected).abs().max())
    if apart > AGREE:
        raise UserError(f"--onnx: onnxruntime gives probabilities that are {apart:.2g} apart")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """No notices of the exporter, which are many and concern nobody here."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
