"""The results of `fit`: the choice, the expected accuracy, the classifier, tables, the page."""

import dataclasses
import json
import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from semantic_aug import counted
from semantic_aug.evaluation.backbone import Backbone
from semantic_aug.evaluation.calibration import fit_temperature, say_at_end
from semantic_aug.evaluation.choosing import Gain, Judged, Promise, choose, gain, promise, scores_of
from semantic_aug.evaluation.classifiers import write_classifier
from semantic_aug.evaluation.fold_heads import train_heads
from semantic_aug.evaluation.pictures import Images
from semantic_aug.evaluation.results import write_table
from semantic_aug.evaluation.sampling import Examples
from semantic_aug.evaluation.training import TrainedTrial
from semantic_aug.experiment.files import remove_folder, write_text
from semantic_aug.experiment.names import FIT
from semantic_aug.report.fit_page import write_fit_page
from semantic_aug.settings.classification import RANDAUGMENT, Classification
from semantic_aug.settings.fitting import Fitting
from semantic_aug.stages.export import export
from semantic_aug.stages.fitting_photos import RESULT_FILE, Photos
from semantic_aug.stages.fitting_scores import (
    PHOTO_VIEWS,
    Tried,
    held_out_logits,
    judged_of,
    options_of,
    whole_fold,
)
from semantic_aug.stages.kept_classifiers import classifier_facts

CLASSIFIER, EXPORTED = "classifier", "exported"
TOLD_WRONG = 12  # photos on the page

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """The results of `fit`.

    Attributes:
        folder: the folder of all results.
        classifier: the folder of the classifier, for `predict` and `load_classifier`.
        chosen: the name of the chosen candidate, which the classifier was trained with.
        accuracy, low, high: expected accuracy on new photos like the given photos, mean over
            classes in [0, 1], with its 95 % interval.
        elsewhere: the same where objects stand on places of other classes; nan if unknown.
        why: two sentences on the choice, and a sentence on photos from elsewhere.
        table: a row for each candidate that was tried, the simplest first.
        left_out: why the other candidates were not tried, by name.
        notes: what the user should know about the photos.
    """

    folder: Path
    classifier: Path
    chosen: str
    accuracy: float
    low: float
    high: float
    elsewhere: float
    why: str
    table: pd.DataFrame
    left_out: Mapping[str, str]
    notes: Sequence[str]


def write_result(
    experiment: Path, photos: Photos, settings: Fitting, backbone: Backbone, tried: Sequence[Tried],
    left_out: Mapping[str, str],
) -> Fitted:  # fmt: skip
    """Choose, train on all photos, and write everything to output/NAME/fit/."""
    near, far = judged_of([each.judgement for each in tried], photos)
    scores = scores_of(near, far)
    number = choose(scores, photos.ratio)
    promised = promise(near, photos.units, photos.ratio, far, settings.seed)
    table = table_of(tried, near, far, scores, photos.ratio, number, promised)
    why = reasons(tried, scores, photos, number, promised)
    folder = experiment / FIT
    remove_folder(folder / EXPORTED)  # of the last classifier
    facts = write_last(folder / CLASSIFIER, tried[number], photos, settings, backbone, promised)
    result = Fitted(
        folder, folder / CLASSIFIER, tried[number].method.name, promised.accuracy, promised.low,
        promised.high, promised.elsewhere, why, table, dict(left_out), photos.notes,
    )  # fmt: skip
    write_table(folder / "candidates.csv", table)
    wrong = wrong_of(near, tried[number], photos, number)
    write_table(folder / "held_out.csv", wrong)
    content = content_of(result, photos, facts)
    write_text(folder / RESULT_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    show = wrong[wrong["right"] < 0.5].head(TOLD_WRONG)
    sources = {source: idx for idx, source in enumerate(photos.dataset.sources())}
    write_fit_page(
        folder / "fit.html", experiment.name, content | {"predict": predict_line(result)},
        [dict(row) | {"image": photos.dataset.get_image_by_idx(sources[row["photo"]])}
         for row in show.to_dict(orient="records")],
    )  # fmt: skip
    if settings.export:
        export(
            result.classifier, classifier_backbone=settings.classifier_backbone,
            device=settings.device, folder=folder / EXPORTED,
        )  # fmt: skip
    return result


def write_last(
    path: Path, tried: Tried, photos: Photos, settings: Fitting, backbone: Backbone,
    promised: Promise,
) -> dict:  # fmt: skip
    """Train on all photos, and keep the classifier; return the content of its config.json."""
    options = options_of(settings)
    (head,) = train_heads(tried.material, [whole_fold(photos)], options, settings.seed)
    learned = tried.material.learned_from(whole_fold(photos))
    training = Classification(
        aug_name=tuple(dict.fromkeys(made.folder.parent.name for made in tried.sets)) or ("aug",),
        num_synthetic=max((made.number for made in tried.sets), default=0),
        classifier_backbone=settings.classifier_backbone,
        num_epochs=options.num_epochs,
        iterations_per_epoch=options.iterations_per_epoch,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        class_balanced=options.class_balanced,
        augmentation=tried.method.augmentation,
        views=PHOTO_VIEWS,
    )
    images = Images(photos.dataset, [], backbone.image_size)
    examples = Examples(images, learned.labels, learned.first_variant, learned.num_variants)
    facts = classifier_facts(
        tried.method.name, photos.trial, training, backbone, examples, TrainedTrial(head, [], 0)
    )
    facts |= {
        "temperature": temperature_of(*held_out_logits(tried.judgement, photos)),
        "scores": {},
        "expected": expected_of(promised),
    }
    write_classifier(path, backbone, head, facts)
    return facts


def temperature_of(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature, fitted on held-out photos, in the folds with the most classes."""
    known = logits.isfinite()
    whole = (known == known.any(dim=0)).all(dim=1)
    found = fit_temperature(logits[whole], labels[whole]) if whole.any() else 1.0
    say_at_end("the classifier", found)
    return found


def expected_of(promised: Promise) -> dict:
    """The promise in JSON types, where nan is null."""
    found = {name: getattr(promised, name) for name in ("accuracy", "low", "high", "elsewhere")}
    return {name: None if math.isnan(value) else round(value, 6) for name, value in found.items()}


# --- tables ----------------------------------------------------------------------------------


def table_of(
    tried: Sequence[Tried], near: Judged, far: Judged | None, scores: np.ndarray, ratio: float,
    chosen: int, promised: Promise,
) -> pd.DataFrame:  # fmt: skip
    """A row for each candidate: its accuracy, and its gains over the two simplest candidates."""
    names = [each.method.name for each in tried]
    right, away = near.accuracy(), np.full(len(tried), np.nan) if far is None else far.accuracy()
    rows = []
    for n, each in enumerate(tried):
        row = {
            "candidate": each.method.name,
            "what": each.method.what,
            "images": 0 if each.material.variants is None else len(each.material.variants),
            "accuracy": right[n],
            "elsewhere": away[n],
            "score": float(np.nanmean(scores[:, n])),
            "score_error": gain(scores[:, n], np.zeros(len(scores)), ratio).error,
        }
        for other in (names[0], RANDAUGMENT):
            over = gains(scores, n, names.index(other), ratio) if other in names else None
            over = None if other == each.method.name else over
            row |= {f"over_{other}": over.mean if over else np.nan}
            row |= {f"over_{other}_error": over.error if over else np.nan}
            low, high = over.interval if over else (np.nan, np.nan)
            row |= {f"over_{other}_low": low, f"over_{other}_high": high}
        rows.append(row | {"chosen": n == chosen, "chosen_in_samples": promised.shares[n]})
    return pd.DataFrame(rows)


def gains(scores: np.ndarray, candidate: int, other: int, ratio: float) -> Gain:
    return gain(scores[:, candidate], scores[:, other], ratio)


def wrong_of(near: Judged, tried: Tried, photos: Photos, number: int) -> pd.DataFrame:
    """Each held-out photo, how often the chosen candidate classified it correctly, and the wrong
    answers. Photos with the lowest accuracy come first."""
    names, sources = photos.dataset.class_names, photos.dataset.sources()
    told = np.where(np.isnan(tried.judgement.logits), -np.inf, tried.judgement.logits).argmax(2)
    rows = []
    for idx, source in enumerate(sources):
        hits = near.hits[idx, :, number]
        there = np.isfinite(hits)
        if there.any():
            wrong = [names[label] for label in told[idx][there] if label != near.labels[idx]]
            most = max(sorted(set(wrong)), key=wrong.count, default="")
            rows.append((source, names[near.labels[idx]], float(hits[there].mean()), most))
    table = pd.DataFrame(rows, columns=["photo", "class", "right", "taken_for"])
    return table.sort_values(["right", "photo"], ignore_index=True)


# --- words -----------------------------------------------------------------------------------


def reasons(
    tried: Sequence[Tried], scores: np.ndarray, photos: Photos, chosen: int, promised: Promise
) -> str:
    """Why this candidate was chosen, its expected accuracy, and what is unknown."""
    held = len({idx for fold in photos.folds for idx in fold.held_out})
    repeats, folds = ({getattr(f, n) for f in photos.folds} for n in ("repeat", "number"))
    by = "the split val"
    if not photos.val:
        by = f"{len(folds)} folds, repeated {counted(len(repeats), 'time')}"
    return " ".join(
        [
            why_chosen(tried, scores, photos.ratio, chosen),
            f"Expect {promised.accuracy:.0%} right answers on new photos "
            f"{'like photos in val' if photos.val else 'of the same things at the same places'} "
            f"(95 % interval {promised.low:.0%} to {promised.high:.0%}; mean over "
            f"classes, from {counted(held, 'photo')} held out in {by}, with the choice repeated).",
            beyond(promised),
        ]
    )


def why_chosen(tried: Sequence[Tried], scores: np.ndarray, ratio: float, chosen: int) -> str:
    over = [gains(scores, n, 0, ratio) for n in range(len(tried))]
    if len(tried) == 1:
        return "The classifier learned from the photos alone, because nothing else was tried."
    if chosen == 0:
        best = max(range(1, len(tried)), key=lambda n: (over[n].mean, -n))
        others = f"the best of {len(tried) - 1} other" if len(tried) > 2 else "the only other"
        return (
            f"The classifier learned from the photos alone, because nothing else clearly helps: "
            f"{others} candidate{'s' * (len(tried) > 2)}, {tried[best].method.what}, brings "
            f"{points(over[best])} over them."
        )
    found = f"Chosen: {tried[chosen].method.what}. It brings {points(over[chosen])} over the photos"
    found += " alone"
    names = [each.method.name for each in tried]
    if RANDAUGMENT in names[:chosen]:
        found += (
            f", and {points(gains(scores, chosen, names.index(RANDAUGMENT), ratio))} over "
            "RandAugment"
        )
    return (
        f"{found}. It is the simplest candidate that gains more than a standard error over the "
        "photos alone, and that no other candidate beats by as much."
    )


def points(found: Gain) -> str:
    """`+3.1 points (standard error 1.2)`."""
    if math.isinf(found.error):
        return f"{100 * found.mean:+.1f} points (in a single fold)"
    mean, error = 100 * found.mean, 100 * found.error
    digits = 2 if f"{abs(mean):.1f}" == f"{error:.1f}" != "0.0" else 1  # equal, if rounded
    return f"{mean:+.{digits}f} points (standard error {error:.{digits}f})"


def beyond(promised: Promise) -> str:
    """A sentence on photos from elsewhere."""
    if math.isnan(promised.elsewhere):
        return "Photos from elsewhere may do worse; without masks, by how much is unknown."
    return (
        f"Photos from elsewhere may do worse: with their objects on places of other classes, "
        f"{promised.elsewhere:.0%} are right."
    )


def predict_line(result: Fitted) -> str:
    """The command that uses the classifier, to be pasted."""
    return shlex.join(["semantic-aug", "predict", str(result.classifier)]) + " PHOTOS"


def content_of(result: Fitted, photos: Photos, facts: Mapping) -> dict:
    """fit.json, in JSON types."""
    rows = json.loads(result.table.to_json(orient="records", double_precision=7))
    return {
        "chosen": result.chosen,
        "expected": facts["expected"],
        "why": result.why,
        "classifier": str(result.classifier),
        "candidates": rows,
        "left_out": dict(result.left_out),
        "notes": list(result.notes),
        "photos": len(photos.labels),
        "classes": list(photos.dataset.class_names),
        "folds": len(photos.folds),
        "judged_by": "val" if photos.val else "folds",
        "temperature": facts["temperature"],
        "training": facts["training"],
        "backbone": facts["backbone"],
    }
