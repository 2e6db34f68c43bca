"""A kept classifier as a folder that transformers opens without this package."""

import logging
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.cli.notices import RESULT
from semantic_aug.diffusion.loading import pick_device
from semantic_aug.evaluation.classifiers import read_classifier, read_facts
from semantic_aug.evaluation.exporting import (
    ONNX_FILE,
    check_onnx,
    to_transformers,
    write_onnx,
    write_transformers,
)
from semantic_aug.evaluation.model_card import model_card
from semantic_aug.experiment.files import atomic_folder, check_writable
from semantic_aug.settings.using import Exporting
from semantic_aug.stages.common import stage

log = logging.getLogger(__name__)


@stage(Exporting)
def export(classifier: str | Path, settings: Exporting, *, folder: str | Path) -> Path:
    """Write a classifier as a whole model of transformers: weights, classes, image processor, card.

    `pipeline("image-classification", model=FOLDER)` opens the model. The head includes the
    temperature, so the probabilities equal the probabilities of `predict`.

    Args:
        classifier: a folder `classifier_SEED_EXAMPLES`.
        folder: the model's folder, which is absent or empty.

    Returns:
        The folder.

    Raises:
        UserError: transformers has no classifier on this backbone with the same features; or
            another error that the user can fix.
    """
    source, target = Path(classifier), Path(folder)
    facts = read_facts(source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        what = "holds files" if target.is_dir() else "is a file"
        raise UserError(f"{target} {what}: expected a folder that is absent or empty")
    check_writable(target)
    if settings.onnx:
        check_onnx()
    device = pick_device(settings.device)
    found = read_classifier(source, device, settings.classifier_backbone)
    model = to_transformers(found)
    with atomic_folder(target) as temporary:
        write_transformers(temporary, model, found)
        files = []
        if settings.onnx:
            write_onnx(temporary / ONNX_FILE, model, found.backbone.image_size)
            files.append(ONNX_FILE)
        card = model_card(facts, source.parent, type(model).__name__, files)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    log.log(RESULT, "%s: a %s of transformers", target, type(model).__name__)
    return target
