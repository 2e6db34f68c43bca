"""Predicting the classes of photos with classifiers that train_classifier.py has kept."""

import functools
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from semantic_aug import UserError, counted
from semantic_aug.diffusion.loading import pick_device
from semantic_aug.evaluation.backbone import load_backbone
from semantic_aug.evaluation.classifiers import Classifier, read_classifier, read_facts
from semantic_aug.evaluation.features import cached_features
from semantic_aug.evaluation.metrics import Evaluation, evaluation
from semantic_aug.evaluation.pictures import Images
from semantic_aug.evaluation.results import WHOLE_SPLIT, write_table
from semantic_aug.experiment.files import write_text
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.images.masks import say_empty
from semantic_aug.settings.using import Predicting
from semantic_aug.stages.common import in_words_of_python, stage
from semantic_aug.stages.predicted_photos import labels_of, photos_in

UNSURE = "unsure"

log = logging.getLogger(__name__)


@stage(Predicting)
def predict(classifier: str | Path | list | tuple, settings: Predicting, *, photos) -> pd.DataFrame:
    """Predict the classes of photos; several classifiers average their probabilities.

    Args:
        classifier: a folder `classifier_SEED_EXAMPLES`, or several.
        photos: image files, folders and globs, one or several; with `labelled`, one folder of
            class folders.

    Returns:
        A row for each photo that can be read: `photo`, `class`, `probability`, and for the next
        classes `class_2`, `probability_2` and so on up to `top_k`. With `min_probability`, the
        class may be `unsure`, and `likeliest` has the most probable class. With `labelled`, the
        table also has `true`, and `attrs` have `evaluation`, an `Evaluation`, and `class_names`.

    Raises:
        UserError: an error that the user can fix.
    """
    folders = [Path(each) for each in _several(classifier)]
    facts = common_facts(folders)
    files = [Path(file).absolute() for file in (settings.csv, settings.json) if file]
    for file in files:
        if not file.parent.is_dir() or file.is_dir():
            why = "it is a folder" if file.is_dir() else "its folder is not there"
            raise UserError(f"{file} cannot be written: {why}")
    if len({*files}) < len(files):
        raise UserError(f"--csv and --json: got {settings.csv} for both, expected a file for each")
    dataset = photos_in(_several(photos), facts, settings.labelled, settings.mask_dir)
    rows, labels = [*range(len(dataset))], torch.empty(0)
    if settings.labelled:
        rows, labels = known_photos(dataset, facts)
    classifiers = load_all(folders, settings)
    probabilities, logits, read = answers(classifiers, dataset, rows, settings.num_workers)
    if not read.any():
        raise UserError(f"{counted(len(rows), 'photo')} given, and none of them can be read")
    if not read.all():
        which = "have no mask, or cannot be read" if dataset.crop_to_object else "cannot be read"
        log.warning("%d of %d photos %s: left out", int((~read).sum()), len(rows), which)
    say_empty([dataset.sources()[row] for row in sorted(dataset.uncut)], len(rows))
    rows = [row for row, good in zip(rows, read.tolist()) if good]
    table = table_of(probabilities, facts["class_names"], settings)
    sources = dataset.sources()
    table.insert(0, "photo", [sources[row] for row in rows])
    if settings.labelled:
        labels = labels[read]
        table.insert(1, "true", [facts["class_names"][label] for label in labels.tolist()])
        table.attrs["evaluation"] = evaluation(logits, labels)
        say_trained_on(dataset, rows, facts)
    else:
        place = {record.source: number for number, record in enumerate(dataset.listed)}
        table = table.sort_values("photo", key=lambda column: column.map(place), ignore_index=True)
    table.attrs["class_names"] = facts["class_names"]
    if settings.csv:
        write_table(Path(settings.csv), table)
    if settings.json:
        write_json(Path(settings.json), folders, table)
    return table


def _several(given) -> list:
    return [given] if isinstance(given, str | Path) else list(given)


def load_classifier(
    path: str | Path, *, classifier_backbone: str | None = None, device: str | None = None
) -> Classifier:
    """A classifier that `train_classifier` has kept, as a function of PIL images.

        classifier = load_classifier("output/EXP/results/METHOD/classifier_0_4")
        classifier([image])          # [1, num_classes] probabilities
        classifier.predict(["a.jpg"])  # names of classes

    Args:
        path: the classifier's folder.
        classifier_backbone: the backbone's present place; default the place in training.
        device: such as `cuda`; default the best available device.

    Raises:
        UserError: the classifier or its backbone is missing, or the backbone has changed.
    """
    with in_words_of_python():
        return read_classifier(Path(path), pick_device(device), classifier_backbone)


# --- classifiers -----------------------------------------------------------------------------


def common_facts(folders: Sequence[Path]) -> dict:
    """The shared facts of these classifiers: `read_facts`, with the training photos of all.

    Raises:
        UserError: the classifiers do not fit together, or there is no classifier.
    """
    if not folders:
        raise UserError("no classifier is given: name a folder classifier_SEED_EXAMPLES of results")
    first, *others = map(read_facts, folders)
    for key, what in _ALIKE.items():
        for folder, each in zip(folders[1:], others):
            if each[key] != first[key]:
                how = differing(first[key], each[key])
                raise UserError(
                    f"{folder} has other {what} than {folders[0]}: {how}; classifiers are averaged "
                    "where they were trained on the same dataset"
                )
    facts = dict(first)
    for each in others:
        facts["photos"] = facts["photos"] | each["photos"]
    return facts


_ALIKE = {
    "class_names": "classes",
    "trained_classes": "trained classes",
    "crop_to_object": "crops",
    "bits": "bits",
}


def differing(first, other) -> str:
    """The difference of two classifiers, in a few words."""
    if isinstance(first, list):
        only = [sorted({*a} - {*b}) for a, b in ((first, other), (other, first))]
        if not any(only):
            return "the same in another order"
        first, other = (", ".join(names[:3]) or "no other" for names in only)
    return f"there {first}, here {other}"


def load_all(folders: Sequence[Path], settings: Predicting) -> list[Classifier]:
    """The classifiers; a shared frozen backbone is loaded once."""
    load, device = functools.cache(load_backbone), pick_device(settings.device)
    backbone = settings.classifier_backbone
    return [read_classifier(folder, device, backbone, load) for folder in folders]


def answers(
    classifiers: Sequence[Classifier], dataset: FewShotDataset, rows: list[int], workers: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities and logits [M, num_classes] of M readable photos, and which of N are readable.

    A single classifier gives the logits that results are computed from; several classifiers give
    the logarithm of their mean probability.
    """
    features: dict = {}
    each = []
    for classifier in classifiers:
        backbone = classifier.backbone
        key = id(backbone.model), backbone.image_size
        if key not in features:
            images = Images(dataset, rows, backbone.image_size, 0, workers)
            features[key] = cached_features(backbone, images, "photos")
        each.append(features[key])
    read = each[0][1]
    probabilities = torch.stack(
        [c.probabilities(found).double() for c, (found, _) in zip(classifiers, each)]
    ).mean(dim=0)
    if len(classifiers) == 1:
        return probabilities, classifiers[0].logits(each[0][0]).cpu(), read
    return probabilities, probabilities.log(), read


# --- photos with labels ----------------------------------------------------------------------


def known_photos(dataset: FewShotDataset, facts: Mapping) -> tuple[list[int], torch.Tensor]:
    """The photos of trained classes, and their labels; other photos are counted."""
    names, trained = facts["class_names"], set(facts["trained_classes"])
    labels = labels_of(dataset, names)
    rows = [n for n, each in enumerate(labels) if each is not None and names[each] in trained]
    if len(rows) < len(labels):
        without = Counter(
            dataset.class_names[dataset.get_label_by_idx(n)]
            for n in {*range(len(labels))} - {*rows}
        )
        log.warning(
            "left out, because the classifier was not trained on their classes: %s of %s",
            counted(without.total(), "photo"),
            ", ".join(sorted(without)),
        )
    if not rows:
        raise UserError("--labelled: no photo is of a class that the classifier was trained on")
    return rows, torch.tensor([labels[row] for row in rows])


def say_trained_on(dataset: FewShotDataset, rows: Sequence[int], facts: Mapping) -> None:
    """Log which photos the classifiers were trained on."""
    trained = {each for each in facts["photos"].values() if not each.startswith("unreadable")}
    contents = dataset.content_digests(rows)
    shared = [dataset.sources()[row] for row, each in zip(rows, contents) if each in trained]
    if shared:
        log.warning(
            "%d of %d photos are training photos of the classifier, such as %s: these "
            "numbers say little about new photos",
            len(shared), len(rows), shared[0],
        )  # fmt: skip


# --- tables ----------------------------------------------------------------------------------


def table_of(
    probabilities: torch.Tensor, class_names: Sequence[str], settings: Predicting
) -> pd.DataFrame:
    """The most probable classes of each row, and their probabilities; ties keep class order."""
    order = probabilities.argsort(dim=1, descending=True, stable=True)[:, : settings.top_k]
    found = probabilities.gather(1, order)
    columns: dict[str, list] = {}
    for rank in range(order.shape[1]):
        ending = f"_{rank + 1}" if rank else ""
        columns[f"class{ending}"] = [class_names[label] for label in order[:, rank].tolist()]
        columns[f"probability{ending}"] = found[:, rank].tolist()
    table = pd.DataFrame(columns)
    if settings.min_probability > 0:
        table["likeliest"] = table["class"]
        table.loc[table["probability"] < settings.min_probability, "class"] = UNSURE
    return table


def scores_of(found: Evaluation) -> dict[str, float]:
    """The scores of labelled photos, by their names in results."""
    whole = {metric: getattr(found, name) for metric, name in WHOLE_SPLIT.items()}
    return {"Loss": found.mean_loss, "Accuracy": found.mean_accuracy} | whole


def write_json(path: Path, folders: Sequence[Path], table: pd.DataFrame) -> None:
    """Write the table as a list of photos, with the classifiers, and with scores if labelled."""
    content: dict = {"classifiers": list(map(str, folders))}
    if "evaluation" in table.attrs:
        content["scores"] = scores_of(table.attrs["evaluation"])
    content["photos"] = table.to_dict(orient="records")
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
