"""Layouts: a photo's object, drawn again in another size, angle, place and colour."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from semantic_aug import UserError


@dataclass(frozen=True)
class Layouts:
    """The range of layouts; all off by default.

    Attributes:
        scale: smallest and largest factor of the object's size, drawn evenly in its logarithm.
        rotate: the largest turn of the object in degrees, either way.
        shift: its largest shift, as a share of the photo's width and height.
        mirror: half of the time, mirror the object and its place, left and right.
        colour: in [0, 1], the largest change of the object's hue, saturation and brightness.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0
    shift: float = 0.0
    mirror: bool = False
    colour: float = 0.0


@dataclass(frozen=True)
class Layout:
    """A layout of an object; unchanged by default.

    Attributes:
        scale: factor of its size.
        angle: degrees of its turn, counter-clockwise.
        shift: its shift to the right and down, in shares of the photo's width and height.
        mirror: first mirror photo and mask, left and right.
        colour: turn of the hue as a share of the circle, factors of saturation and brightness.
    """

    scale: float = 1.0
    angle: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    mirror: bool = False
    colour: tuple[float, float, float] = (0.0, 1.0, 1.0)

    def details(self) -> dict:
        """The layout as values of JSON, rounded so that they read well."""
        return {
            "scale": round(self.scale, 3),
            "angle": round(self.angle, 1) + 0.0,  # turns -0.0 into 0.0
            "shift": [round(part, 3) + 0.0 for part in self.shift],
            "mirror": self.mirror,
            "colour": [round(part, 3) + 0.0 for part in self.colour],
        }


def check_layouts(layouts: Layouts) -> None:
    """Raise UserError for impossible values, by the names of their flags."""
    low, high = layouts.scale
    if not 0 < low <= high < math.inf:
        raise UserError(
            f"--layout_scale: got {low} {high}, expected two factors above 0, the smaller first, "
            "such as 0.5 1.2"
        )
    for name, value, most, unit in (
        ("rotate", layouts.rotate, 180, "degrees"),
        ("shift", layouts.shift, 1, "as a share of the photo's sides"),
        ("colour", layouts.colour, 1, "where 0 leaves the colours alone"),
    ):
        if not 0 <= value <= most:
            raise UserError(f"--layout_{name}: got {value}, expected 0 to {most}, {unit}")


# --- what fits into the frame ----------------------------------------------------------------


class Extent(NamedTuple):
    """The extent of an object along an axis of its photo, in pixels.

    Attributes:
        start, end: of its pixels, `end` beyond the last.
        length: of the photo.
    """

    start: int
    end: int
    length: int

    @property
    def cut(self) -> tuple[bool, bool]:
        """Whether the photo's edges cut the object at its start, and at its end."""
        return self.start == 0, self.end == self.length

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2

    @property
    def fitting(self) -> float:
        """The largest scale that leaves the object whole, if it is not turned."""
        if all(self.cut):
            return 1.0  # a larger object would be cut further
        # Resampling widens free ends, by half a pixel before and half a pixel after it; at its own
        # size the object fits.
        free = self.cut.count(False)
        return max(1.0, (self.length - free) / (self.end - self.start + free / 2))

    def fitting_turned(self, reach: np.ndarray) -> float:
        """The largest scale that leaves the turned object whole, given its reach."""
        return max(1, self.length - 4) / (reach[1] - reach[0] + 1.5)  # turning widens it again


def extents_of(mask: np.ndarray) -> tuple[Extent, Extent] | None:
    """The object's extents along the photo's width and height; None without an object."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if columns.size == 0:
        return None
    height, width = mask.shape
    return (
        Extent(int(columns[0]), int(columns[-1]) + 1, width),
        Extent(int(rows[0]), int(rows[-1]) + 1, height),
    )


def turned_reach(mask: np.ndarray, extents: tuple[Extent, Extent], angle: float) -> np.ndarray:
    """The reach of a turned object from the middle of its box, [2 axes, 2 ends], in pixels."""
    across, down = extents
    rows = np.flatnonzero(mask.any(axis=1))
    first, last = mask[rows] != 0, mask[rows, ::-1] != 0
    left, right = first.argmax(axis=1), mask.shape[1] - last.argmax(axis=1)
    x = np.concatenate([left, right, left, right]) - across.middle
    y = np.concatenate([rows, rows, rows + 1, rows + 1]) - down.middle
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turned = np.stack([cosine * x + sine * y, cosine * y - sine * x])
    return np.stack([turned.min(axis=1), turned.max(axis=1)], axis=1)


def can_fit(layouts: Layouts, mask: np.ndarray) -> bool:
    """Whether a layout of the range exists that cuts nothing more off the object.

    Args:
        mask: uint8 [H, W], nonzero on the object.
    """
    extents = extents_of(mask)
    if extents is None:
        return True
    if any(all(extent.cut) for extent in extents):
        return True  # it keeps its size
    return layouts.scale[0] <= min(extent.fitting for extent in extents)


def draw_layout(layouts: Layouts, mask: np.ndarray, generator: torch.Generator) -> Layout:
    """A layout that cuts nothing off the object.

    The photo bounds the layout: a turned object may become smaller than `scale`, and an enlarged
    object may move further than `shift`. An object at the photo's edge was cut there. It stays at
    this edge (mirrored, at the opposite edge): it does not turn, and moves only along the edge.
    Between two opposite edges it keeps its size.

    Args:
        mask: uint8 [H, W], nonzero on the object.
        generator: of the CPU. It always draws eight numbers, so that a further setting does not
            change the others.
    """
    drawn = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
    size, turn, across, down, side, hue, saturation, brightness = drawn
    mirror = layouts.mirror and side < 0.5
    colour = (
        layouts.colour * (hue - 0.5),
        2 ** (layouts.colour * (2 * saturation - 1)),
        1.6 ** (layouts.colour * (2 * brightness - 1)),
    )
    angle = layouts.rotate * (2 * turn - 1)
    if mirror:
        mask = mask[:, ::-1]
    extents = extents_of(mask)
    if extents is None:  # nothing can be cut off
        shift = (layouts.shift * (2 * across - 1), layouts.shift * (2 * down - 1))
        return Layout(between(*layouts.scale, size), angle, shift, mirror, colour)
    if any(any(extent.cut) for extent in extents):
        angle = 0.0
    reach = turned_reach(mask, extents, angle)
    low, high = layouts.scale
    fitting = min(extent.fitting for extent in extents)
    if angle:
        fitting = min(extent.fitting_turned(ends) for extent, ends in zip(extents, reach))
    if any(all(extent.cut) for extent in extents):
        low = fitting  # a smaller object would leave a gap
    scale = between(min(low, fitting), min(max(low, high), fitting), size)
    shift = (
        shift_within(extents[0], reach[0] * scale, layouts.shift, across),
        shift_within(extents[1], reach[1] * scale, layouts.shift, down),
    )
    return Layout(scale, angle, shift, mirror, colour)


def between(low: float, high: float, share: float) -> float:
    """The number at a share of the way from `low` to `high`, on a logarithmic scale."""
    return low * (high / low) ** share


def shift_within(extent: Extent, reach: np.ndarray, most: float, share: float) -> float:
    """The shift at a share of the way from -`most` to `most`, bounded by the frame.

    Args:
        reach: of the drawn object, from the middle of its box, [2 ends] in pixels.
    """
    if any(extent.cut):
        return 0.0
    room = (-extent.middle - reach[0], extent.length - extent.middle - reach[1])
    first, last = (
        min(max(end, room[0] / extent.length), room[1] / extent.length) for end in (-most, most)
    )
    return float(first + share * (last - first))


# --- drawing ---------------------------------------------------------------------------------


def cut_out(
    photo: Image.Image, mask: np.ndarray, layout: Layout
) -> tuple[Image.Image, Image.Image]:
    """The object of a photo, drawn by a layout, on a canvas of the photo's size.

    If the layout does not move the object, pixels are not resampled. Otherwise colours and mask are
    resampled together, colours weighted by the mask, so that no colour of the old place remains. An
    object that fits into the frame always lies within it: the frame limits the shift.

    Args:
        photo: RGB.
        mask: uint8 [H, W], nonzero on the object.

    Returns:
        The object's colours (RGB), which are valid where alpha is above 0, and alpha (`L`).
    """
    alpha = Image.fromarray((mask != 0).astype(np.uint8) * 255)
    if layout.mirror:
        photo, alpha, mask = ImageOps.mirror(photo), ImageOps.mirror(alpha), mask[:, ::-1]
    extents = extents_of(mask)
    moved = (layout.scale, layout.angle, *layout.shift) != (1, 0, 0, 0)
    if extents is None or not moved:
        return recoloured(photo, layout.colour), alpha
    # A rim of as many transparent pixels as one output pixel covers makes the edge soft; a cut edge
    # gets no rim and stays as hard as the photo's edge.
    rim = 1 + math.ceil(1 / layout.scale)
    across, down = (
        (extent.start - rim * (not extent.cut[0]), extent.end + rim * (not extent.cut[1]))
        for extent in extents
    )
    box = (across[0], down[0], across[1], down[1])
    piece = recoloured(photo.crop(box), layout.colour)
    piece.putalpha(alpha.crop(box))
    piece = piece.convert("RGBa")  # colours weighted by alpha
    if layout.scale != 1:
        width, height = (max(1, round(layout.scale * length)) for length in piece.size)
        # Bicubic would overshoot at the mask's edge, and brighten the object's rim.
        piece = piece.resize((width, height), Image.Resampling.HAMMING)
    if layout.angle:
        piece = piece.rotate(layout.angle, Image.Resampling.BILINEAR, expand=True)
    piece = piece.convert("RGBA")
    canvas = Image.new("RGBA", photo.size)
    inked = piece.getchannel("A").getbbox()
    if inked:
        canvas.paste(
            piece,
            (
                position(extents[0], piece.width, (inked[0], inked[2]), layout.shift[0]),
                position(extents[1], piece.height, (inked[1], inked[3]), layout.shift[1]),
            ),
        )
    return canvas.convert("RGB"), canvas.getchannel("A")


def position(extent: Extent, length: int, inked: tuple[int, int], shift: float) -> int:
    """The start of a piece along an axis of the frame, in pixels.

    Args:
        length: of the piece.
        inked: start and end of its object within the piece.
        shift: of its middle, as a share of the frame.
    """
    if extent.cut[0]:
        return 0
    if extent.cut[1]:
        return extent.length - length
    start = round(extent.middle + shift * extent.length - length / 2)
    return min(max(start, -inked[0]), extent.length - inked[1])


# --- colour ----------------------------------------------------------------------------------

# From luma and two axes of colour to red, green and blue: YIQ of NTSC.
FROM_YIQ = np.array([[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.106, 1.703]])
TINT_PER_TURN, TINT_MOST = 1.5, 0.3  # colour per luma


def recoloured(image: Image.Image, colour: tuple[float, float, float]) -> Image.Image:
    """An RGB image with its hue turned, saturation and brightness multiplied, and a tint.

    Turning the hue does not change grey, so a tint of the same luma is added. It is half as strong
    as the turn, and its hue runs through the circle three times as fast, so that small turns
    differ.
    """
    if colour == (0, 1, 1):
        return image.copy()
    hue, saturation, brightness = colour
    turn = 2 * math.pi * hue
    tint = min(TINT_MOST, TINT_PER_TURN * abs(hue))
    turned = np.array(
        [
            [1, 0, 0],
            [tint * math.cos(3 * turn), saturation * math.cos(turn), -saturation * math.sin(turn)],
            [tint * math.sin(3 * turn), saturation * math.sin(turn), saturation * math.cos(turn)],
        ]
    )
    matrix = brightness * FROM_YIQ @ turned @ np.linalg.inv(FROM_YIQ)
    return image.convert("RGB", tuple(np.pad(matrix, ((0, 0), (0, 1))).ravel().tolist()))
