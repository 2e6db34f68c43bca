"""The quality gate: scores every image against its own class, and marks the worst images.

Scores and marks are separate lines in records/. An image is scored once; the worst images of a
class can be marked again and again. Nothing is deleted: train_classifier.py leaves out images that
are not kept.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from semantic_aug import UserError, first_line
from semantic_aug.diffusion.identity import commit_of, identity_of
from semantic_aug.evaluation.backbone import CHUNK, load_backbone, read_preprocessing
from semantic_aug.evaluation.pictures import Images
from semantic_aug.experiment.config import Identity, config_id, is_called
from semantic_aug.experiment.names import Trial
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.settings.classification import SHORT_NAMES
from semantic_aug.settings.generation import CLASSIFIER, CLIP, FILTER_MODELS
from semantic_aug.synthesis.jobs import Job
from semantic_aug.synthesis.records import (
    CLASS_KEYS,
    RecordWriter,
    is_about,
    read_lines,
    read_records,
)

SENTENCE = "a photo of a {}"  # CLIP's text for a class (arXiv 2103.00020, section 3.1.4)


@dataclass(frozen=True)
class Filter:
    """The scorer of images, and the share of each class that is rejected.

    Attributes:
        kind: `clip`: CLIP's cosine in [-1, 1] between an image and its class's name; `classifier`:
            the probability in [0, 1] of the image's class, by a linear head trained on the trial's
            photos alone.
        model: hub id or folder of a CLIP, or of the classifier's backbone.
        quantile: share of each class to reject, in [0, 1).
        identity: of the scorer; scores of another scorer do not count.
    """

    kind: str
    model: str
    quantile: float
    identity: Identity


@dataclass(frozen=True)
class Scorer:
    """A function from images, uint8 [B, 3, H, W], and their labels to scores [B].

    Attributes:
        size: the height and width of these images.
    """

    size: tuple[int, int]
    score: Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


def make_filter(kind: str, model: str | None, quantile: float) -> Filter:
    """The filter of these flags; only the model's configuration is read.

    Raises:
        UserError: there is no such model, or `clip` needs a CLIP and got another model.
    """
    model = SHORT_NAMES.get(model or FILTER_MODELS[kind], model or FILTER_MODELS[kind])
    config = _read_config(model)
    if kind == CLIP and config.model_type != "clip":
        raise UserError(f"--filter_model: {model} is a {config.model_type}, expected a CLIP model")
    weights = identity_of(model)
    now, older = (config_id({"filter": kind, "model": each}) for each in (weights, weights.older))
    return Filter(kind, model, quantile, Identity(now, older))


def check_trial(quality: Filter, dataset) -> None:
    """Raise UserError if the photos of a trial do not suffice for this filter."""
    labels = {dataset.get_label_by_idx(idx) for idx in range(len(dataset))}
    if quality.kind == CLASSIFIER and len(labels) < 2:
        raise UserError("--filter classifier needs photos of two classes; use --filter clip")


def load_scorer(quality: Filter, device: torch.device) -> Callable[..., Scorer]:
    """Load the filter's model once; return a maker of scorers: (dataset, trial, cache, words).

    `words` are the names of the classes in prompts.

    Raises:
        UserError: weights are missing or broken.
    """
    try:
        if quality.kind == CLIP:
            return partial(_clip_scorer, *_load_clip(quality.model, device))
        return partial(_classifier_scorer, load_backbone(quality.model, device))
    except UserError as error:  # the filter's backbone has another flag
        raise UserError(str(error).replace("--classifier_backbone", "--filter_model")) from error


# --- CLIP ------------------------------------------------------------------------------------


def _read_config(name: str):
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(name)
    except Exception as error:  # OSError, ValueError, KeyError and more
        if Path(name).is_dir():
            what = f"the folder {name} holds no model of transformers"
        else:
            what = (
                f"{name!r} is no folder, and no hub model in the cache or on the network; give a "
                "folder, or first download the model where there is a network (hf download)"
            )
        raise UserError(f"--filter_model: {what}") from error


def _load_clip(name: str, device: torch.device) -> tuple:
    """A CLIP in float32, its tokenizer, and its preprocessing of images."""
    import transformers

    try:
        model, report = transformers.CLIPModel.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, revision=commit_of(name)
        )
        tokenizer = transformers.CLIPTokenizer.from_pretrained(name, revision=commit_of(name))
    except Exception as error:  # OSError, ValueError, SafetensorError and more
        raise UserError(f"--filter_model: cannot load {name}: {first_line(error)}") from error
    if report["missing_keys"]:
        raise UserError(f"--filter_model: {name} lacks weights: {min(report['missing_keys'])}")
    if len(tokenizer) < 256:  # without its files, it loads but knows no words
        raise UserError(f"--filter_model: {name}: files of its tokenizer are missing")
    mean, std, _ = read_preprocessing(name)
    mean, std = (torch.tensor(each, device=device).view(3, 1, 1) for each in (mean, std))
    return model.requires_grad_(False).eval().to(device), tokenizer, mean, std


def _clip_scorer(model, tokenizer, mean, std, dataset, trial, cache, words) -> Scorer:
    """Cosines between images and the names of their classes."""
    sentences = [SENTENCE.format(words[name]) for name in dataset.class_names]
    limit = model.config.text_config.max_position_embeddings
    texts = []
    for start in range(0, len(sentences), CHUNK):
        tokens = tokenizer(
            sentences[start : start + CHUNK],
            padding="max_length",
            max_length=limit,
            truncation=True,
            return_tensors="pt",
        ).to(mean.device)
        with torch.no_grad():
            texts.append(model.get_text_features(**tokens).pooler_output)
    directions = torch.nn.functional.normalize(torch.cat(texts), dim=-1)

    def score(images: torch.Tensor, labels: Sequence[int]) -> torch.Tensor:
        pixels = (images.to(mean.device).float() / 255 - mean) / std
        with torch.no_grad():
            seen = model.get_image_features(pixel_values=pixels).pooler_output
        return (torch.nn.functional.normalize(seen, dim=-1) * directions[list(labels)]).sum(dim=-1)

    side = model.config.vision_config.image_size
    return Scorer((side, side), score)


# --- a classifier of the trial's photos ------------------------------------------------------


def _classifier_scorer(backbone, dataset, trial: Trial, cache: Path | None, words) -> Scorer:
    """Probabilities by a head that was trained on the photos of the whole trial."""
    # Imported late: it imports the library of standard augmentations, which takes a second.
    from semantic_aug.evaluation.features import LabelledFeatures, cached_features
    from semantic_aug.evaluation.sampling import load_examples
    from semantic_aug.evaluation.training import TrainingOptions, train_trial

    examples = load_examples(dataset, backbone.image_size)
    labels = examples.labels[: examples.num_photos]
    features, _ = cached_features(backbone, examples.images, f"{trial.name} features", cache)
    photos = LabelledFeatures(features, labels)  # also as val: no epoch is selected
    options = TrainingOptions(
        num_epochs=10, iterations_per_epoch=100, learning_rate=1e-3, augmentation=()
    )
    head = train_trial(
        examples, lambda: photos, backbone, options, trial, dataset.num_classes, cache
    ).head

    def score(images: torch.Tensor, labels: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            probabilities = head(backbone.features(images)).softmax(dim=-1)
        return probabilities[range(len(labels)), list(labels)]

    return Scorer(backbone.image_size, score)


# --- scores and marks ------------------------------------------------------------------------


def score_images(
    folder: Path,
    identity: str,
    quality: Filter,
    make_scorer: Callable[[], Scorer],
    dataset,
    names: Iterable[str],
    shard: tuple[int, int] = (0, 1),
) -> int:
    """Score the images of `names` without a score; each gets a line in records/.

    Args:
        identity: the `config_id` of the folder's images.
        make_scorer: called once, and only if an image has no score.
        dataset: the trial's photos.

    Returns:
        The number of images scored.

    Raises:
        UserError: an image cannot be read.
    """
    records, scores, _ = _read(folder, identity, quality)
    wanted = set(names) - scores.keys()
    todo = [record for record in records if record["file_name"] in wanted]
    if not todo:
        return 0
    scorer = make_scorer()
    images = Images(dataset, [folder / record["file_name"] for record in todo], scorer.size)
    rows = [range(start, min(start + CHUNK, len(todo))) for start in range(0, len(todo), CHUNK)]
    with (
        RecordWriter(folder, identity, shard) as writer,
        progress_bar(total=len(todo), desc=f"score {folder.name}", unit="image") as progress,
    ):
        for row, pixels in zip(rows, images.batches(rows)):
            labels = [todo[number]["label"] for number in row]
            for number, score in zip(row, scorer.score(pixels, labels).tolist()):
                given = {"score": round(score, 6), "scorer": quality.identity}
                writer.write(_line(todo[number], quality, given))
            progress.update(len(row))
    return len(todo)


def unscored(folder: Path, identity: str, quality: Filter) -> list[dict]:
    """Records of the images that this filter has not scored."""
    records, scores, _ = _read(folder, identity, quality)
    return [record for record in records if record["file_name"] not in scores]


def mark_worst(
    folder: Path,
    identity: str,
    quality: Filter,
    jobs: Mapping[str, Sequence[Job]],
    shard: tuple[int, int] = (0, 1),
) -> dict[str, tuple[int, int]]:
    """Mark the images of each class that are kept: all but the `quality.quantile` lowest scores.

    A class is judged when all its images are there and have scores. If several processes make a
    class, the last process judges it; if two processes judge it, their marks are equal.

    Args:
        jobs: the wanted jobs of each class.

    Returns:
        (kept, all) of each class that could be judged.
    """
    records, scores, last = _read(folder, identity, quality)
    present = {record["file_name"] for record in read_records(folder, identity)}
    of_class: dict[str, list[dict]] = {name: [] for name in jobs}
    for record in records:
        of_class.setdefault(record["class_name"], []).append(record)
    judged = {}
    with RecordWriter(folder, identity, shard) as writer:
        for name, wanted in jobs.items():
            own = {record["file_name"]: record for record in of_class[name]}
            if not (present >= {job.file_name for job in wanted} and scores.keys() >= own.keys()):
                continue
            own_scores = {file_name: scores[file_name]["score"] for file_name in own}
            rejected = worst(own_scores, quality.quantile)
            for file_name, record in own.items():
                line = _line(record, quality, scores[file_name])
                line |= {"kept": file_name not in rejected, "filter_quantile": quality.quantile}
                if last.get(file_name) != line:  # equal marks are not repeated
                    writer.write(line)
            judged[name] = (len(own) - len(rejected), len(own))
    return judged


def worst(scores: Mapping[str, float], quantile: float) -> set[str]:
    """The names with the lowest scores: the share `quantile`, in [0, 1), of all, rounded down.

    Among equal scores, the name that sorts first is worse. So the order of `scores` is irrelevant.
    """
    count = int(quantile * len(scores) + 1e-9)
    return set(sorted(scores, key=lambda name: (scores[name], name))[:count])


def _line(record: Mapping, quality: Filter, given: Mapping) -> dict:
    """The line of an image's `score` and its `scorer`; see `is_about`."""
    return {
        "file_name": record["file_name"],
        "score": given["score"],
        "filter": quality.kind,
        "scorer": given["scorer"],
        **{key: record[key] for key in CLASS_KEYS if key in record},
    }


def _read(folder: Path, identity: str, quality: Filter) -> tuple[list, dict, dict]:
    """Records of the images, lines with this filter's scores, and the last line about each image.

    Images that a safety checker has made black are left out.
    """
    records = [r for r in read_records(folder, identity) if not r.get("flagged")]
    by_name = {record["file_name"]: record for record in records}
    scores, last = {}, {}
    for line in read_lines(folder, identity):
        name = line.get("file_name")
        if "label" in line or name not in by_name or not is_about(line, by_name[name]):
            continue
        last[name] = line
        if is_called(quality.identity, line.get("scorer")):
            scores[name] = line
    return records, scores, last
