"""The settings that several commands share: an experiment, its photos, the model, the shares."""

from dataclasses import field
from typing import Any

from semantic_aug.settings import setting, settings, whole

BEST_DEVICE = "cuda, cuda:1, mps or cpu (default: the fastest)"


@settings("experiment and trials")
class Experiment:
    """The folder of an experiment, and its trials."""

    experiment_name: str = setting(
        help="folder under output/ that all stages share", positional=True
    )
    output_dir: str = setting("output", "folder of all experiments", rare=True)
    # Tables hold numbers of 64 bits.
    seed: int = setting(0, "first seed", check=whole(0, 2**62))
    num_trials: int = setting(1, "number of seeds: seed, seed + 1, ...", check=whole(1))
    examples_per_class: tuple[int, ...] = setting((1,), "labelled photos per class", check=whole(1))


@settings("dataset")
class Run(Experiment):
    """An experiment with its dataset, which all stages share.

    `dataset` is a name, a subclass of FewShotDataset, or an object of such a class.
    """

    dataset: Any = setting(
        help="coco, folder, hf:NAME, module:Class ...; python -m semantic_aug.datasets lists "
        "them; hf:NAME is a dataset of the Hugging Face hub, package.module:ClassName "
        "your own Python class",
        result=True,
        takes_objects=True,
    )
    data_dir: str | None = setting(None, "folder of the data (default: the dataset's own)")
    dataset_args: tuple[str, ...] = setting(
        (),
        "options of the dataset; python -m semantic_aug.datasets NAME lists them",
        metavar="KEY=VALUE",
        result=True,
    )
    crop_to_object: bool = setting(
        False,
        "crop every photo to a square around its mask, 16 pixels larger on each side",
        result=True,
        rare=True,
    )
    mask_dir: str | None = setting(
        None,
        "folder of masks; they lie at the photos' relative paths, and replace the dataset's "
        "own masks",
        newer=True,
    )
    # Not set by users but found out: whether `folder` lists the photos as its first version did.
    older_list: bool | None = field(default=None, kw_only=True, repr=False)


@settings("experiment and trials")
class Stage:
    """The setting of every stage."""

    overwrite: bool = setting(False, "replace results of other settings", early=True)


@settings("dataset")
class Selection:
    classes: tuple[str, ...] | None = setting(
        None,
        "only these classes (default all)",
        flags=("--classes", "--class_name"),
        metavar="NAME",
    )


@settings("model")
class Model:
    """A Stable Diffusion and its device."""

    model: str = setting(
        "CompVis/stable-diffusion-v1-4",
        "hub id or folder of a Stable Diffusion",
        flags=("--model_path", "--pretrained_model_name_or_path"),
        result=True,
    )
    revision: str | None = setting(
        None,
        "git revision of the hub model; fp16 means half-precision weights",
        result="model",
        rare=True,
    )
    variant: str | None = setting(
        None, "weight files to load, such as fp16", result="model", rare=True
    )
    device: str | None = setting(None, BEST_DEVICE)
    resolution: int | None = setting(
        None,
        "pixels per side (default: the model's)",
        check=whole(1, 8192),
        result=True,
    )


@settings("sharing the work among processes", late=True)
class Sharing:
    shard_index: int | None = setting(None, "share of this process, counted from 0", check=whole(0))
    num_shards: int | None = setting(
        None, "number of shares (default: from the launcher); SLURM arrays and accelerate launch "
        "set it",
        check=whole(1)
    )  # fmt: skip
