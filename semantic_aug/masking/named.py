"""Masks from class names: a model finds the named object, and another model draws its outline.

CLIPSeg (arXiv 2112.10003), OWL-ViT (2205.06230), OWLv2 (2306.09683) or Grounding DINO (2303.05499)
finds the object; SAM (2304.02643) draws the outline. SAM 3 (2511.16719) does both.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from semantic_aug import UserError
from semantic_aug.diffusion.identity import identity_of
from semantic_aug.masking.cleaning import pieces_of
from semantic_aug.masking.loading import load_model, load_processor, needs, read_config
from semantic_aug.masking.masker import Found, Masker
from semantic_aug.settings.masking import MASKER_MODELS, NAMED, Masking

FLAG = "--masker_models"
SAM, SAM_3 = "sam", "sam3"
NAME = "{name}"


@dataclasses.dataclass(frozen=True)
class Place:
    """The predicted place of an object, in pixels of its photo.

    Attributes:
        box: left, top, right, bottom.
        peak: x, y of the most confident pixel, if the finder gives it.
        score: the finder's confidence, in [0, 1].
    """

    box: tuple[float, float, float, float]
    peak: tuple[float, float] | None
    score: float


Find = Callable[[Sequence[Image.Image], Sequence[str]], list[Place]]


@dataclasses.dataclass(frozen=True)
class Finder:
    """A kind of model that finds an object by words.

    Attributes:
        model: the model's class in transformers.
        load: makes the `Find` function from a model, its processor and a device.
        least: a mask is doubtful if the score of its place is lower.
        most_tokens: gives the largest number of tokens of a phrase, from the configuration.
    """

    model: str
    load: Callable[[Any, Any, torch.device], Find]
    least: float
    most_tokens: Callable[[Any], int]


def make(settings: Masking) -> Masker:
    """See `make_masker`."""
    import transformers

    names = settings.masker_models or MASKER_MODELS[NAMED]
    configs = [read_config(FLAG, name) for name in names]
    kinds = [config.model_type for config in configs]
    identity = {kind: str(identity_of(name)) for kind, name in zip(kinds, names)}
    if kinds == [SAM_3]:
        needs(FLAG, f"{names[0]}, a SAM 3,", "torchvision", "torchvision")
        return Masker(
            identity,
            functools.partial(check_prompt, settings.prompt),
            functools.partial(load_sam3, names[0], settings.prompt),
        )
    if len(kinds) != 2 or kinds[0] not in FINDERS or kinds[1] != SAM:
        got = ", ".join(f"{name} ({kind})" for name, kind in zip(names, kinds))
        raise UserError(
            f"{FLAG}: got {got}, expected one of {', '.join(FINDERS)} and then a {SAM}, or a "
            f"{SAM_3} alone"
        )
    finder = FINDERS[kinds[0]]
    tokenizer = load_processor(FLAG, transformers.AutoTokenizer, names[0])
    limit = finder.most_tokens(configs[0])
    return Masker(
        identity,
        functools.partial(check_words, tokenizer, limit, settings.prompt),
        functools.partial(load, finder, names, settings.prompt),
    )


# --- words -----------------------------------------------------------------------------------


def check_prompt(prompt: str, words: Sequence[str]) -> None:
    """Raise UserError for an empty prompt."""
    if not prompt.strip():
        raise UserError(f'--prompt: got {prompt!r}, expected words such as "a {NAME}"')


def check_words(tokenizer, limit: int, prompt: str, words: Sequence[str]) -> None:
    """Raise UserError if a word has no token or an unknown token, or a phrase has too many."""
    check_prompt(prompt, words)
    for each in words:
        phrase = prompt.replace(NAME, each)
        tokens = tokenizer(each if NAME in prompt else phrase, add_special_tokens=False).input_ids
        if not tokens or tokenizer.unk_token_id in tokens:
            raise UserError(
                f"{FLAG}: {tokenizer.name_or_path} has no token for {each!r}: say what the object "
                f"is by --prompt, without {NAME}, or rename the class"
            )
        if (length := len(tokenizer(phrase).input_ids)) > limit:
            raise UserError(
                f"--prompt: {phrase!r} has {length} tokens, and {tokenizer.name_or_path} reads "
                f"{limit}: give a shorter prompt"
            )


# --- finding objects -------------------------------------------------------------------------


def place_of_heat(heat: np.ndarray, size: tuple[int, int]) -> Place:
    """The hottest pixel, and the box of the piece around it that is at least half as hot.

    Args:
        heat: [h, w] in [0, 1], of the whole photo.
        size: (width, height) of the photo.
    """
    y, x = np.unravel_index(int(np.argmax(heat)), heat.shape)
    labels, _ = pieces_of(heat >= heat[y, x] / 2)
    rows, columns = np.nonzero(labels == labels[y, x])
    across, down = size[0] / heat.shape[1], size[1] / heat.shape[0]
    box = (
        columns.min() * across, rows.min() * down,
        (columns.max() + 1) * across, (rows.max() + 1) * down,
    )  # fmt: skip
    return Place(
        tuple(map(float, box)),  # type: ignore[arg-type]  # always four numbers
        (float((x + 0.5) * across), float((y + 0.5) * down)),
        float(heat[y, x]),
    )


def find_by_heat(model, processor, device: torch.device) -> Find:
    """The `Find` function of CLIPSeg, which makes a heat map of the words."""

    def find(images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Place]:
        inputs = processor(text=list(phrases), images=list(images), padding=True, truncation=True,
                           return_tensors="pt").to(device)  # fmt: skip
        with torch.no_grad():
            logits = model(**inputs).logits.float()
        heat = logits.reshape(len(images), *logits.shape[-2:]).sigmoid().cpu().numpy()
        return [place_of_heat(each, image.size) for each, image in zip(heat, images)]

    return find


def find_by_box(model, processor, device: torch.device, *, as_sentence: bool = False) -> Find:
    """The `Find` function of OWL-ViT, OWLv2 and Grounding DINO: it takes the most confident box.

    Args:
        as_sentence: give words in lower case with a full stop, as Grounding DINO expects.
    """

    def find(images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Place]:
        if as_sentence:
            text: list = [phrase.lower().rstrip(". ") + "." for phrase in phrases]
            padding: dict = {"padding": True}
        else:
            text = [[phrase] for phrase in phrases]
            padding = {"padding": "max_length", "max_length": _tokens_of_text(model.config)}
        inputs = processor(text=text, images=list(images), return_tensors="pt", **padding)
        inputs = inputs.to(device)
        with torch.no_grad():
            outputs = model(**inputs)
        sizes = torch.tensor([image.size[::-1] for image in images])
        options: dict = {"threshold": -1.0, "target_sizes": sizes.to(device)}
        if as_sentence:
            options["input_ids"] = inputs["input_ids"]
        found = []
        for each, image in zip(
            processor.post_process_grounded_object_detection(outputs, **options), images
        ):
            best = int(each["scores"].argmax())
            corners = np.asarray(each["boxes"][best].float().cpu()).reshape(2, 2)
            left, top, right, bottom = np.clip(corners, 0, image.size).ravel().tolist()
            found.append(Place((left, top, right, bottom), None, float(each["scores"][best])))
        return found

    return find


def _tokens_of_text(config) -> int:
    return config.text_config.max_position_embeddings


FINDERS = {
    "clipseg": Finder("CLIPSegForImageSegmentation", find_by_heat, 0.2, _tokens_of_text),
    "owlvit": Finder("OwlViTForObjectDetection", find_by_box, 0.1, _tokens_of_text),
    "owlv2": Finder("Owlv2ForObjectDetection", find_by_box, 0.1, _tokens_of_text),
    "grounding-dino": Finder(
        "GroundingDinoForObjectDetection",
        functools.partial(find_by_box, as_sentence=True),
        0.25,
        lambda config: config.max_text_len,
    ),
}


# --- drawing outlines ------------------------------------------------------------------------


def load(finder: Finder, names: Sequence[str], prompt: str, device: torch.device):
    """A function from photos and words to the outlines of the objects that the words name."""
    import transformers

    found_by = load_model(FLAG, getattr(transformers, finder.model), names[0], device)
    find = finder.load(found_by, load_processor(FLAG, transformers.AutoProcessor, names[0]), device)
    draw = load_sam(names[1], device)

    def paint(images: Sequence[Image.Image], words: Sequence[str]) -> list[Found]:
        places = find(images, [prompt.replace(NAME, each) for each in words])
        doubts = [
            (f"it is hardly found, with a score of {place.score:.2f}",)
            if place.score < finder.least
            else ()
            for place in places
        ]
        return [
            dataclasses.replace(drawn, doubts=doubt)
            for drawn, doubt in zip(draw(images, places), doubts)
        ]

    return paint


def load_sam(name: str, device: torch.device):
    """A function from photos and places to outlines by SAM, with boxes and peaks as prompts."""
    import transformers

    model = load_model(FLAG, transformers.SamModel, name, device)
    processor = load_processor(FLAG, transformers.SamProcessor, name)

    def draw(images: Sequence[Image.Image], places: Sequence[Place]) -> list[Found]:
        asked: dict[str, Any] = {"input_boxes": [[list(place.box)] for place in places]}
        peaks = [place.peak for place in places]
        if None not in peaks:
            asked["input_points"] = [[[list(peak)]] for peak in peaks if peak]
            asked["input_labels"] = [[[1]] for _ in peaks]
        inputs = processor(list(images), return_tensors="pt", **asked)
        sizes = inputs.pop("reshaped_input_sizes").tolist()
        inputs.pop("original_sizes")
        padded = inputs["pixel_values"].shape[-2:]
        # Some numbers of the prompts are float64, which not every device supports.
        inputs = {
            key: (each.float() if each.is_floating_point() else each).to(device)
            for key, each in inputs.items()
        }
        with torch.no_grad():
            masks = model(**inputs, multimask_output=False).pred_masks[:, 0].float()
        whole = torch.nn.functional.interpolate(masks, padded, mode="bilinear")[:, 0].sigmoid()
        cells = [size * masks.shape[-1] // max(padded) for pair in sizes for size in pair]
        return [
            Found(each[:height, :width].cpu().numpy(), grid=(max(1, down), max(1, across)))
            for each, (height, width), down, across in zip(whole, sizes, cells[::2], cells[1::2])
        ]

    return draw


def load_sam3(name: str, prompt: str, device: torch.device):
    """A function from photos and words to the outlines of SAM 3's most confident objects."""
    import transformers

    model = load_model(FLAG, transformers.Sam3Model, name, device)
    processor = load_processor(FLAG, transformers.Sam3Processor, name)

    def paint(images: Sequence[Image.Image], words: Sequence[str]) -> list[Found]:
        phrases = [prompt.replace(NAME, each) for each in words]
        inputs = processor(images=list(images), text=phrases, return_tensors="pt").to(device)
        with torch.no_grad():
            outputs = model(**inputs)
        scores = outputs.pred_logits.float().sigmoid()
        if outputs.presence_logits is not None:
            scores = scores * outputs.presence_logits.float().sigmoid()
        found = []
        for of_photo, masks in zip(scores, outputs.pred_masks.float().sigmoid()):
            best = int(of_photo.argmax())
            score = float(of_photo[best])
            doubt = (f"it is hardly found, with a score of {score:.2f}",) if score < 0.3 else ()
            found.append(Found(masks[best].cpu().numpy(), doubt))
        return found

    return paint
