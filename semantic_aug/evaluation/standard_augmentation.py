"""Standard augmentation of training images, in batches on any device, drawn per image.

kornia's RandAugment draws the same sequence of operations for a whole batch, which would weaken
the baseline of synthetic images. So this module has its own implementation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from kornia import enhance
from kornia.geometry import transform as geometry
from scipy import special

# A stream for a batch, or a stream for each image.
Streams: TypeAlias = torch.Generator | Sequence[torch.Generator]
Augmentation = Callable[[torch.Tensor, Streams], torch.Tensor]
Mix = Callable[[torch.Tensor, torch.Generator], "Mixture"]


def _uniform(count: int, images: torch.Tensor, generator: Streams, dtype=None) -> torch.Tensor:
    """[count, B] in [0, 1), on the CPU."""
    if isinstance(generator, torch.Generator):
        return torch.rand((count, len(images)), generator=generator, dtype=dtype)
    own = [torch.rand(count, generator=each, dtype=dtype) for each in generator]
    return torch.stack(own, dim=1)


def flip_rotate(images: torch.Tensor, generator: Streams) -> torch.Tensor:
    """Mirror each image with probability 0.5 and rotate it by an angle uniform in ±15°.

    Mirrored borders fill the corners of a rotated image.

    Args:
        images: [B, 3, H, W] float in [0, 1].
        generator: on the CPU; gives two numbers per image on any device.
    """
    mirrored, turned = _uniform(2, images, generator).to(images.device)
    images = torch.where((mirrored < 0.5)[:, None, None, None], images.flip(-1), images)
    return _warp(images, angle=30 * turned - 15)


def rand_augment(images: torch.Tensor, generator: Streams) -> torch.Tensor:
    """RandAugment (arXiv 1909.13719): two operations per image, drawn from fourteen.

    Magnitudes are uniform in [0, 0.6], on average the usual 9 of 30.

    Args:
        images: [B, 3, H, W] float in [0, 1].
        generator: on the CPU; gives four numbers per image on any device.
    """
    for _ in range(2):
        images = _random_operation(images, generator, 0.6)
    return images


def trivial_augment(images: torch.Tensor, generator: Streams) -> torch.Tensor:
    """TrivialAugment (arXiv 2103.10158) in RandAugment's space: a single operation per image.

    Magnitudes are uniform in [0, 1].

    Args:
        images: [B, 3, H, W] float in [0, 1].
        generator: on the CPU; gives two numbers per image on any device.
    """
    return _random_operation(images, generator, 1.0)


def _random_operation(images, generator: Streams, max_magnitude: float) -> torch.Tensor:
    """Apply a random operation from `OPERATIONS` to each image.

    The operation, its magnitude and its sign are drawn per image.
    """
    which, magnitude = _uniform(2, images, generator, torch.float64)
    operation = (which * 2 * len(OPERATIONS)).long()
    sign = 1 - 2 * (operation % 2)
    operation = operation // 2
    magnitude = (max_magnitude * magnitude * sign).to(images.dtype)
    images = images.clone()
    for number in operation.unique().tolist():
        rows = (operation == number).nonzero()[:, 0].to(images.device)
        values = magnitude[operation == number].to(images.device)
        images[rows] = OPERATIONS[number](images[rows], values).clamp(0, 1)
    return images


def _warp(
    images: torch.Tensor,
    angle: torch.Tensor | None = None,
    shear: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate, shear and shift each image about its centre, with mirrored borders.

    Args:
        images: [B, 3, H, W].
        angle: [B] degrees.
        shear: [B, 2] tangents along x and y.
        shift: [B, 2] pixels along x and y.
    """
    batch, _, height, width = images.shape
    nothing = images.new_zeros((batch, 2))
    middle = images.new_tensor([(width - 1) / 2, (height - 1) / 2]).expand(batch, 2)
    shear = nothing if shear is None else shear.atan()
    matrix = geometry.get_affine_matrix2d(
        nothing if shift is None else shift,
        middle,
        images.new_ones((batch, 2)),
        nothing[:, 0] if angle is None else angle,
        shear[:, 0],
        shear[:, 1],
    )
    size = (height, width)
    return geometry.warp_affine(images, matrix[:, :2], size, padding_mode="reflection")


def _along(axis: int, values: torch.Tensor) -> torch.Tensor:
    """[B] -> [B, 2] with `values` on one axis and 0 on the other."""
    return torch.stack([values, 0 * values] if axis == 0 else [0 * values, values], dim=1)


def _autocontrast(images: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to [0, 1]; a channel without contrast stays unchanged."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)


# The operations and ranges of the paper; m is in [-1, 1], and rand_augment uses a part of it.
OPERATIONS: tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], ...] = (
    lambda x, m: x,
    lambda x, m: _autocontrast(x),
    lambda x, m: enhance.equalize(x),
    lambda x, m: _warp(x, angle=30 * m),
    lambda x, m: _warp(x, shear=_along(0, 0.3 * m)),
    lambda x, m: _warp(x, shear=_along(1, 0.3 * m)),
    lambda x, m: _warp(x, shift=_along(0, 0.45 * m * x.shape[3])),
    lambda x, m: _warp(x, shift=_along(1, 0.45 * m * x.shape[2])),
    lambda x, m: enhance.adjust_brightness_accumulative(x, 1 + 0.9 * m),
    lambda x, m: enhance.adjust_contrast_with_mean_subtraction(x, 1 + 0.9 * m),
    lambda x, m: enhance.adjust_saturation_with_gray_subtraction(x, 1 + 0.9 * m),
    lambda x, m: enhance.sharpness(x, 1 + 0.9 * m),
    lambda x, m: enhance.solarize(x, 1 - m.abs()),
    lambda x, m: enhance.posterize(x, 8 - (4 * m.abs()).round().int()),
)

# --- mixtures of two images ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixed batch: image i shows itself and image `partner[i]`.

    Attributes:
        images: [B, 3, H, W] float in [0, 1].
        partner: [B] int64.
        share: [B] float in [0, 1], the share of image i in the mixture, and the weight of its own
            label in the loss; the rest belongs to its partner's label.
    """

    images: torch.Tensor
    partner: torch.Tensor
    share: torch.Tensor


def mixup(images: torch.Tensor, generator: torch.Generator) -> Mixture:
    """mixup (arXiv 1710.09412): shares drawn per image from Beta(0.2, 0.2).

    Args:
        images: [B, 3, H, W] float in [0, 1].
        generator: on the CPU; gives two numbers per image.
    """
    partner, uniform = torch.rand((2, len(images)), generator=generator, dtype=torch.float64)
    partner = partner.argsort().to(images.device)
    share = torch.from_numpy(special.betaincinv(0.2, 0.2, uniform.numpy())).to(images)
    own = share[:, None, None, None]
    return Mixture(own * images + (1 - own) * images[partner], partner, share)


def cutmix(images: torch.Tensor, generator: torch.Generator) -> Mixture:
    """CutMix (arXiv 1905.04899): a rectangle of each image shows another image of the batch.

    The rectangle's centre is uniform in the image. Its area, before clipping at the border, is a
    share of the image that is uniform in [0, 1].

    Args:
        images: [B, 3, H, W] float in [0, 1].
        generator: on the CPU; gives four numbers per image.
    """
    height, width = images.shape[2:]
    draws = torch.rand((4, len(images)), generator=generator, dtype=torch.float64)
    partner = draws[0].argsort().to(images.device)
    inside: Any = None
    for size, middle in ((height, draws[1]), (width, draws[2])):
        half = draws[3].sqrt() * size / 2
        low = (middle * size - half).round().clamp(0, size)
        high = (middle * size + half).round().clamp(0, size)
        position = torch.arange(size)
        along = (position >= low[:, None]) & (position < high[:, None])
        inside = along if inside is None else inside[:, :, None] & along[:, None]
    inside = inside[:, None].to(images.device)
    share = 1 - inside.to(images).mean((1, 2, 3))
    return Mixture(torch.where(inside, images[partner], images), partner, share)


def mix_one_of(mixes: Sequence[Mix], images: torch.Tensor, generator: torch.Generator) -> Mixture:
    """Mix each image in a way that is drawn per image from `mixes`."""
    mixtures = [mix(images, generator) for mix in mixes]
    which = torch.rand(len(images), generator=generator, dtype=torch.float64) * len(mixes)
    which = which.long().to(images.device)
    rows = torch.arange(len(images), device=images.device)

    def chosen(name):
        return torch.stack([getattr(each, name) for each in mixtures])[which, rows]

    return Mixture(chosen("images"), chosen("partner"), chosen("share"))


# --- by name ---------------------------------------------------------------------------------

AUGMENTATIONS: dict[str, Augmentation] = {
    "flip-rotate": flip_rotate,
    "randaugment": rand_augment,
    "trivialaugment": trivial_augment,
}
MIXES: dict[str, Mix] = {"cutmix": cutmix, "mixup": mixup}


def augment(names: Sequence[str], images: torch.Tensor, generator: Streams) -> Mixture:
    """Apply the named augmentations in the order given, then the named mixes.

    Args:
        names: from `AUGMENTATIONS` and `MIXES`; of several mixes, each image draws one.
        images: [B, 3, H, W] float in [0, 1].
        generator: on the CPU; without mixes, a generator per image is possible.
    """
    for name in names:
        if name in AUGMENTATIONS:
            images = AUGMENTATIONS[name](images, generator)
    mixes = [MIXES[name] for name in names if name in MIXES]
    if mixes:
        return mix_one_of(mixes, images, generator)
    nobody = torch.arange(len(images), device=images.device)
    return Mixture(images, nobody, images.new_ones(len(images)))
