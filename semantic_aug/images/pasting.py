"""Places for objects: painting over a photo's own object, and setting an object into a place."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps
from scipy import fft, ndimage

SIDE = 96  # pixels: the longest side of the photo while pieces are chosen
GROWTH = 0.13  # growth of a hole beyond its object, as a share of the object's size
BELOW = 0.08  # further growth below the object, where shadows lie
BAND = 3  # pixels around a hole in which the fit of a piece is measured
HEIGHT = 2.0  # extra cost of a piece per height of the photo that it moves up or down
PRICE = 0.02  # of a piece, in variances of the photo; a higher price gives fewer, larger pieces
LEAST = 0.01  # smallest share of the hole that a piece must fill
PIECES = 16  # at most
SHADING = 25.0  # of 255: the largest change of a piece's brightness at its border
SHADOW = 0.05  # reach of an object's shadow, as a share of the object's size


# --- painting an object over -----------------------------------------------------------------


def emptied(photo: Image.Image, mask: np.ndarray) -> Image.Image:
    """A photo with its object, and the shadow around it, painted over.

    Pieces of the photo itself fill the hole. So it has the photo's grain, and no smooth spot shows
    the object's old place. Pixels far from the object do not change.

    Args:
        photo: RGB.
        mask: uint8 [H, W], nonzero on the object.
    """
    shrink = max(1.0, max(photo.size) / SIDE)
    width, height = (max(1, round(length / shrink)) for length in photo.size)
    x, y = photo.width / width, photo.height / height
    shown = Image.fromarray((mask != 0).astype(np.uint8) * 255)
    shown = shown.resize((width, height), Image.Resampling.BOX)
    small = np.asarray(photo.resize((width, height), Image.Resampling.BOX), np.float64)
    result, pixels = photo.copy(), np.asarray(photo)
    for region, shift, shading in pieces(small, hole_around(np.asarray(shown) > 0)):
        left, top, right, bottom = Image.fromarray(region).getbbox() or (0, 0, *region.shape[::-1])
        box = (  # a pixel wider, for the soft edge of an enlarged mask
            max(0, int((left - 1) * x)),
            max(0, int((top - 1) * y)),
            min(photo.width, int((right + 1) * x)),
            min(photo.height, int((bottom + 1) * y)),
        )
        if shift is None:
            filling = enlarged(shading, box, photo.size)
        else:
            rows = np.arange(box[1], box[3]) + round(shift[0] * y)
            columns = np.arange(box[0], box[2]) + round(shift[1] * x)
            copied = pixels.take(rows, 0, mode="clip").take(columns, 1, mode="clip")
            shades = enlarged(shading + 128, box, photo.size)
            filling = ImageChops.add(Image.fromarray(copied), shades, offset=-128)
        result.paste(filling, box[:2], enlarged(region * 255.0, box, photo.size))
    return result


def enlarged(
    values: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]
) -> Image.Image:
    """A box of an image in [0, 255], after the image is enlarged to `size` (width, height)."""
    image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    x, y = image.width / size[0], image.height / size[1]
    part = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    target = (box[2] - box[0], box[3] - box[1])
    return image.resize(target, Image.Resampling.BILINEAR, part)


def hole_around(region: np.ndarray) -> np.ndarray:
    """The hole of an object: the object, its rim and its shadow, bool [H, W]."""
    if not region.any():
        return region
    region = ndimage.binary_fill_holes(region)
    length = region.sum() ** 0.5
    below = np.zeros_like(region)
    drop = round(BELOW * length)
    below[drop:] = region[: len(region) - drop]
    return ndimage.distance_transform_edt(~(region | below)) <= max(2, GROWTH * length)


class Piece(NamedTuple):
    """A piece, which fills a part of a hole.

    Attributes:
        region: bool [H, W], the place of the piece. It reaches a little beyond its part of the
            hole, because the edges of masks are soft; later pieces lie on top.
        shift: rows down and columns to the right from the region to the copied pixels; None for a
            smooth filling, if no pixels can be copied.
        shading: [H, W, 3], added to the copied pixels, in [-25, 25]; or the smooth filling itself.
    """

    region: np.ndarray
    shift: tuple[int, int] | None
    shading: np.ndarray


def pieces(photo: np.ndarray, hole: np.ndarray) -> Iterator[Piece]:
    """Pieces of a photo that together fill a hole, in the order of laying.

    A piece is the photo, laid over itself by the shift that fits best around the rest of the hole,
    and shaded to meet its border (as in seamless cloning, Perez et al. 2003).

    Args:
        photo: [H, W, 3] in [0, 255].
        hole: bool [H, W].
    """
    known, filled, hole = ~hole, photo.copy(), hole.copy()
    costs = shift_costs(photo, known)
    for _ in range(PIECES):
        shift = cheapest(costs(filled, hole)) if hole.any() else None
        if shift is None:
            break
        copied, valid = laid_over(photo, shift), laid_over(known, shift)
        border = ndimage.binary_dilation(hole & valid) & ~hole & valid
        difference = np.clip(filled - copied, -SHADING, SHADING) * border[..., None]
        shading = spread(difference, border)
        yield Piece(hole & ndimage.binary_dilation(valid, iterations=2), shift, shading)
        filled[hole & valid] = (copied + shading)[hole & valid]
        hole &= ~valid
    if hole.any():
        yield Piece(hole, None, spread(filled, ~hole))


def shift_costs(
    photo: np.ndarray, known: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The cost of each shift from a hole to the known pixels of a photo.

    Args:
        photo, known: [H, W, 3] and bool [H, W], the pixels that may be copied.

    Returns:
        A function of the photo, filled so far, and the rest of its hole. It gives the costs of all
        shifts, [2H - 1, 2W - 1], from (1 - H, 1 - W) on: the squared differences in the band
        around the hole, divided by the share of the hole that the shift can fill; infinite if the
        shift fills next to nothing.
    """
    height, width = known.shape
    span = 2 * height - 1, 2 * width - 1
    padded = [fft.next_fast_len(length, real=True) for length in span]

    def spectra(*layers: np.ndarray) -> np.ndarray:
        return fft.rfft2(np.stack(layers).astype(np.float64), padded)

    mean = photo[known].mean(axis=0) if known.any() else np.zeros(3)
    there = (photo - mean) * known[..., None]
    variance = (there**2).sum() / max(1, known.sum())
    of_known = spectra(known, (there**2).sum(axis=2), *np.moveaxis(there, 2, 0))

    def costs(filled: np.ndarray, hole: np.ndarray) -> np.ndarray:
        band = ndimage.binary_dilation(hole, iterations=BAND) & ~hole
        here = (filled - mean) * band[..., None]
        layers = (hole, band, (here**2).sum(axis=2), *np.moveaxis(here, 2, 0))
        # Mirrored, so that products of spectra are correlations: sums over p of a[p] b[p + shift].
        holes, bands, squares, *colours = spectra(*(layer[::-1, ::-1] for layer in layers))
        products = sum(one * other for one, other in zip(colours, of_known[2:]))
        correlated = np.stack(
            [
                holes * of_known[0],
                bands * of_known[0],
                squares * of_known[0] + bands * of_known[1] - 2 * products,
            ]
        )
        covered, compared, difference = fft.irfft2(correlated, padded)[:, : span[0], : span[1]]
        unknown = band.sum() - compared
        cost = (difference + unknown * variance) / max(1, band.sum()) + PRICE * variance
        cost *= 1 + HEIGHT * np.abs(np.arange(1 - height, height))[:, None] / height
        share = covered / hole.sum()
        return np.where(share > LEAST, cost / np.maximum(share, LEAST), np.inf)

    return costs


def cheapest(costs: np.ndarray) -> tuple[int, int] | None:
    """The cheapest shift, as rows down and columns to the right; None if all costs are infinite."""
    row, column = np.unravel_index(costs.argmin(), costs.shape)
    if not np.isfinite(costs[row, column]):
        return None
    return int(row) - costs.shape[0] // 2, int(column) - costs.shape[1] // 2


def laid_over(values: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """values[p + shift] for every pixel p, and zero outside."""
    down, across = shift
    height, width = values.shape[:2]
    result = np.zeros_like(values)
    result[max(0, -down) : height - max(0, down), max(0, -across) : width - max(0, across)] = (
        values[max(0, down) : height + min(0, down), max(0, across) : width + min(0, across)]
    )
    return result


def spread(values: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Values for all pixels from some: means weighted by the distance cubed (Shepard 1968).

    Args:
        values: [H, W, 3].
        given: bool [H, W], the known values; without any, all pixels get the mean.
    """
    if not given.any():
        return np.broadcast_to(values.mean(axis=(0, 1)), values.shape)
    height, width = given.shape
    rows, columns = np.ogrid[1 - height : height, 1 - width : width]
    weights = np.maximum(rows**2 + columns**2, 0.1) ** -1.5
    padded = [fft.next_fast_len(2 * length - 1, real=True) for length in given.shape]
    layers = np.concatenate([values * given[..., None], given[..., None]], axis=2)
    spectra = fft.rfft2(layers, padded, axes=(0, 1)) * fft.rfft2(weights, padded)[..., None]
    sums = fft.irfft2(spectra, padded, axes=(0, 1))
    sums = sums[height - 1 : 2 * height - 1, width - 1 : 2 * width - 1]
    return sums[..., :3] / sums[..., 3:]


# --- setting an object into a place ----------------------------------------------------------


def on_place(
    cutout: tuple[Image.Image, Image.Image], place: Image.Image, shadow: float = 0.4
) -> Image.Image:
    """An object set into a place, its edge softened by a pixel, its shadow beneath it.

    Args:
        cutout: the object's colours (RGB) and alpha (`L`), see `layout.cut_out`.
        place: RGB, of their size.
        shadow: in [0, 1], the share of light that is missing in the deepest shadow; 0 for none.
    """
    colours, alpha = cutout
    # The edge is softened only inwards: outside, the colours are not the object's.
    soft = ImageChops.darker(alpha, alpha.filter(ImageFilter.BoxBlur(1)))
    return Image.composite(colours, shaded(place, alpha, shadow), soft)


def shaded(place: Image.Image, alpha: Image.Image, strength: float) -> Image.Image:
    """A place with the soft shadow beneath an object; see `on_place`."""
    box = alpha.getbbox()
    if box is None or strength == 0:
        return place
    width, height = box[2] - box[0], box[3] - box[1]
    reach = SHADOW * (width * height) ** 0.5
    # The shadow grows from nothing at the object's top to full strength at its bottom.
    slope = Image.linear_gradient("L").resize((width, height))
    thrown = ImageChops.multiply(alpha.crop(box), slope)
    dark = Image.new("L", alpha.size)
    dark.paste(
        thrown.point([round(strength * value) for value in range(256)]),
        (box[0], box[1] + round(reach)),
    )
    dark = dark.filter(ImageFilter.GaussianBlur(reach))
    return Image.composite(Image.new("RGB", place.size), place, dark)


def fill_frame(place: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A place cropped about its middle to the shape of `size` (width, height), and resized."""
    return ImageOps.fit(place, size, Image.Resampling.BICUBIC)
