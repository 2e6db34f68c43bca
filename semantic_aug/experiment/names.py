"""Names of every file and folder under output/.

output/EXP/fine-tuned/seed=S_ex=N/CLASS/learned_embeds.safetensors
output/EXP/fine-tuned/seed=S_ex=N/pytorch_lora_weights.safetensors: the trial's LoRA
output/EXP/fine-tuned/prior/ID/CLASS/{number:06d}.png: prior images for the LoRAs
output/EXP/fine-tuned-merged/seed=S_ex=N.safetensors, seed=S_ex=N_lora/
output/EXP/AUG/seed=S_ex=N/{index:06d}-{repeat:03d}.png, metadata.jsonl, records/, config.json
output/EXP/results/METHOD/results_{S}_{N}.csv, confusion_{S}_{N}.csv, calibration_{S}_{N}.csv,
    classifier_{S}_{N}/, summary.csv, pictures
output/EXP/places/AUG/seed=S_ex=N/{number:06d}.png, records/: places that a model has drawn
output/EXP/fit/: the results of `semantic-aug fit`, with the classifier
output/EXP/cache/, timing/ and timing.json: features of images, and the time of all work
output/EXP/processes/ and slurm/: the state of each process, and the logs of SLURM jobs
output/EXP/report/seed=S_ex=N.html, seed=S_ex=N.png, seed=S_ex=N/CLASS.png,
    preview_seed=S_ex=N.png, seed=S_ex=N_mistakes_METHOD.html
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from semantic_aug import UserError

FINE_TUNED = "fine-tuned"
MERGED = "fine-tuned-merged"
RESULTS = "results"
CACHE = "cache"
TIMING = "timing"
PROCESSES = "processes"
SLURM_LOGS = "slurm"
PLACES = "places"
FIT = "fit"
RESERVED_NAMES = (
    FINE_TUNED, MERGED, RESULTS, CACHE, TIMING, PROCESSES, SLURM_LOGS, FIT, "report", "logs",
)  # fmt: skip
EMBEDDINGS_FILE = "learned_embeds.safetensors"
LORA = "LoRA"  # in status, stands where other stages have a method
LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it
CONFIG_FILE = "config.json"
METADATA_FILE = "metadata.jsonl"
BORROWED_WORDS = "borrowed_words"  # a note in config.json: the other trial whose words are used

# Python reads file names that are not UTF-8 as lone surrogates, which no UTF-8 file can hold.
UNENCODABLE = "\ud800-\udfff"


@dataclass(frozen=True, order=True)
class Trial:
    """A fixed few-shot subset: one seed and a number of examples per class."""

    seed: int
    examples_per_class: int

    @property
    def name(self) -> str:
        return f"seed={self.seed}_ex={self.examples_per_class}"

    def fill(self, text: str) -> str:
        """`text` with this trial's numbers in place of {seed} and {examples_per_class}."""
        filled = text.replace("{seed}", str(self.seed))
        return filled.replace("{examples_per_class}", str(self.examples_per_class))


def trial_named(name: str) -> Trial | None:
    """The trial of this name; None if no trial has it."""
    seed, _, examples = name.removeprefix("seed=").partition("_ex=")
    try:
        trial = Trial(int(seed), int(examples))
    except ValueError:
        return None
    return trial if trial.name == name else None


def experiment_dir(output_dir: str | Path, name: str) -> Path:
    """`output_dir/name`.

    Raises:
        UserError: the name is empty or leads out of `output_dir`.
    """
    parts = Path(name).parts
    if not parts or not all(map(_is_component, parts)):
        raise UserError(
            f"--experiment_name: got {name!r}, expected a folder name inside {output_dir}/, "
            "such as my-experiment"
        )
    return Path(output_dir) / name


def aug_dir(experiment: Path, aug_name: str, trial: Trial, flag: str = "--aug_name") -> Path:
    """Folder of the images of one trial; `flag` is the flag that errors name."""
    return experiment / check_component(flag, aug_name, RESERVED_NAMES) / trial.name


def places_dir(images: Path) -> Path:
    """Folder of the places that the images in a trial's folder use."""
    return images.parent.parent / PLACES / images.parent.name / images.name


def fine_tuned_dir(experiment: Path, trial: Trial) -> Path:
    """Folder that holds one folder per class with the learned words of a trial."""
    return experiment / FINE_TUNED / trial.name


def merged_file(experiment: Path, trial: Trial) -> Path:
    """The file with all learned words of a trial."""
    return experiment / MERGED / f"{trial.name}.safetensors"


def lora_file(experiment: Path, trial: Trial) -> Path:
    """The LoRA of a trial."""
    return fine_tuned_dir(experiment, trial) / LORA_FILE


def merged_lora(words: Path) -> Path:
    """The LoRA that belongs to a file with all learned words of a trial."""
    return words.with_name(f"{words.stem}_lora") / LORA_FILE


def prior_dir(experiment: Path) -> Path:
    """Folder of the prior images, with a folder for each set of their settings."""
    return experiment / FINE_TUNED / "prior"


def check_component(flag: str, name: str, reserved: tuple[str, ...] = ()) -> str:
    """`name`, if it is a single folder name that this project does not use otherwise."""
    if name in reserved:
        raise UserError(f"{flag}: {name!r} is the name of another stage's folder; choose another")
    if not _is_component(name):
        raise UserError(f"{flag}: got {name!r}, expected one folder name, such as aug-0.5")
    return name


def _is_component(name: str) -> bool:
    illegal = rf'[/\\\x00-\x1f:*?"<>|{UNENCODABLE}]'
    return bool(name.strip()) and name not in (".", "..") and not re.search(illegal, name)


def folder_names(class_names: Iterable[str]) -> dict[str, str]:
    """A folder name for every class: one path component, legal on every file system, unique.

    Names that would be equal (letter case ignored) get a suffix, in the order given.
    """
    return unique_names(class_names, _folder_name, key=str.casefold)


def _folder_name(class_name: str) -> str:
    name = unicodedata.normalize("NFC", class_name)
    name = re.sub(rf'[/\\:*?"<>|\s\x00-\x1f\x7f{UNENCODABLE}]', "_", name).strip(".") or "_"
    encoded = name.encode()
    if len(encoded) > 120:  # file systems allow 255 bytes
        digest = hashlib.sha256(encoded).hexdigest()[:8]
        name = f"{encoded[:100].decode(errors='ignore')}-{digest}"
    return name


def unique_names(names: Iterable[str], make, key=lambda text: text) -> dict[str, str]:
    """`{name: make(name)}`; values with equal `key` get the suffixes `-2`, `-3` ..."""
    taken, unique = set(), {}
    for name in dict.fromkeys(names):
        candidate, number = make(name), 1
        while key(candidate) in taken:
            number += 1
            candidate = f"{make(name)}-{number}"
        taken.add(key(candidate))
        unique[name] = candidate
    return unique
