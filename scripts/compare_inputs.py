"""Make the inputs of compare_revisions.sh for both revisions: photos, and small random models.

    PYTHONPATH=.:tests python scripts/compare_inputs.py FOLDER sample/mvip

Writes FOLDER/{sd2,sdxl,clip,resnet,checker,lora}/, FOLDER/photos/ with masks/ beside it, and
FOLDER/own.py with a dataset and an augmentation as users write them.
"""

import shutil
import sys
from pathlib import Path

import torch
from conftest import build_backbone, build_clip, build_pipeline, build_xl_pipeline
from PIL import Image

# Classes of the sample -> their names here, which need other folder names and tokens.
CLASSES = {"hex_nut": "Hex Nut", "spur_gear": "spur gear", "wing_nut": "aux: été"}
COUNTS = {"train": ("train_data", 4), "val": ("valid_data", 3), "test": ("test_data", 3)}
OWN = '''"""Datasets and an augmentation as users write them, and as their predecessors did."""

import csv
from pathlib import Path

from PIL import Image, ImageOps

from semantic_aug.few_shot_dataset import FewShotDataset, read_image
from semantic_aug.generative_augmentation import Edit, GenerativeAugmentation


class Listed(FewShotDataset):
    """Photos of a table.

    Args:
        turned: photos upside down.
    """

    class_names = ["Hex Nut", "spur gear"]
    default_dir = "inputs/photos"

    def __init__(self, *, turned: bool = False, **kwargs):
        self.turned = turned
        super().__init__(**kwargs)

    def list_records(self, split):
        for name in self.class_names:
            for path in self.images_in(self.data_dir / split / name):
                yield self.record(path, name)


class Older(FewShotDataset):
    class_names = ["Hex Nut", "spur gear"]

    def __init__(self, split="train", seed=0, image_size=(64, 64), **kwargs):
        super().__init__(**kwargs)
        self.paths = [
            (path, label)
            for label, name in enumerate(self.class_names)
            for path in sorted(Path("inputs/photos", split, name).iterdir())
        ]

    def __len__(self):
        return len(self.paths)

    def get_image_by_idx(self, idx):
        return Image.open(self.paths[idx][0]).convert("RGB")

    def get_label_by_idx(self, idx):
        return self.paths[idx][1]

    def get_metadata_by_idx(self, idx):
        return {"name": self.class_names[self.paths[idx][1]]}


class Mirror(GenerativeAugmentation):
    """Mirrors photos: an edit without a model."""

    def __init__(self, pipeline=None, **options):
        pass

    def augment(self, images, labels, metadata, generators):
        edit = Edit("mirror", "", 1.0, 1.0, False, False)
        return [ImageOps.mirror(image) for image in images], [[edit] for _ in images]
'''


def main(folder: Path, sample: Path) -> None:
    velocity = build_pipeline(seed=3, hidden_size=48, prediction_type="v_prediction")
    velocity.save_pretrained(folder / "sd2")
    build_xl_pipeline().save_pretrained(folder / "sdxl")
    build_clip(folder / "clip")
    build_backbone(folder / "resnet")
    save_lora(folder / "lora", velocity)
    save_checker(folder / "checker")
    copy_photos(folder, sample)
    (folder / "own.py").write_text(OWN, encoding="utf-8")


def copy_photos(folder: Path, sample: Path) -> None:
    """A few photos of the sample, some in other formats and modes."""
    for split, (of_sample, count) in COUNTS.items():
        for source, name in CLASSES.items():
            photos = sorted((sample / source / of_sample).rglob("*_rgb.png"))[:count]
            for number, path in enumerate(photos):
                target = folder / "photos" / split / name / f"{number}.png"
                mask = folder / "masks" / split / name / f"{number}.png"
                for each in (target, mask):
                    each.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                shutil.copyfile(path.with_name(f"{path.stem}_mask_gen.png"), mask)
    train = folder / "photos" / "train" / "Hex Nut"
    with Image.open(train / "1.png") as photo:
        photo.convert("L").save(train / "1.png")
    with Image.open(train / "2.png") as photo:  # a camera on its side
        exif = photo.getexif()
        exif[0x0112] = 6
        photo.crop((0, 0, 64, 48)).save(train / "2.jpg", quality=95, exif=exif)
    (train / "2.png").unlink()
    with Image.open(folder / "masks/train/Hex Nut/2.png") as mask:
        mask.crop((0, 0, 64, 48)).rotate(-90, expand=True).save(
            folder / "masks/train/Hex Nut/2.png"
        )
    # Problems for the check of a dataset: a truncated photo, a black photo, a photo in two splits.
    wrong = folder / "wrong"
    shutil.copytree(folder / "photos", wrong / "photos")
    shutil.copytree(folder / "masks", wrong / "masks")
    cut = wrong / "photos/train/spur gear/0.png"
    cut.write_bytes(cut.read_bytes()[:200])
    Image.new("RGB", (64, 64)).save(wrong / "photos/val/spur gear/0.png")
    shutil.copyfile(wrong / "photos/train/Hex Nut/0.png", wrong / "photos/test/Hex Nut/0.png")
    (wrong / "masks/train/spur gear/1.png").unlink()


def save_lora(folder: Path, pipeline) -> None:
    """A LoRA with random weights that change images visibly."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"])
    torch.manual_seed(3)
    pipeline.unet.add_adapter(config)
    layers = {key: 3 * each for key, each in get_peft_model_state_dict(pipeline.unet).items()}
    type(pipeline).save_lora_weights(folder, unet_lora_layers=layers)


def save_checker(folder: Path) -> None:
    """A safety checker with random weights, which flags some images and passes others."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    checker.concept_embeds.data.normal_()
    checker.special_care_embeds_weights.data.fill_(2)
    checker.concept_embeds_weights.data.fill_(0.68)
    checker.save_pretrained(folder)
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessor(**size).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
