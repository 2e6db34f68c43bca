"""Standard augmentation: per image, deterministic, in range."""

import math

import pytest
import torch

from semantic_aug.evaluation.standard_augmentation import (
    OPERATIONS,
    augment,
    cutmix,
    flip_rotate,
    mixup,
    rand_augment,
    trivial_augment,
)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def test_equal_images_of_a_batch_come_out_different():
    image = torch.rand((3, 20, 20), generator=torch.Generator().manual_seed(0))
    batch = image.expand(64, -1, -1, -1)
    for change, least in ((flip_rotate, 64), (rand_augment, 50), (trivial_augment, 45)):
        results = [change(batch, torch.Generator().manual_seed(5)) for _ in range(2)]
        assert torch.equal(*results)
        assert results[0].shape == batch.shape
        assert results[0].min() >= 0 and results[0].max() <= 1
        different = {tuple(each.flatten()[::7].tolist()) for each in results[0]}
        assert len(different) >= least  # two draws of RandAugment may leave an image as it is
        other = change(batch, torch.Generator().manual_seed(6))
        assert not torch.equal(other, results[0])


def test_flip_rotate_mirrors_half_and_leaves_no_black_corners():
    white = torch.ones((8, 3, 32, 32))
    assert torch.allclose(flip_rotate(white, torch.Generator().manual_seed(0)), white)
    half = torch.zeros((400, 3, 17, 17))
    half[..., :8] = 1
    turned = flip_rotate(half, torch.Generator().manual_seed(0))
    mirrored = turned[..., :8].mean((1, 2, 3)) < 0.5
    assert 160 < mirrored.sum() < 240
    # Four pixels above the middle, the edge moves by up to 4 tan(15 degrees) pixels.
    moved = (turned[:, 0, 4].sum(dim=1) - 8) * (1 - 2 * mirrored.float())
    most = 4 * math.tan(math.radians(15))
    assert 0.9 * most < moved.max() < 1.1 * most
    assert -1.1 * most < moved.min() < -0.9 * most


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_every_operation_acts_per_image_and_is_gentle_at_magnitude_zero(number):
    images = torch.rand((4, 3, 40, 40), generator=torch.Generator().manual_seed(number))
    images = 0.25 + images / 2
    magnitudes = torch.tensor([0.0, 0.3, 0.6, -0.6])
    results = OPERATIONS[number](images, magnitudes)
    for n in range(4):
        alone = OPERATIONS[number](images[n : n + 1], magnitudes[n : n + 1])
        assert torch.allclose(alone[0], results[n], atol=1e-5)
    if number >= 3:  # those that have a magnitude
        assert torch.allclose(results[0], images[0], atol=1 / 255)
        assert (results[2] - images[2]).abs().max() > 0.01
    elif number > 0:
        assert results.min() < 0.01 and results.max() > 0.99


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_mixed_images_show_a_partner_and_say_how_much(mix):
    # Image i is all i / 100: what it shows of its partner can be read off its mean.
    values = torch.arange(64) / 100
    images = values[:, None, None, None].expand(-1, 3, 16, 16)
    mixture = mix(images, stream())
    assert sorted(mixture.partner.tolist()) == list(range(64))
    assert mixture.share.min() >= 0 and mixture.share.max() <= 1
    assert len({round(share, 4) for share in mixture.share.tolist()}) > 30  # drawn per image
    mean = mixture.images.mean((1, 2, 3))
    expected = mixture.share * values + (1 - mixture.share) * values[mixture.partner]
    assert torch.allclose(mean, expected, atol=1e-5)
    again = mix(images, stream())
    assert torch.equal(mixture.images, again.images)
    assert not torch.equal(mixture.partner, mix(images, stream(1)).partner)


def test_cutmix_pastes_one_rectangle_and_mixup_blends_everywhere():
    values = torch.arange(200) / 1000
    images = values[:, None, None, None].expand(-1, 3, 12, 10)
    cut = cutmix(images, stream())
    for own, pasted, partner in zip(values, cut.images[:, 0], values[cut.partner]):
        foreign = pasted != own
        assert set(pasted[foreign].tolist()) <= {float(partner)}
        if foreign.any():
            rows, columns = foreign.any(dim=1).nonzero(), foreign.any(dim=0).nonzero()
            height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
            assert foreign.sum() == height * width
    # A box whose area is uniform in [0, 1] loses about a third of it at the border.
    assert 0.55 < cut.share.mean() < 0.75
    mixed = mixup(images, stream())
    assert all(len(set(image.flatten().tolist())) == 1 for image in mixed.images)
    # Beta(0.2, 0.2) lies mostly at its ends, and is symmetric.
    assert ((mixed.share < 0.1) | (mixed.share > 0.9)).double().mean() > 0.55
    assert 0.4 < mixed.share.mean() < 0.6


def test_several_augmentations_work_together():
    images = torch.rand((40, 3, 12, 12), generator=stream())
    untouched = augment([], images, stream())
    assert torch.equal(untouched.images, images) and untouched.share.eq(1).all()
    flipped = augment(["flip-rotate"], images, stream(3))
    assert torch.equal(flipped.images, flip_rotate(images, stream(3)))
    assert flipped.share.eq(1).all()
    both = augment(["flip-rotate", "cutmix", "mixup"], images, stream(3))
    flipped = flip_rotate(images, stream(3))
    # CutMix leaves some pixels as they were, mixup none (unless it leaves nearly all).
    kept = (both.images == flipped).all(dim=1).double().mean((1, 2))
    assert 5 < ((kept > 0.02) & (kept < 0.98)).sum() < 35
    assert ((kept < 0.02) & (both.share > 0.02)).any()
