"""From flags to edits: the edits of a photo, their prompts, and what they need."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from semantic_aug import UserError, stable_hash
from semantic_aug.augmentations import AUGMENTATIONS, augmentation_class, augmentation_name
from semantic_aug.augmentations.compose import check_probs, parts_of
from semantic_aug.augmentations.paste import images_in
from semantic_aug.augmentations.places import read_places
from semantic_aug.augmentations.sdedit import (
    SDEditor,
    check_guidance_scale,
    check_prompt,
    check_strength,
)
from semantic_aug.experiment.config import Newer
from semantic_aug.experiment.digests import file_digests
from semantic_aug.generative_augmentation import GenerativeAugmentation
from semantic_aug.images.layout import Layouts
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
# Settings that only have a meaning with these --backgrounds.
REQUIRED = {"places": (GENERATED,), "num_places": (GENERATED,), "places_from": (GENERATED,)}


def read_prompts(prompts: Iterable[str]) -> list[str]:
    """The given prompts, with the lines of a text file in place of its name."""
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
    """Raise UserError for a prompt that cannot be filled in; warn where a prompt names no class."""
    for prompt in prompts:
        check_prompt(prompt)
        if not any(field in prompt for field in ("{name}", "{token}", "{description}")):
            log.warning("--prompt %r has no {name}: it says nothing about the class", prompt)


def split_objects(settings: Generation) -> tuple[Generation, dict[int, GenerativeAugmentation]]:
    """The settings with named augmentations only, and the augmentation objects by position."""
    given = settings.aug or ()
    objects = {n: aug for n, aug in enumerate(given) if isinstance(aug, GenerativeAugmentation)}
    names = tuple(augmentation_name(aug) for aug in given)
    return dataclasses.replace(settings, aug=names or None), objects


def options_of(aug: GenerativeAugmentation) -> dict:
    """The options of an object, as far as its attributes tell them in numbers and texts."""
    found = {key: _told(value) for key, value in sorted(vars(aug).items()) if key != "model_path"}
    return {key: value for key, value in found.items() if _is_plain(value)}


def _told(value: Any) -> Any:
    """An attribute of an augmentation, with its parts replaced by their options."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, GenerativeAugmentation):
        return options_of(value)
    if isinstance(value, SDEditor):  # the batch size changes no image
        told = {key: part for key, part in vars(value).items() if key != "batch_size"}
        told |= {"prompts": f"{stable_hash(*value.prompts):016x}"}  # possibly hundreds
        return {key: part for key, part in told.items() if key[0] != "_" and _is_plain(part)}
    return [_told(each) for each in value] if isinstance(value, tuple | list) else value


def _is_plain(value: object) -> bool:
    """Whether a value consists of numbers and texts only, which config.json can hold."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | NoneType)


def list_edits(
    settings: Generation, objects: Mapping[int, GenerativeAugmentation] | None = None
) -> list[dict]:
    """A mapping per augmentation from the lists of settings; a single entry counts for all.

    Args:
        objects: as `split_objects` gives them; their options are added to the mappings.

    Raises:
        UserError: lists differ in length, or no edit can have a value.
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
            for edit in edits_of(aug):  # objects override the settings
                row |= {"strength": edit.strength, "guidance_scale": edit.guidance_scale}
                row |= {"mask": int(edit.mask), "inverted": int(edit.inverted)}
            row |= augmentation_class(row["aug"]).fixed
            row["options"] = options_of(aug)
    check_probs(settings.probs, count, settings.compose)
    if settings.negative_prompt and all(row["guidance_scale"] <= 1 for row in rows):
        raise UserError(
            "--negative_prompt means nothing without guidance: give a --guidance_scale above 1, "
            "or leave it out"
        )
    return rows


def options_taken(
    settings: Generation,
    made: type[GenerativeAugmentation],
    given: GenerativeAugmentation | None = None,
) -> dict:
    """The settings that a class of augmentation takes beyond the settings of every edit.

    Args:
        given: the object, if the augmentation was given as an object; its options count.
    """
    own = {} if given is None else vars(given)
    if isinstance(layouts := own.get("layouts"), Layouts):
        own = own | {f"layout_{key}": value for key, value in vars(layouts).items()}
    return {
        name: own.get(name, getattr(settings, name))
        for name in made.takes
        if hasattr(settings, name)
    }


def classes_of(
    settings: Generation, edits: list[dict], objects: Mapping[int, GenerativeAugmentation] | None
) -> list[tuple[type[GenerativeAugmentation], dict]]:
    """The class of each edit, and the settings that it takes; for a composition, of its parts."""
    found = []
    for number, edit in enumerate(edits):
        if (given := objects_of(number, objects, settings)) is not None:
            parts = parts_of(given)
            found += [(type(aug), options_taken(settings, type(aug), aug)) for aug in parts]
        else:
            made = augmentation_class(edit["aug"])
            found.append((made, options_taken(settings, made)))
    return found


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
            f"--prompt means nothing to --aug {' '.join(edit['aug'] for edit in edits)}: "
            "--places names what is around the object"
        )
    strengths = settings.strength is not None
    if strengths and all(edit["strength"] is None for edit in edits):
        raise UserError(f"--strength means nothing to --aug {edits[0]['aug']}: leave it out")


def uses_model(
    settings: Generation,
    edits: list[dict],
    objects: Mapping[int, GenerativeAugmentation] | None = None,
) -> bool:
    """Whether any of these edits needs a model."""
    return any(each.uses_model(taken) for each, taken in classes_of(settings, edits, objects))


def facts_of_places(
    settings: Generation,
    edits: list[dict],
    dataset,
    objects: Mapping[int, GenerativeAugmentation] | None = None,
) -> dict:
    """Facts about the files of places, for config.json, without unused entries.

    Args:
        dataset: the trial. All its photos may lend their places, so the masks of all classes
            count.
    """
    facts: dict[str, Any] = {}
    lists, folders = [], []
    for each, taken in classes_of(settings, edits, objects):
        backgrounds = taken.get("backgrounds")
        if "places" in taken and (each.needs_model or backgrounds == GENERATED):
            lists.append(taken["places"])
        if backgrounds == PHOTOS or (backgrounds, taken.get("places_from")) == (GENERATED, PHOTOS):
            digests = dataset.mask_digests(range(len(dataset)))
            facts["place_masks"] = Newer(f"{stable_hash('place masks', *digests):016x}")
        elif backgrounds not in (None, GENERATED):
            folders.append(backgrounds)
    if lists:
        lines = [line for each in dict.fromkeys(lists) for line in read_places(each)]
        facts["place_lines"] = f"{stable_hash('places', *lines):016x}"
    if folders:
        files = [file for each in dict.fromkeys(folders) for file in images_in(each)]
        facts["backgrounds"] = f"{stable_hash('backgrounds', *file_digests(files)):016x}"
    return facts


def edits_of(aug: GenerativeAugmentation) -> list[SDEditor]:
    """The model-based editors of an object; empty without any."""
    edit = getattr(aug, "edit", None)
    return [edit] if isinstance(edit, SDEditor) else []


def objects_of(
    number: int, objects: Mapping[int, GenerativeAugmentation] | None, settings: Generation
) -> GenerativeAugmentation | None:
    """The object of an edit, if the edit was given as an object; a single object serves all."""
    return (objects or {}).get(number % len(settings.aug or (None,)))


def uses_masks(
    run: Run, edits: list[dict], objects: Mapping[int, GenerativeAugmentation] | None = None
) -> bool:
    """Whether an image depends on the mask of its photo."""
    by_edit = (edit["mask"] or augmentation_class(edit["aug"]).needs_mask for edit in edits)
    by_object = (aug.needs_mask for aug in (objects or {}).values())
    return run.crop_to_object or any(by_edit) or any(by_object)
