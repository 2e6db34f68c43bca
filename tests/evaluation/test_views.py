"""Views that are kept: each depends on its picture alone; what does not fit; when they pay."""

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semantic_aug import UserError
from semantic_aug.evaluation.backbone import load_backbone
from semantic_aug.evaluation.features import cached_features
from semantic_aug.evaluation.pictures import Images
from semantic_aug.evaluation.views import AS_IT_IS, Views
from semantic_aug.experiment.names import Trial
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.settings.classification import TrainingOptions
from semantic_aug.stages import kept_views

NAMES = ("flip-rotate", "randaugment")
VIEWS = Views(NAMES, 3, seed=7)


class Sketches(FewShotDataset):
    class_names = ("sketch",)

    def list_records(self, split):
        return [self.record(path, "sketch") for path in self.images_in(self.data_dir)]


def noise(number: int, size: int = 16) -> torch.Tensor:
    stream = torch.Generator().manual_seed(number)
    return torch.randint(256, (3, size, size), generator=stream, dtype=torch.uint8)


@pytest.fixture(scope="module")
def sketches(tmp_path_factory) -> Sketches:
    """Seven photos; the synthetic images of two of them lie in `made`."""
    folder = tmp_path_factory.mktemp("sketches")
    for number in range(9):
        path = folder / ("made" if number > 6 else "") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise(number).permute(1, 2, 0).numpy()).save(path)
    return Sketches(data_dir=folder)


@pytest.fixture(scope="module")
def backbone(resnet):
    return load_backbone(resnet, torch.device("cpu"))  # of 24 features


def items_of(sketches: Sketches) -> list[int | Path]:
    return [*range(len(sketches)), *sorted((sketches.data_dir / "made").iterdir())]


def seen(images: Images, views: Views = VIEWS) -> dict[str, torch.Tensor]:
    """What the backbone is given of each picture: [V, 3, H, W] by what it is called."""
    rows = [(n, stream) for n in range(len(images)) for stream in views.of(images, n)]
    batch = torch.stack([images.read(n) for n, _ in rows])
    shown = views.shown(batch, [stream for _, stream in rows])
    parts = shown.split(views.number)
    return {images.identity(n): part for n, part in enumerate(parts)}


@pytest.fixture(scope="module")
def whole(sketches) -> dict[str, torch.Tensor]:
    return seen(Images(sketches, items_of(sketches), (16, 16)))


@settings(max_examples=8)
@given(data=st.data())
def test_views_of_a_picture_depend_on_no_other_picture_and_no_order(sketches, whole, data):
    items = st.sampled_from(items_of(sketches))
    some = data.draw(st.lists(items, min_size=1, max_size=3, unique=True))
    for name, views in seen(Images(sketches, some, (16, 16))).items():
        assert torch.equal(views, whole[name])


def test_views_differ_by_number_picture_and_seed(sketches, whole):
    images = Images(sketches, items_of(sketches), (16, 16))
    assert set(map(images.identity, range(9))) == {f"{number}.png" for number in range(9)}
    streams = [
        (seed, n, view)
        for seed in (0, 1)
        for n in range(len(images))
        for view in Views(NAMES, 3, seed).of(images, n)
    ]
    drawn = {float(torch.rand((), generator=stream, dtype=torch.float64)) for *_, stream in streams}
    assert len(drawn) == 2 * 9 * 3
    more = seen(images, Views(NAMES, 4, VIEWS.seed))  # goes on from three
    assert all(torch.equal(more[name][:3], whole[name]) for name in whole)


def test_features_are_those_of_the_views_side_by_side(sketches, whole, backbone, tmp_path):
    images = Images(sketches, items_of(sketches), (16, 16))
    features, read = cached_features(backbone, images, "", tmp_path, VIEWS)
    assert features.shape == (9 * 3, backbone.num_features) and read.all()
    for own, views in zip(features.split(3), whole.values()):
        torch.testing.assert_close(own, backbone.features(views))
    again, _ = cached_features(backbone, images, "", tmp_path, VIEWS)
    assert torch.equal(again, features) and len(list(tmp_path.iterdir())) == 1
    for other in (Views(NAMES, 3, 8), Views(NAMES[:1], 3, 7), AS_IT_IS):
        assert not torch.equal(
            cached_features(backbone, images, "", tmp_path, other)[0][:3], features[:3]
        )
    assert len(list(tmp_path.iterdir())) == 4


def test_a_picture_that_cannot_be_read_leaves_the_views_of_others_in_place(sketches, backbone):
    items = items_of(sketches)
    broken = [*items[:2], sketches.data_dir / "nothing.png", *items[2:]]
    features, read = cached_features(backbone, Images(sketches, broken, (16, 16)), "", None, VIEWS)
    assert (~read).nonzero().flatten().tolist() == [2]
    whole, _ = cached_features(backbone, Images(sketches, items, (16, 16)), "", None, VIEWS)
    assert torch.equal(features, whole)


def test_every_view_is_drawn_and_a_single_one_costs_no_draw():
    stream = torch.Generator().manual_seed(0)
    pictures = torch.arange(4).expand(250, 4)
    assert torch.equal(Views(NAMES, 1).draw(pictures, stream), pictures)
    assert torch.equal(stream.get_state(), torch.Generator().manual_seed(0).get_state())
    rows = Views(NAMES, 5).draw(pictures, stream)
    assert torch.equal(rows // 5, pictures)
    counts = torch.bincount(rows.flatten(), minlength=20)
    assert counts.min() > 25 and counts.max() < 80  # 50 each


# --- memory, and advice ----------------------------------------------------------------------


def test_features_that_do_not_fit_are_refused_with_what_would(backbone):
    sizes, options = {Trial(0, 1): 10, Trial(0, 4): 40_000}, TrainingOptions(views=16)
    with pytest.raises(UserError) as refused:
        kept_views.check_memory(sizes, backbone, options, 20)
    assert str(refused.value) == (
        "--views 16 of 40,000 images in seed=0_ex=4 are 0.1 GB of features, and --image_memory "
        "allows 0.0 GB: lower --views to 5, or raise --image_memory to 59"
    )
    kept_views.check_memory(sizes, backbone, TrainingOptions(views=5), 20)
    kept_views.check_memory(sizes, backbone, options, 59)
    kept_views.check_memory(sizes, backbone, TrainingOptions(), 0)
    with pytest.raises(UserError, match=r"GB: raise --image_memory to 4$"):
        kept_views.check_memory(sizes, backbone, TrainingOptions(views=1), 1)


@pytest.mark.parametrize(
    "seconds, changed, said",
    [
        (0.002, {}, "training takes about 21 min for 2 trials; with --views 16 each image passes "
                    "the backbone 16 times, in place of once per draw: about 1 min"),
        (0.1, {}, "training takes about 18 h for 2 trials; with --views 16 each image passes "
                  "the backbone 16 times, in place of once per draw: about 54 min"),
        (0.0001, {}, None),
        (1, {"views": 16}, None),
        (1, {"augmentation": ()}, None),
        (1, {"augmentation": ("flip-rotate", "cutmix")}, None),
        (1, {"num_epochs": 4}, None),  # almost as many draws as views
    ],
)  # fmt: skip
def test_views_are_named_where_minutes_become_less_than_half(
    backbone, monkeypatch, caplog, seconds, changed, said
):
    monkeypatch.setattr(kept_views, "seconds_per_image", lambda *_: seconds)
    caplog.set_level(logging.INFO, "semantic_aug")
    sizes = {Trial(0, 2): 1000, Trial(1, 2): 1000}
    kept_views.advise(sizes, backbone, TrainingOptions(**changed), 4096)
    assert [record.getMessage() for record in caplog.records] == ([] if said is None else [said])
    caplog.clear()
    kept_views.advise(sizes, backbone, TrainingOptions(**changed), 1)  # megabyte
    assert not caplog.records


def test_the_time_of_an_image_is_measured_without_touching_the_global_stream(backbone):
    before = torch.random.get_rng_state()
    assert 0 < kept_views.seconds_per_image(backbone, TrainingOptions(batch_size=2)) < 10
    assert torch.equal(torch.random.get_rng_state(), before)
