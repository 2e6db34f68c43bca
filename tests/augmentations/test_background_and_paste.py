"""Background and paste: the object stays, what is around it is another place."""

import numpy as np
import pytest
import torch
from conftest import build_pipeline
from PIL import Image, ImageDraw

from semantic_aug import UserError
from semantic_aug.augmentations.background import Background
from semantic_aug.augmentations.paste import Paste
from semantic_aug.augmentations.places import VOCABULARY, read_places
from semantic_aug.images.layout import cut_out, draw_layout

LAYOUTS = {"layout_scale": (0.6, 1.2), "layout_rotate": 40, "layout_shift": 0.3,
           "layout_mirror": True, "layout_colour": 0.5}  # fmt: skip


def thing(ground=(30, 160, 60), size=(48, 40)):
    """A red disc on a ground, and its mask."""
    image, mask = Image.new("RGB", size, ground), Image.new("L", size, 0)
    box = (14, 10, 32, 28)
    ImageDraw.Draw(image).ellipse(box, fill=(220, 40, 40))
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return image, np.asarray(mask)


def streams(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def edited(aug, grounds=((30, 160, 60),), seeds=(1,)):
    photos = [thing(ground) for ground in grounds]
    metadata = [{"name": "disc", "source": str(n), "mask": m} for n, (_, m) in enumerate(photos)]
    return aug.augment([i for i, _ in photos], [0] * len(photos), metadata, streams(*seeds))


@pytest.fixture(scope="module")
def pipeline():
    return build_pipeline()


def background(pipeline, **options):
    return Background(pipeline, num_inference_steps=4, guidance_scale=2, **options)


@pytest.mark.parametrize("layout", [{}, LAYOUTS])
def test_the_object_has_the_pixels_of_the_photo(pipeline, layout):
    aug = background(pipeline, **layout)
    (image,), ((edit,),) = edited(aug)
    photo, mask = thing()
    drawn = draw_layout(aug.layouts, mask, streams(1)[0])
    colours, alpha = cut_out(photo, mask, drawn)
    inside = np.asarray(alpha) == 255
    assert inside.sum() > 50
    assert (np.asarray(image)[inside] == np.asarray(colours)[inside]).all()
    assert (np.asarray(image)[np.asarray(alpha) == 0] != (30, 160, 60)).any(axis=1).mean() > 0.9
    assert edit.details == drawn.details() | {"place": edit.prompt}
    assert edit.prompt in read_places(None)
    assert (edit.aug, edit.strength, edit.mask, edit.inverted) == ("background", 1.0, True, True)


@pytest.mark.parametrize("layout", [{}, LAYOUTS])
def test_nothing_of_the_old_place_is_seen(pipeline, layout):
    aug = background(pipeline, **layout)
    (one,), _ = edited(aug)
    (other,), _ = edited(aug, [(250, 240, 10)])
    assert one.tobytes() == other.tobytes()


def test_a_seam_and_a_last_edit_change_the_object(pipeline):
    plain, _ = edited(background(pipeline))
    for options in ({"mask_feather": 3}, {"harmonize": 0.5}, {"mask_grow_radius": 3}):
        changed, _ = edited(background(pipeline, **options))
        inside = thing()[1] > 0
        assert (np.asarray(plain[0])[inside] != np.asarray(changed[0])[inside]).any(), options


def test_an_image_does_not_depend_on_its_batch(pipeline):
    aug = background(pipeline, **LAYOUTS)
    together, _ = edited(aug, [(30, 160, 60), (9, 9, 99)], (1, 2))
    (alone,), _ = edited(aug, [(9, 9, 99)], (2,))
    difference = np.asarray(together[1]).astype(int) - np.asarray(alone)
    assert abs(difference).max() <= 2


class Trial:
    """What an augmentation asks of a dataset."""

    seed = 3
    grounds = ((30, 160, 60), (9, 9, 99), (200, 200, 20))

    def __init__(self, count=3):
        self.photos = [thing(ground) for ground in self.grounds[:count]]

    def __len__(self):
        return len(self.photos)

    def sources(self):
        return [str(n) for n in range(len(self))]

    def get_image_by_idx(self, idx):
        return self.photos[idx][0]

    def get_mask_by_idx(self, idx):
        return self.photos[idx][1]

    def get_label_by_idx(self, idx):
        return 0

    def mask_digests(self, indices):
        return ["x" for _ in indices]

    def photo_digest(self):
        return "x"


def test_a_photo_never_stands_on_its_own_place():
    aug = Paste(shadow=0)
    aug.bind(Trial())
    seen = set()
    for seed in range(20):
        images, edits = edited(aug, Trial.grounds, (seed, seed + 100, seed + 200))
        for own, (image, (edit,)) in enumerate(zip(images, edits)):
            other = edit.details["other_photo"]
            seen.add((own, other))
            assert image.getpixel((2, 2)) == Trial.grounds[int(other)]
            assert image.getpixel((23, 19)) == (220, 40, 40)
            assert (edit.prompt, edit.strength, edit.guidance_scale) == (None, None, None)
    assert seen == {(a, str(b)) for a in range(3) for b in range(3) if a != b}


def test_pasting_needs_its_trial_first():
    with pytest.raises(UserError, match=r"bind\(dataset\)"):
        edited(Paste())


def test_pasted_on_the_images_of_a_folder(tmp_path):
    for n, colour in enumerate([(1, 2, 3), (250, 0, 250)]):
        Image.new("RGB", (90, 30), colour).save(tmp_path / f"{n}.png")
    aug = Paste(backgrounds=str(tmp_path), shadow=0, **LAYOUTS)
    aug.bind(Trial())
    found = set()
    for seed in range(8):
        (image,), ((edit,),) = edited(aug, seeds=(seed,))
        found.add((edit.details["place"], image.getpixel((0, 0))))
        assert image.size == (48, 40) and len(edit.details["place_sha256"]) == 64
    assert found == {("0.png", (1, 2, 3)), ("1.png", (250, 0, 250))}


def test_generated_places_have_the_model_that_is_named(small_model):
    with pytest.raises(UserError, match="no model is named: give --model_path, or in Python"):
        Paste(backgrounds="generated")
    aug = Paste(model_path=small_model, backgrounds="generated", num_places=1,
                num_inference_steps=1)  # fmt: skip
    aug.bind(Trial())
    assert edited(aug)[1][0][0].details["place"] == "000000.png"


@pytest.mark.parametrize("places_from", ["prompts", "photos"])
def test_places_are_drawn_once_and_kept(pipeline, tmp_path, places_from):
    loads = []

    def load():
        loads.append(1)
        return pipeline

    def pasting(**changed):
        options = {"num_places": 3, "num_inference_steps": 2, "batch_size": 2} | changed
        aug = Paste(load, backgrounds="generated", places_from=places_from, places_dir=tmp_path,
                    **options)  # fmt: skip
        aug.bind(Trial())
        return aug

    aug = pasting()
    assert len(loads) == 1
    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert sorted(files) == ["000000.png", "000001.png", "000002.png"]
    (image,), ((edit,),) = edited(aug)
    assert edit.details["place"] in files and edit.details["place_sha256"]

    pasting()
    assert len(loads) == 1  # all are there
    (tmp_path / "000001.png").write_bytes(b"damaged")
    pasting()
    assert len(loads) == 2
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == files
    again, _ = edited(pasting())
    assert again[0].tobytes() == image.tobytes()
    pasting(num_inference_steps=3)
    assert len(loads) == 3  # other places
    pasting(num_inference_steps=3, made_with={"scheduler": "ddim"})
    assert len(loads) == 4
    pasting(num_inference_steps=3, mask_feather=3)
    assert len(loads) == (5 if places_from == "photos" else 4)
    assert (tmp_path / "000001.png").read_bytes() != files["000001.png"]


def test_the_places_of_this_package_name_no_class():
    lines = read_places(None)
    assert len(lines) > 50 and len(set(lines)) == len(lines)
    assert lines == VOCABULARY.read_text().splitlines()
    assert VOCABULARY.suffix == ".txt"


def test_lines_that_begin_with_a_hash_are_comments(tmp_path):
    path = tmp_path / "places.txt"
    path.write_text("# indoors {of all kinds}\n\na desk\n  # outdoors\na beach # at noon\n")
    assert read_places(path) == ["a desk", "a beach # at noon"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no place"),
        ("\n # a beach\n", "names no place"),
        ("a {name} on sand\n", "a place has no braces"),
        (None, "cannot read"),
    ],
)
def test_files_of_places_that_cannot_be(tmp_path, text, message):
    path = tmp_path / "places.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_places(path)
