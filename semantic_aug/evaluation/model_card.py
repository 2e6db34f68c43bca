"""The README.md of an exported classifier: what it was trained on, how, and how good it is."""

import math
from collections.abc import Mapping
from pathlib import Path

from semantic_aug import counted
from semantic_aug.evaluation.results import ENOUGH, TEST, VALIDATION, read_results, summarise

Z = 1.959963984540054  # of the normal distribution, for 95 %


def wilson_interval(right: int, number: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `right` of `number` are known (Wilson 1927)."""
    share, extra = right / number, Z**2 / number
    middle = (share + extra / 2) / (1 + extra)
    half = Z / (1 + extra) * math.sqrt(share * (1 - share) / number + extra / (4 * number))
    return max(0.0, middle - half), min(1.0, middle + half)


def model_card(facts: Mapping, results: Path, kind: str, files: list[str]) -> str:
    """Markdown with the head that the Hugging Face hub reads.

    Args:
        facts: what config.json of the classifier says.
        results: the folder of results in which it lies.
        kind: the class of transformers.
        files: further files beside the model.
    """
    training, names = facts["training"], facts["class_names"]
    untrained = [name for name in names if name not in facts["trained_classes"]]
    synthetic = facts["synthetic_images"]
    shown = counted(len(facts["photos"]), "photo")
    shown += f", up to {facts['examples_per_class']} of each class"
    if synthetic:
        sets = ", ".join(training["aug_name"])
        shown += f", and {counted(synthetic, 'synthetic image')} made of them (set {sets})"
    part = {"none": "frozen: the linear head alone was trained"}.get(
        training["finetune"], f"trained with the head (--finetune {training['finetune']})"
    )
    height, width = facts["image_size"]
    backbone = facts["backbone"]
    if Path(backbone).is_absolute():  # a place on this machine tells others nothing
        backbone = Path(backbone).name
    lines = [
        "---", "library_name: transformers", "pipeline_tag: image-classification",
        "tags:", "- image-classification", "- few-shot", "---", "",
        f"# {counted(len(names), 'class')}: a few-shot image classifier", "",
        f"A `{kind}` of transformers. Photos in, one of these classes out: {', '.join(names)}.", "",
        "```python", "from transformers import pipeline", "",
        'classify = pipeline("image-classification", model="THIS FOLDER")',
        'classify("photo.jpg")', "```", "",
        "## What it was trained on", "",
        f"- {shown}.",
        f"- Backbone: {backbone} ({facts['backbone_identity']}), {part}.",
        f"- {training['num_epochs']} epochs of {training['iterations_per_epoch']} batches of "
        f"{training['batch_size']}, Adam, learning rate {training['learning_rate']:g}, random "
        f"augmentation: {', '.join(training['augmentation'])}.",
        f"- Method `{facts['method']}`, seed {facts['seed']}; epoch {facts['epoch']}, chosen as "
        f"{training['select']}.",
        *(f"- No training photo of {name}: never predicted." for name in untrained),
        *(["- Photos were cropped to their objects, with a margin of 16 pixels around the mask: "
           "crop yours in the same way."] if facts["crop_to_object"] else []),
        "", "## How good it is", "",
    ]  # fmt: skip
    lines += [_line(split, scores) for split, scores in facts["scores"].items()]
    expected = facts.get("expected")
    if expected:
        lines.append(
            f"- Expected on new photos like its own: {expected['accuracy']:.1%} right, mean over "
            f"classes (95 % interval {expected['low']:.1%} to {expected['high']:.1%}), by photos "
            "that were held out (BBC-CV: Tsamardinos et al. 2018)."
        )
    lines += (
        []
        if facts["scores"] or expected
        else ["- Nobody knows: there were no val and no test photos."]
    )
    lines += _over_trials(facts, results)
    if VALIDATION in facts["scores"]:
        lines.append(
            f"- Probabilities are calibrated: logits were divided by {facts['temperature']:g}, "
            "fitted on the val split (Guo et al. 2017); the head's weights have it in them."
        )
    elif expected:
        lines.append(
            f"- Probabilities are calibrated: logits were divided by {facts['temperature']:g}, "
            "fitted on photos while they were held out; the head's weights have it in them."
        )
    else:
        lines.append("- Probabilities are not calibrated: there were no val photos.")
    photos = "the photos of the test split" if TEST in facts["scores"] else "its training photos"
    lines += [
        "", "## What it was not tested on", "",
        f"Anything but {photos}: other cameras, light or places than theirs, objects of no class "
        "(it always names one of its classes), and photos with several objects. A low probability "
        "is no proof that an object is unknown.",
        "", "## Images", "",
        f"The image processor resizes photos to {width}x{height} pixels (width x height) without "
        "keeping their proportions, bicubic, as in training. The one that works on PIL images "
        "gives the pixels of training: "
        '`AutoImageProcessor.from_pretrained(folder, backend="pil")`. The one of torchvision '
        "resizes a little differently, and probabilities differ with it.",
        *(f"\n`{file}`: the same network for ONNX; `pixel_values` as the image processor makes "
          "them in, `logits` out." for file in files),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _line(split: str, scores: Mapping) -> str:
    number = scores["photos"]
    low, high = wilson_interval(round(scores["top1"] * number), number)
    return (
        f"- {split}: {scores['top1']:.1%} of {counted(number, 'photo')} right (95 % interval "
        f"{low:.1%} to {high:.1%}); mean over classes {scores['accuracy']:.1%}; macro F1 "
        f"{scores['macro_f1']:.1%}; calibration error {scores['ece_calibrated']:.3f}, "
        f"{scores['ece']:.3f} without the temperature."
    )


def _over_trials(facts: Mapping, results: Path) -> list[str]:
    """What other trials of the same method and number of examples reach, where there are some."""
    lines = []
    for row in summarise(read_results(results), facts["method"]):
        wanted = row["split"] == TEST and row["examples_per_class"] == facts["examples_per_class"]
        if wanted and row["num_trials"] > 1:
            reached = ", ".join(f"{value:.1%}" for value in row["values"].values())
            if row["num_trials"] >= ENOUGH:
                reached = f"{row['mean_accuracy']:.1%} (95 % interval of the mean "
                reached += f"{row['ci95_low']:.1%} to {row['ci95_high']:.1%})"
            lines.append(
                f"- Over {row['num_trials']} trials with other training photos, {TEST}: mean over "
                f"classes {reached}."
            )
    return lines
