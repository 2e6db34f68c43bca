"""The places of this project's scripts, in a checkout or in an installation."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from semantic_aug import UserError

_PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED = _PACKAGE / "scripts"  # the place of the scripts at the top of a checkout
ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
# The four stages, named as in a chain (`fine_tune:`), and their scripts.
SCRIPTS = {
    "fine_tune": "fine_tune.py",
    "aggregate": "aggregate_embeddings.py",
    "generate": "generate_augmentations.py",
    "train_classifier": "train_classifier.py",
}

_MODULES = {"masks": "masking"}  # commands whose room has another name


def words_here(stage: str) -> list[str]:
    """The words that call a stage or another command in the way that this process was called."""
    called = Path(sys.argv[0])
    if called.name.startswith("semantic-aug ") and ROOT != _INSTALLED:  # see __main__.py
        return ["python", "-m", "semantic_aug", stage.replace("_", "-")]
    words = words_of(stage)
    if called.name in SCRIPTS.values() and stage in SCRIPTS:
        words[1] = str(called.with_name(words[1]))
    return words


def words_of(stage: str) -> list[str]:
    """The words that call a stage or another command from the folder of this project."""
    if ROOT == _INSTALLED:
        return ["semantic-aug", stage.replace("_", "-")]
    return (
        ["python", SCRIPTS[stage]]
        if stage in SCRIPTS
        else ["python", "-m", f"semantic_aug.{_MODULES.get(stage, stage)}"]
    )


def load_script(stage: str) -> ModuleType:
    """The script of a stage, as a module.

    Raises:
        UserError: a package that the script needs is not installed.
    """
    path = ROOT / SCRIPTS[stage]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{sys.executable} has no package {error.name}: activate the Python with the packages "
            "of requirements.txt (submit.sh does what the variable ACTIVATE says)"
        ) from error
    return module
