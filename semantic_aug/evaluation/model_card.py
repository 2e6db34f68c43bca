"""The README.md of an exported classifier: its photos, training, scores and limitations."""

import math
from collections.abc import Mapping
from pathlib import Path

from semantic_aug import counted
from semantic_aug.evaluation.calibration import at_end
from semantic_aug.evaluation.results import ENOUGH, TEST, VALIDATION, read_results, summarise
from semantic_aug.settings.classification import BEST_VAL, FROZEN, SUPCON

Z = 1.959963984540054  # quantile of the normal distribution, for 95 % intervals


def wilson_interval(right: int, number: int) -> tuple[float, float]:
    """The 95 % confidence interval, in [0, 1], of the share `right / number` (Wilson 1927)."""
    share, extra = right / number, Z**2 / number
    middle = (share + extra / 2) / (1 + extra)
    half = Z / (1 + extra) * math.sqrt(share * (1 - share) / number + extra / (4 * number))
    return max(0.0, middle - half), min(1.0, middle + half)


def model_card(facts: Mapping, results: Path, kind: str, files: list[str]) -> str:
    """A model card in Markdown, with the metadata that the Hugging Face hub reads.

    Args:
        facts: the content of the classifier's config.json.
        results: the folder with the results of its method.
        kind: the model's class in transformers.
        files: names of ONNX files beside the model.
    """
    names, images = facts["class_names"], counted(len(facts["photos"]), "photo")
    size = "x".join(map(str, reversed(facts["image_size"])))
    return "\n".join([
        "---", "library_name: transformers", "pipeline_tag: image-classification",
        "tags:", "- image-classification", "- few-shot", "---", "",
        f"# Image classifier for {counted(len(names), 'class')}", "",
        f"This model says which of these classes a photo shows: {', '.join(names)}. It was trained "
        f"on {images}. It is a `{kind}` of transformers.", "",
        "## How to use it", "",
        "```python", "from transformers import pipeline", "",
        'classify = pipeline("image-classification", model="PATH OR NAME OF THIS MODEL")',
        'classify("photo.jpg")', "```", "",
        f"The image processor resizes a photo to {size} pixels (width x height) by bicubic "
        "interpolation and does not keep its proportions, as in training. If torchvision is "
        "installed, transformers resizes with torchvision, and probabilities differ slightly. For "
        'the pixels of training, use `AutoImageProcessor.from_pretrained(model, backend="pil")`.',
        *(f"\n`{file}` is the same network in ONNX. The image processor makes its input "
          "`pixel_values`; the softmax of its output `logits` gives probabilities."
          for file in files),
        *(["\nThe training photos were cropped to their objects: to the square around the mask, "
           "with a margin of 16 pixels. Crop your photos in the same way."]
          if facts["crop_to_object"] else []),
        "", "## Training", "", *_training(facts),
        "", "## Evaluation", "", *_evaluation(facts), *_over_trials(facts, results),
        *_calibration(facts),
        "", "## Limitations", "", *_limitations(facts),
    ]) + "\n"  # fmt: skip


def _training(facts: Mapping) -> list[str]:
    training = facts["training"]
    lines = [
        f"- Photos: {counted(len(facts['photos']), 'photo')}, up to {facts['examples_per_class']} "
        "of each class."
    ]
    if synthetic := facts["synthetic_images"]:
        sets = ", ".join(training["aug_name"])
        lines.append(f"- Synthetic images: {synthetic}, generated from these photos (set {sets}).")
    backbone = facts["backbone"]
    if Path(backbone).is_absolute() or "backbone_places" in facts:
        backbone = Path(backbone).name  # a path on this machine tells others nothing
    start = "trained from random weights" if facts["from_scratch"] else "fine-tuned"
    stage = "together with the head"
    if training.get("objective") == SUPCON:
        stage = "by supervised contrastive learning (Khosla et al. 2020), before the head"
    how = f"{start} {stage} (--finetune {training['finetune']})"
    if training["finetune"] == FROZEN:
        how = "frozen; only the linear head was trained"
    lines.append(f"- Backbone: {backbone} ({facts['backbone_identity']}), {how}.")
    chosen = "the last epoch"
    if training["select"] == BEST_VAL:
        chosen = f"epoch {facts['epoch'] + 1}, which had the best validation accuracy"
    return [
        *lines,
        f"- Head: {counted(training['num_epochs'], 'epoch')} of "
        f"{training['iterations_per_epoch']} batches of "
        f"{counted(training['batch_size'], 'image')}, with Adam, learning rate "
        f"{training['learning_rate']:g}, and random augmentation "
        f"({', '.join(training['augmentation'])}). The weights are from {chosen}.",
        f"- Name of the method: `{facts['method']}`; seed: {facts['seed']}.",
    ]


def _evaluation(facts: Mapping) -> list[str]:
    lines = [_line(split, scores) for split, scores in facts["scores"].items()]
    if expected := facts.get("expected"):
        lines.append(
            f"- Expected on new photos like the training photos: mean accuracy over classes "
            f"{expected['accuracy']:.1%} (95% confidence interval {expected['low']:.1%} to "
            f"{expected['high']:.1%}), estimated by cross-validation (BBC-CV, Tsamardinos et al. "
            "2018)."
        )
    return lines or ["- Not evaluated: there were no validation photos and no test photos."]


def _calibration(facts: Mapping) -> list[str]:
    held_out = VALIDATION in facts["scores"]
    if not held_out and not facts.get("expected"):
        return ["- The probabilities are not calibrated: there were no validation photos."]
    if at_end(facts["temperature"]):
        return ["- The probabilities are not calibrated: no temperature fits the photos."]
    photos = "validation photos" if held_out else "training photos, held out by cross-validation"
    return [
        f"- The probabilities are calibrated by temperature scaling (Guo et al. 2017) on the "
        f"{photos}. The temperature, {facts['temperature']:g}, is part of the head's weights."
    ]


def _limitations(facts: Mapping) -> list[str]:
    untrained = [name for name in facts["class_names"] if name not in facts["trained_classes"]]
    photos = "test photos" if TEST in facts["scores"] else "training photos"
    return [
        *(f"- The class {name} had no training photo and is never predicted."
          for name in untrained),
        f"- It was not tested on photos that differ from the {photos} in camera, light or "
        "background, nor on photos that show several objects.",
        "- It always predicts one of its classes, even for an object that belongs to none of them. "
        "A low probability does not reliably mark such an object.",
    ]  # fmt: skip


def _line(split: str, scores: Mapping) -> str:
    number = scores["photos"]
    low, high = wilson_interval(round(scores["top1"] * number), number)
    return (
        f"- {split}: {scores['top1']:.1%} of {counted(number, 'photo')} right (95% confidence "
        f"interval {low:.1%} to {high:.1%}); mean accuracy over classes {scores['accuracy']:.1%}; "
        f"macro F1 {scores['macro_f1']:.1%}; expected calibration error "
        f"{scores['ece_calibrated']:.3f}, {scores['ece']:.3f} before temperature scaling."
    )


def _over_trials(facts: Mapping, results: Path) -> list[str]:
    """The accuracy over all trials of the method with this number of examples, if several."""
    lines = []
    for row in summarise(read_results(results), facts["method"]):
        wanted = row["split"] == TEST and row["examples_per_class"] == facts["examples_per_class"]
        if wanted and row["num_trials"] > 1:
            reached = ", ".join(f"{value:.1%}" for value in row["values"].values())
            if row["num_trials"] >= ENOUGH:
                reached = f"{row['mean_accuracy']:.1%} (95% confidence interval of the mean "
                reached += f"{row['ci95_low']:.1%} to {row['ci95_high']:.1%})"
            lines.append(
                f"- {TEST}, in {row['num_trials']} trials that differ in their training photos: "
                f"mean accuracy over classes {reached}."
            )
    return lines
