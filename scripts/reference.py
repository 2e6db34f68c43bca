"""Write docs/reference.md: every setting of every command, from its declaration.

Run it from the folder of this project: PYTHONPATH=. python scripts/reference.py
"""

import dataclasses
from pathlib import Path

from semantic_aug.settings import fields_of, kind_of
from semantic_aug.settings.classification import Classification
from semantic_aug.settings.common import Run
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.settings.fitting import Fitting
from semantic_aug.settings.generation import Generation, Previewing
from semantic_aug.settings.masking import Masking
from semantic_aug.settings.merging import Merging
from semantic_aug.settings.names import text_of
from semantic_aug.settings.reporting import Reporting
from semantic_aug.settings.reproducing import Reproduction
from semantic_aug.settings.using import Exporting, Predicting

PATH = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
HEAD = """# Reference: every setting

`scripts/reference.py` makes this page from the declarations in `semantic_aug/settings/`. A setting
has the same name as a flag (`--num_vectors 4`, or with hyphens) and as a keyword argument
(`num_vectors=4`); if its flag has another name, both are given. **Bold**: other values give other
results, which are never mixed with existing results.
"""
PAGES = (
    (
        "semantic-aug fit PHOTOS",
        "`fit(photos, ...)`",
        (Fitting,),
    ),
    (
        "The run, in all commands",
        "`Run(experiment_name, ...)`; of it, aggregate takes the first five",
        (Run,),
    ),
    ("fine_tune.py", "`semantic-aug fine-tune`, `fine_tune(run, ...)`", (FineTuning,)),
    ("aggregate_embeddings.py", "`semantic-aug aggregate`, `aggregate(run, ...)`", (Merging,)),
    (
        "generate_augmentations.py",
        "`semantic-aug generate`, `generate(run, ...)`, with `--preview` `preview(run, ...)`",
        (Generation, Previewing),
    ),
    (
        "generate_augmentations.py --reproduce",
        "`reproduce(image, ...)`: paths that have changed",
        (Reproduction,),
    ),
    (
        "train_classifier.py",
        "`semantic-aug train-classifier`, `train_classifier(run, ...)`",
        (Classification,),
    ),
    (
        "semantic-aug predict CLASSIFIER ... PHOTO ...",
        "`predict(classifier, photos=..., ...)`; `load_classifier(path, ...)` takes the first two",
        (Predicting,),
    ),
    (
        "semantic-aug export CLASSIFIER FOLDER",
        "`export(classifier, folder=..., ...)`",
        (Exporting,),
    ),
    (
        "python -m semantic_aug.masking",
        "`semantic-aug masks`, `masks(run, ...)`; of the run, `dataset`, `data_dir`, "
        "`dataset_args` and `mask_dir`",
        (Masking,),
    ),
    ("python -m semantic_aug.report", "`semantic-aug report`", (Reporting,)),
)
KINDS = {str: "text", int: "whole number", float: "number", bool: "switch"}


def page() -> str:
    parts = [HEAD]
    for title, names, classes in PAGES:
        parts.append(f"\n## {title}\n\n{names}\n")
        parts.append("| setting | type | default | meaning |\n| --- | --- | --- | --- |")
        for cls in classes:
            parts += [row(name, field) for name, field in fields_of(cls).items()]
    return "\n".join(parts) + "\n"


def row(name: str, field) -> str:
    (kind, several, _), of = kind_of(field), field.metadata
    called = f"**`{name}`**" if of["result"] else f"`{name}`"
    flags = [*of["flags"], *(of["shorthand"] or ())]
    if flags and flags != [f"--{name}"]:
        called += f" ({', '.join(f'`{flag}`' for flag in flags)})"
    what = of["check"][0].expected.removeprefix("a ") if of["check"] else KINDS[kind]
    if of["choices"]:
        what = ", ".join(f"`{each}`" for each in of["choices"])
    what += "".join(f", or `{name}`" for name in of["named"] or ())
    if several:
        what += "; one or several"
    default = "needed" if field.default is dataclasses.MISSING else text_of(field.default)
    default = f"`{default}`" if default not in ("needed", "none") else default
    return f"| {called} | {what} | {default} | {of['help'].replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    PATH.write_text(page(), encoding="utf-8")
    print(PATH)
