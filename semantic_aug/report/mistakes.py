"""A page of mistakes: the most confidently misclassified val photos, and their nearest neighbours.

Nearest by the features of the classifier's backbone, which the head sees. So the page shows which
photos and variants have taught the classifier its answer.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from semantic_aug import UserError, counted
from semantic_aug.evaluation.classifiers import Classifier
from semantic_aug.evaluation.features import cached_features
from semantic_aug.evaluation.pictures import Images
from semantic_aug.experiment.files import write_text
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.images.reading import read_image
from semantic_aug.report.page import PHOTO, VARIANT, data_uri, filled, to_webp

MOST = 24  # mistakes on a page
PHOTOS, VARIANTS = 4, 8  # number of nearest photos and variants


@dataclass(frozen=True)
class Near:
    """A training picture, and its likeness.

    Attributes:
        likeness: cosine of the angle between the features, 1 for equal features.
    """

    likeness: float
    number: int


@dataclass(frozen=True)
class Mistake:
    """A misclassified val photo.

    Attributes:
        index: of the photo.
        answer, probability: label and probability of the likeliest class.
        true_probability: of the photo's class.
        photos, variants: the nearest training pictures, nearest first.
    """

    index: int
    answer: int
    probability: float
    true_probability: float
    photos: list[Near]
    variants: list[Near]


def find_mistakes(
    classifier: Classifier,
    validation: FewShotDataset,
    train: FewShotDataset,
    indices: Sequence[int],
    variants: Sequence[Path],
    cache: Path | None = None,
) -> tuple[list[Mistake], int, int]:
    """The most confident mistakes, the number of all mistakes, and the number of val photos.

    Args:
        train: the photos of the trial; the classifier was trained on `indices`.
        variants: files of their variants.
        cache: folder of the features of a frozen backbone.

    Raises:
        UserError: the classifier belongs to other photos; or a training picture cannot be read.
    """
    facts, backbone = classifier.facts, classifier.backbone
    names = list(validation.class_names)
    if names != classifier.class_names or validation.crop_to_object != facts["crop_to_object"]:
        raise UserError(
            "--mistakes: the classifier was trained on other classes or other crops: give the same "
            "--dataset, --data_dir and --crop_to_object as in training"
        )

    def features(dataset, items, title) -> tuple[torch.Tensor, torch.Tensor]:
        images = Images(dataset, items, backbone.image_size)
        found, read = cached_features(backbone, images, title, cache)
        return found.cpu(), read

    trained = {names.index(name) for name in facts["trained_classes"]}
    photos = [n for n in validation.indices() if validation.get_label_by_idx(n) in trained]
    found, read = features(validation, photos, "val features")
    photos = [n for n, good in zip(photos, read.tolist()) if good]
    labels = torch.tensor([validation.get_label_by_idx(n) for n in photos], dtype=torch.long)
    probabilities = classifier.probabilities(found.to(backbone.device))
    confidence, answers = probabilities.max(dim=1)
    rows = (answers != labels).nonzero().flatten()
    rows = rows[confidence[rows].argsort(descending=True, stable=True)]
    near = [
        _nearest(found[rows[:MOST]], *features(train, items, title), most)
        for items, title, most in (
            (list(indices), "train features", PHOTOS),
            (list(variants), "variants", VARIANTS),
        )
    ]
    mistakes = [
        Mistake(
            photos[row],
            int(answers[row]),
            float(confidence[row]),
            float(probabilities[row, labels[row]]),
            *of_photo,
        )
        for row, *of_photo in zip(rows[:MOST].tolist(), *near)
    ]
    return mistakes, len(rows), len(photos)


def _nearest(queries, found, read, most: int) -> list[list[Near]]:
    """The nearest pictures of each query, nearest first."""
    numbers = read.nonzero().flatten()
    likeness = torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(found).T
    order = likeness.argsort(dim=1, descending=True, stable=True)[:, :most]
    return [
        [Near(float(likeness[row, n]), int(numbers[n])) for n in of_query.tolist()]
        for row, of_query in enumerate(order)
    ]


def write_mistakes(
    path: Path,
    title: str,
    classifier: Classifier,
    validation: FewShotDataset,
    train: FewShotDataset,
    indices: Sequence[int],
    folders: Mapping[str, Path],
    variants: Mapping[str, Mapping[int, Sequence[dict]]],
    cache: Path | None = None,
) -> None:
    """Write the page of mistakes, with all pictures in it.

    Args:
        folders, variants: see `write_page`; at least of the sets from which the classifier learned.
            Other sets and photos are not shown.

    Raises:
        UserError: as `find_mistakes`.
    """
    known, training = classifier.facts["photos"], classifier.facts["training"]
    indices = [idx for idx in indices if train.sources()[idx] in known]
    sets, most = training["aug_name"] or [], training["num_synthetic"] or math.inf
    made = [(name, folders[name] / record["file_name"], record["class_name"])
            for name in sets for idx in indices
            for record in variants[name][idx] if record["repeat"] < most]  # fmt: skip
    mistakes, number, total = find_mistakes(
        classifier, validation, train, indices, [file for _, file, _ in made], cache
    )
    names = classifier.class_names
    sources, train_sources = validation.sources(), train.sources()

    def picture(image, side: int, name: str, likeness: float, about: str, of: Mistake) -> str:
        true = names[validation.get_label_by_idx(of.index)]
        kind = {true: "right", names[of.answer]: "wrong"}.get(name, "soft")
        return (
            f'<figure><img src="{data_uri(to_webp(image, side))}" alt="" title="{_text(about)}">'
            f'<figcaption><span class="{kind}">{_text(name)}</span> {likeness:.2f}</figcaption>'
            "</figure>"
        )

    def row(each: Mistake) -> str:
        true = names[validation.get_label_by_idx(each.index)]
        photos = "".join(
            picture(
                train.get_image_by_idx(indices[near.number]), VARIANT,
                names[train.get_label_by_idx(indices[near.number])], near.likeness,
                train_sources[indices[near.number]], each,
            )
            for near in each.photos
        )  # fmt: skip
        images = "".join(
            picture(read_image(file), VARIANT, name, near.likeness, f"{kind}: {file.name}", each)
            for near in each.variants
            for kind, file, name in [made[near.number]]
        )
        shown = data_uri(to_webp(validation.get_image_by_idx(each.index), PHOTO))
        return (
            f'<section class="mistake"><figure><img src="{shown}" alt="">'
            f'<h2>Taken for <span class="wrong">{_text(names[each.answer])}</span> '
            f"({each.probability:.0%})</h2>"
            f'<p>It is <span class="right">{_text(true)}</span> ({each.true_probability:.0%})</p>'
            f'<p class="soft">{_text(sources[each.index])}</p></figure><div class="near">'
            f'<div><h3>Nearest training photos</h3><div class="grid">{photos}</div></div>'
            + (
                f'<div><h3>Nearest variants</h3><div class="grid">{images}</div></div>'
                if made
                else ""
            )
            + "</div></section>"
        )

    which = "All are shown" if number <= MOST else f"The {MOST} most confident mistakes are shown"
    intro = (
        f"<p>{number} of {counted(total, 'val photo')} {'is' if number == 1 else 'are'} taken for "
        f"another class. {which}, most confident first. Beside each photo are the training photos "
        "and variants that are nearest to it by the features that the classifier sees. The number "
        "is the cosine of the angle between the features (1: equal). Test photos are not shown, "
        "since nothing is chosen on them.</p>"
        '<p>Names of classes: <span class="wrong">red</span> is the class that the photo is taken '
        'for, <span class="right">green</span> is its own class.</p>'
    )
    rows = "\n".join(map(row, mistakes))
    write_text(path, filled("mistakes.html", title, INTRO=intro, MISTAKES=rows))


def _text(text: str) -> str:
    return html.escape(text, quote=True)
