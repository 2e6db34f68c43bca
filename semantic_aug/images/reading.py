"""Image files of any kind -> upright RGB images in sRGB, and tensors."""

import contextlib
import errno
import functools
import io
import os
import re
import stat
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from semantic_aug import UserError, first_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


# --- listing folders -------------------------------------------------------------------------


def image_names_in(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[str]:
    """The names of the image files directly in `folder`, sorted, without hidden files.

    Raises:
        UserError: the folder cannot be read, or a name is not valid UTF-8, as records need.
    """
    return names_in(folder, suffixes)[0]


def names_in(folder: Path, suffixes: Collection[str]) -> tuple[list[str], list[str]]:
    """The names of image files and of folders directly in `folder`; see `image_names_in`."""
    images, folders = [], []
    for entry in entries_in(folder):
        name = entry.name
        if is_folder(entry):
            folders.append(name)
        elif name[name.rfind(".") :].lower() in suffixes:
            images.append(name)
    try:
        "".join(images).encode()
    except UnicodeEncodeError as error:  # a name of another encoding
        name = next(name for name in sorted(images) if re.search("[\ud800-\udfff]", name))
        raise UserError(f"{folder}: the name {name!r} is not valid UTF-8: rename it") from error
    return sorted(images), sorted(folders)


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """Every suffix of photos that Pillow reads here, in lower case, with its dot."""
    _load_plugins()
    formats = Image.registered_extensions().items()
    found = {suffix for suffix, name in formats if name in Image.OPEN and name not in _NO_PHOTOS}
    return frozenset({*IMAGE_SUFFIXES, *found, ".mpo"})  # MPO is read as JPEG


# Formats that Pillow only identifies, or reads with other programs; icons and brushes; and suffixes
# that mostly mean something else, such as point clouds (.pcd).
_NO_PHOTOS = {
    "BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF", "CUR", "GBR", "ICNS", "ICO", "PCD",
}  # fmt: skip


@functools.cache
def _load_plugins() -> None:
    """Register HEIC, if Pillow's plug-in for HEIC is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def entries_in(folder: Path) -> list[os.DirEntry]:
    """The entries of a folder without hidden names; empty if it is no folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be read: {error.strerror}; you need permission to list it"
        ) from error


def is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


# --- reading images --------------------------------------------------------------------------


BITS_HELP = "for files of more than 8 bits, --dataset_args bits=12 gives the number of used bits"


def read_image(path: str | Path, bits: int | None = None) -> Image.Image:
    """An image file of any mode, upright and in sRGB; transparent parts become white.

    Args:
        bits: the number of used bits in images of more than 8 bits, if the file does not tell this
            number; see `FewShotDataset`.

    Raises:
        UserError: the file is missing, empty, truncated, or no image.
    """
    with open_image(path) as image:
        values, white = _load(path, image, bits)
        return _upright_srgb(image, values, white)


def opened_image(image: Image.Image) -> Image.Image:
    """A PIL image in the form that `read_image` returns."""
    image = image.copy()  # loads it, and does not change the caller's image
    return _upright_srgb(image, image, None)


def _upright_srgb(image: Image.Image, values: Image.Image, white: float | None) -> Image.Image:
    rgb = upright(_in_srgb(values, white, image.info.get("icc_profile")), orientation_of(image))
    rgb.info = {}  # with its EXIF, other programs would turn the image again
    return rgb


def check_image(path: str | Path, bits: int | None = None) -> str:
    """Raise UserError unless `read_image` would succeed; cheaper for large JPEG files.

    Returns:
        The result of `brightness_doubt`.
    """
    with open_image(path) as image:
        # The JPEG decoder can reduce to an eighth at most.
        image.draft("RGB", (max(image.width // 8, 1), max(image.height // 8, 1)))
        return brightness_doubt(path, image, bits)


def brightness_doubt(path: str | Path, image: ImageFile, bits: int | None = None) -> str:
    """The reason to doubt the brightness of an image, or "".

    Args:
        image: `path`, opened and not loaded yet; it is loaded here.
        bits: see `read_image`.
    """
    is_deep = image.mode in ("I", "F") or ";16" in image.mode or _raw_mode(image) in _SWAPPED
    values, white = _load(path, image, bits)
    extrema: Any = to_rgb(values, white).getextrema()
    darkest, brightest = min(low for low, _ in extrema), max(high for _, high in extrema)
    found = f"({darkest} to {brightest} of 255)"
    if brightest <= (64 if is_deep else 16):  # 14 or 12 bits in 16, taken for 16
        return f"almost black {found}"
    if darkest >= 239:
        return f"almost white {found}"
    if image.mode == "F" and white is None:
        largest = np.nanmax(np.asarray(values))
        if 1 < largest <= OVERSHOOT:
            return f"float values up to {largest:.4g}, where 1.0 is taken for white"
    return ""


def read_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file, upright, without decoding it."""
    with open_image(path) as image:
        # Pillow gives the upright size of a TIFF, and the stored size of all others.
        turned = image.format != "TIFF" and orientation_of(image) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def open_bytes(path: str | Path) -> io.BufferedReader:
    """Open a file, or an object that opens like a file, for reading.

    Raises:
        OSError: also if it is no regular file: opening a FIFO could wait for ever.
    """
    if not isinstance(path, str | os.PathLike):
        return path.open("rb")
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        kind = next((what for is_kind, what in _KINDS if is_kind(mode)), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, expected a regular file", str(path))
    return open(path, "rb")


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextlib.contextmanager
def open_image(path: str | Path, what: str = "image") -> Iterator[ImageFile]:
    """Open an image file; any error inside the block becomes a UserError."""
    _load_plugins()
    try:
        with open_bytes(path) as file, Image.open(file) as image:
            yield image
    except Exception as error:  # decoders raise errors of any kind on broken files
        raise UserError(f"cannot read {what} {path}: {_reason(path, error)}") from error


# EXIF orientation -> the operation that makes the stored pixels upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # the pixels of a file with a broken EXIF block may be good
        return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    # Not ImageOps.exif_transpose, which fails if it cannot write the rest of the EXIF again.
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _reason(path: str | Path, error: Exception) -> str:
    if isinstance(path, str | os.PathLike):
        if not Path(path).exists():
            return "no such file"
        if Path(path).is_file() and Path(path).stat().st_size == 0:
            return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "no image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)


def to_rgb(image: Image.Image, white: float | None = None) -> Image.Image:
    """RGB of an image of any mode. Grey of more than 8 bits is scaled to 8 bits, not clipped.

    Args:
        white: the value of white in grey of more than 8 bits; default guessed from the values.
    """
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        white = white or _usual_white(image.mode, values.max(initial=0))
        return Image.fromarray(_in_8_bits(values, white)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _in_8_bits(values: np.ndarray, white: float) -> np.ndarray:
    return (values * 255 / white).round().clip(0, 255).astype(np.uint8)


# --- images of more than 8 bits --------------------------------------------------------------

OVERSHOOT = 2  # largest value of a float image whose white is 1.0, after resizing or sharpening


def _usual_white(mode: str, brightest: float) -> float:
    if mode.startswith("I;16"):
        return 65535
    if mode == "F" and brightest <= OVERSHOOT:
        return 1
    return 65535 if brightest > 255 else 255


def _load(path: str | Path, image: ImageFile, bits: int | None) -> tuple[Image.Image, float | None]:
    """Load an image that was opened from `path`; also give its value of white, None if unknown.

    Pillow keeps only the upper bytes of 16-bit colours, which are nearly black if fewer bits are
    used. If white is known, the lower bytes are read too, by decoding in the other byte order.
    """
    white = _declared_white(image) or (2**bits - 1 if bits else None)
    swapped = _SWAPPED.get(_raw_mode(image) or "") if white else None
    image.load()
    if swapped is None or white is None:
        return image, white
    with open_image(path) as again:
        again.tile = [tile._replace(args=_with_raw_mode(tile.args, swapped)) for tile in again.tile]
        again.load()
        lower = np.asarray(again, dtype=np.uint16)
    pixels = np.array(image)
    values = pixels[..., :3].astype(np.uint16) << 8 | lower[..., :3]
    pixels[..., :3] = _in_8_bits(values.astype(np.float64), white)
    return Image.fromarray(pixels), white


def _declared_white(image: ImageFile) -> float | None:
    """The value of white in a deep image, if its file tells it; the image is not loaded yet."""
    if image.format == "PPM" and image.tile[0].codec_name != "raw":
        return 65535  # Pillow scales by the file's own maximum
    tags = getattr(image, "tag_v2", {})
    if tags.get(BITS_PER_SAMPLE) == (12,):
        return 4095
    for tag in (MAX_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE):
        try:
            white = float(np.max(tags.get(tag, 0)))
        except (TypeError, ValueError):  # a broken tag counts as absent
            continue
        # Some programs write the brightest value of the image there, which is not white.
        is_limit = white in (2.0**bits - 1 for bits in range(1, 33))
        if is_limit and (image.mode == "F" or 255 < white < 65535):
            return white
    return None


BITS_PER_SAMPLE, MAX_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE = 258, 281, 341  # TIFF 6.0, sections 8, 19

# How Pillow decodes colours of 16 bits -> the decoding that gives the other byte.
_SWAPPED = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in (("L", "B"), ("B", "L"), ("N", "B" if sys.byteorder == "little" else "L"))
}


def _raw_mode(image: ImageFile) -> str | None:
    """Pillow's name for the storage of pixels in an image that is not loaded yet."""
    args = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in image.tile]
    modes = {next(iter(each), None) for each in args}
    return modes.pop() if len(modes) == 1 else None


def _with_raw_mode(args: Any, mode: str) -> str | tuple:
    return mode if isinstance(args, str) else (mode, *args[1:])


# --- colour profiles -------------------------------------------------------------------------


class Conversion(NamedTuple):
    """A transform of images of `mode`, from the colours of an ICC profile to sRGB."""

    mode: str
    transform: Any


def _in_srgb(image: Image.Image, white: float | None, profile: bytes | None) -> Image.Image:
    """`to_rgb`, with colours converted to sRGB by the file's ICC profile."""
    conversion = _conversion(profile) if profile else None
    if conversion is None:
        return to_rgb(image, white)
    if conversion.mode == "CMYK" == image.mode:
        return conversion.transform.apply(image)
    rgb = to_rgb(image, white)
    if conversion.mode == "RGB" and image.mode != "CMYK":
        return conversion.transform.apply(rgb)
    if conversion.mode == "L" and (
        image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
    ):
        return conversion.transform.apply(rgb.getchannel("R"))
    return rgb


@functools.lru_cache(maxsize=64)
def _conversion(profile: bytes) -> Conversion | None:
    """The transform to sRGB; None for sRGB itself, and for profiles that cannot be used.

    The effect of a profile counts, not its name, because sRGB has many versions: a profile that
    moves no colour by more than 2 of 255 is sRGB.
    """
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
        srgb = ImageCms.createProfile("sRGB")
        # LittleCMS would replace grey curves by coarse tables, up to 10 of 255 apart.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", flags=flags)
        if mode == "CMYK":
            return Conversion(mode, transform)
        steps = np.arange(0, 256, 15, dtype=np.uint8)  # includes both ends
        grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(len(steps), -1, 3)
        colours = Image.fromarray(grid)
        probe = colours if mode == "RGB" else colours.getchannel("R")
        moved = np.abs(np.asarray(transform.apply(probe), int) - np.asarray(probe.convert("RGB")))
    except Exception:  # the pixels of a file with a broken profile may be good
        return None
    return Conversion(mode, transform) if moved.max() > 2 else None


def image_to_tensor(image: Image.Image, size: int | tuple[int, int]) -> torch.Tensor:
    """A PIL RGB image, resized to `size` (side, or height and width), [3, H, W] in [-1, 1]."""
    return pixels_to_tensor(resized_pixels(image, size))


def resized_pixels(image: Image.Image, size: int | tuple[int, int]) -> np.ndarray:
    """A PIL RGB image resized to `size` (side, or height and width): uint8 [H, W, 3]."""
    height, width = (size, size) if isinstance(size, int) else size
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))


def pixels_to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pixels).movedim(-1, -3).float() / 127.5 - 1
