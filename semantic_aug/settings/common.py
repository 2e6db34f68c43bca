"""The settings that several commands share: an experiment, its photos, the model, the shares."""

from dataclasses import field
from typing import Any

from semantic_aug.settings import setting, settings, whole

BEST_DEVICE = "cuda, cuda:1, mps or cpu (default: the best there is)"


@settings("experiment and trials")
class Experiment:
    """Where results lie, and of which trials they are."""

    experiment_name: str = setting(
        help="folder under output/ that all four stages share", positional=True
    )
    output_dir: str = setting("output", "where experiments lie")
    # Tables hold 64 bits.
    seed: int = setting(0, "first seed", check=whole(0, 2**62))
    num_trials: int = setting(1, "seeds: seed ... seed + num_trials - 1", check=whole(1))
    examples_per_class: tuple[int, ...] = setting(
        (1,), "labelled photos per class, one or several numbers", check=whole(1)
    )


@settings("dataset")
class Run(Experiment):
    """An experiment with its dataset: what all stages have in common.

    `dataset` may be a subclass of FewShotDataset, or one of its objects, instead of a name.
    """

    dataset: Any = setting(
        help="coco, mvip, folder ... (python -m semantic_aug.datasets lists them), hf:NAME of the "
        "Hugging Face hub, or package.module:ClassName",
        result=True,
        takes_objects=True,
    )
    data_dir: str | None = setting(
        None, "root of the data (default: the dataset's environment variable, then its own default)"
    )
    dataset_args: tuple[str, ...] = setting(
        (),
        "the dataset's own options, such as super_class=CarComponent",
        metavar="KEY=VALUE",
        result=True,
    )
    crop_to_object: bool = setting(
        False, "cut every photo to a square around its mask, grown by 16 pixels", result=True
    )
    mask_dir: str | None = setting(
        None,
        "folder of masks at the photos' relative paths, which go before the dataset's own",
        newer=True,
    )
    # Not a setting, but found out: whether `folder` lists the photos that its first version took.
    older_list: bool | None = field(default=None, kw_only=True, repr=False)


@settings("experiment and trials")
class Stage:
    """What every stage takes."""

    overwrite: bool = setting(
        False, "make results again that were made with other settings", early=True
    )


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
    """A Stable Diffusion, and where it works."""

    model: str = setting(
        "CompVis/stable-diffusion-v1-4",
        "hub id or folder of a Stable Diffusion",
        flags=("--model_path", "--pretrained_model_name_or_path"),
        result=True,
    )
    revision: str | None = setting(
        None, "git revision of the hub model; fp16 means half-precision weights", result="model"
    )
    variant: str | None = setting(None, "weight files to load, such as fp16", result="model")
    device: str | None = setting(None, BEST_DEVICE)
    resolution: int | None = setting(
        None, "pixels; default the model's own", check=whole(1, 8192), result=True
    )


@settings("sharing the work among processes", late=True)
class Sharing:
    shard_index: int | None = setting(None, "this process's share, counted from 0", check=whole(0))
    num_shards: int | None = setting(
        None, "how many shares (default: from a SLURM array, accelerate launch, or 1)",
        check=whole(1)
    )  # fmt: skip
