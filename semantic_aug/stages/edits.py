"""From flags to edits: what is done to a photo, in which prompts, and what that needs."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from semantic_aug import UserError, stable_hash
from semantic_aug.augmentations import AUGMENTATIONS, augmentation_class, augmentation_name
from semantic_aug.augmentations.compose import check_probs
from semantic_aug.augmentations.paste import images_in
from semantic_aug.augmentations.places import read_places
from semantic_aug.augmentations.sdedit import check_guidance_scale, check_prompt, check_strength
from semantic_aug.experiment.digests import file_digests
from semantic_aug.generative_augmentation import GenerativeAugmentation
from semantic_aug.settings import fields_of
from semantic_aug.settings.common import Run
from semantic_aug.settings.generation import (
    DEFAULT_PROMPT,
    GENERATED,
    PHOTOS,
    Generation,
    Surroundings,
)

log = logging.getLogger(__name__)
EDIT_FLAGS = ("aug", "strength", "guidance_scale", "mask", "inverted")
# What means something with these --backgrounds alone.
REQUIRED = {"places": (GENERATED,), "num_places": (GENERATED,), "places_from": (GENERATED,)}


def read_prompts(prompts: Iterable[str]) -> list[str]:
    """The prompts given, with the lines of a text file in place of its name."""
    found = []
    for prompt in prompts:
        if not prompt.endswith(".txt"):
            found.append(prompt)
            continue
        try:
            lines = Path(prompt).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UserError(f"--prompt: cannot read {prompt}: {reason}") from None
        found += [line.strip() for line in lines if line.strip()]
        if not any(line.strip() for line in lines):
            raise UserError(f"--prompt: {prompt} is empty, expected a prompt per line")
    return found


def check_prompts(prompts: Iterable[str]) -> None:
    """Raise UserError for a prompt that cannot be filled in; say where one names no class."""
    for prompt in prompts:
        check_prompt(prompt)
        if not any(field in prompt for field in ("{name}", "{token}", "{description}")):
            log.warning("--prompt %r has no {name}: it says nothing about the class", prompt)


def split_objects(settings: Generation) -> tuple[Generation, dict[int, GenerativeAugmentation]]:
    """The settings with augmentations by name alone, and those given as objects, by their place."""
    given = settings.aug or ()
    objects = {n: aug for n, aug in enumerate(given) if isinstance(aug, GenerativeAugmentation)}
    names = tuple(augmentation_name(aug) for aug in given)
    return dataclasses.replace(settings, aug=names or None), objects


def options_of(aug: GenerativeAugmentation) -> dict:
    """What an object was made with, as far as its attributes say so in numbers and texts."""
    found = {}
    for key, value in sorted(vars(aug).items()):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, str | int | float | NoneType | tuple | list | dict):
            found[key] = value
    return {key: value for key, value in found.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    """Whether a value is of numbers and texts alone, so that config.json can hold it."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | NoneType)


def list_edits(
    settings: Generation, objects: Mapping[int, GenerativeAugmentation] | None = None
) -> list[dict]:
    """One mapping per augmentation from the lists of settings; a list of one counts for all.

    Args:
        objects: as `split_objects` gives them; what they were made with is said beside the rest.

    Raises:
        UserError: lists of different lengths, or values that no edit can have.
    """
    lists: dict[str, tuple] = {key: getattr(settings, key) or (None,) for key in EDIT_FLAGS}
    count = max(map(len, lists.values()))
    for key, values in lists.items():
        if len(values) not in (1, count):
            longest = next(k for k, v in lists.items() if len(v) == count)
            raise UserError(
                f"--{key} has {len(values)} values, --{longest} has {count}: give one value for "
                "all augmentations or one for each"
            )
    rows = [
        {key: values[number % len(values)] for key, values in lists.items()}
        for number in range(count)
    ]
    for row in rows:
        made = augmentation_class(row["aug"])
        if row["strength"] is None:
            row["strength"] = made.default_strength
        row |= made.fixed
        made.check(options_taken(settings, made))
        if row["strength"] is not None:
            check_strength(row["strength"], settings.num_inference_steps)
        check_guidance_scale(row["guidance_scale"])
        if row["inverted"] and not row["mask"]:
            raise UserError("--inverted 1 needs --mask 1: there is no mask to invert")
    check_taken(settings, rows, objects or {})
    for number, row in enumerate(rows):
        if (aug := objects_of(number, objects, settings)) is not None:
            row["options"] = options_of(aug)
    check_probs(settings.probs, count, settings.compose)
    if settings.negative_prompt and all(row["guidance_scale"] <= 1 for row in rows):
        raise UserError(
            "--negative_prompt means nothing without guidance: give a --guidance_scale above 1, "
            "or leave it out"
        )
    return rows


def options_taken(settings: Generation, made: type[GenerativeAugmentation]) -> dict:
    """The settings that a class of augmentation takes beyond those of every edit."""
    return {name: getattr(settings, name) for name in made.takes if hasattr(settings, name)}


def check_taken(
    settings: Generation, edits: list[dict], objects: Mapping[int, GenerativeAugmentation]
) -> None:
    """Raise UserError for a setting that none of these edits takes."""
    known = fields_of(Surroundings)
    given = [name for name in known if getattr(settings, name) != known[name].default]
    classes = [augmentation_class(edit["aug"]) for edit in edits]
    for name in given:
        if objects and len(objects) == len(settings.aug or ()):
            raise UserError(f"{name}: the augmentation is an object already: give it to its class")
        if not any(name in each.takes for each in classes):
            taking = [aug for aug in AUGMENTATIONS if name in augmentation_class(aug).takes]
            raise UserError(
                f"--{name} means nothing to --aug {' '.join(edit['aug'] for edit in edits)}; it "
                f"belongs to {' and '.join(taking)}"
            )
    for name, values in REQUIRED.items():
        if (
            name in given
            and settings.backgrounds not in values
            and not any(name in each.takes and each.needs_model for each in classes)
        ):
            raise UserError(f"--{name} means nothing without --backgrounds {values[0]}")
    if settings.prompt != (DEFAULT_PROMPT,) and all("places" in each.takes for each in classes):
        raise UserError(
            f"--prompt means nothing to --aug {' '.join(edit['aug'] for edit in edits)}: what is "
            "around the object is named by --places"
        )
    strengths = settings.strength is not None
    if strengths and all(edit["strength"] is None for edit in edits):
        raise UserError(f"--strength means nothing to --aug {edits[0]['aug']}: leave it out")


def uses_model(settings: Generation, edits: list[dict]) -> bool:
    """Whether any of these edits needs a model."""
    classes = [augmentation_class(edit["aug"]) for edit in edits]
    return any(each.uses_model(options_taken(settings, each)) for each in classes)


def facts_of_places(settings: Generation, edits: list[dict]) -> dict:
    """What of places lies in files, for config.json; what is not used is not there."""
    classes = [augmentation_class(edit["aug"]) for edit in edits]
    facts: dict[str, Any] = {}
    pasted = any("backgrounds" in each.takes for each in classes)
    in_words = any("places" in each.takes and each.needs_model for each in classes)
    if in_words or (pasted and settings.backgrounds == GENERATED):
        facts["place_lines"] = f"{stable_hash('places', *read_places(settings.places)):016x}"
    if pasted and settings.backgrounds not in (PHOTOS, GENERATED):
        digests = file_digests(images_in(settings.backgrounds))
        facts["backgrounds"] = f"{stable_hash('backgrounds', *digests):016x}"
    return facts


def objects_of(
    number: int, objects: Mapping[int, GenerativeAugmentation] | None, settings: Generation
) -> GenerativeAugmentation | None:
    """The object of an edit, where one was given; one that stands alone is that of all edits."""
    return (objects or {}).get(number % len(settings.aug or (None,)))


def uses_masks(run: Run, edits: list[dict]) -> bool:
    """Whether an image would be another one if its photo had another mask."""
    by_edit = (edit["mask"] or augmentation_class(edit["aug"]).needs_mask for edit in edits)
    return run.crop_to_object or any(by_edit)
