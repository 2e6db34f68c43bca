"""Outlines in COCO's annotation files: most of the text, read only when a mask is needed."""

import json
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pycocotools.mask

from semantic_aug import UserError


def outline_in(file: BinaryIO, segmentation: list | dict | str | None) -> list | dict | str | None:
    """The outline of a `Photo.segmentation`; None if the file has changed.

    Raises:
        ValueError: the outline is no JSON.
    """
    if not (isinstance(segmentation, list) and [type(each) for each in segmentation] == [int, int]):
        return segmentation
    offset, length = segmentation
    file.seek(offset)
    key, _, text = file.read(length).partition(b":")
    return json.loads(text) if key.strip() == _KEY else None


_KEY = b'"segmentation"'
# A segmentation whose end is visible without parsing: numbers in brackets, a flat object (a
# run-length encoding), or a list of such objects; then the object's end or its next key.
_FLAT = rb'\{ [^{}"]*+ (?: "(?:[^"\\]|\\.)*+" [^{}"]*+ )*+ \}'
_SEGMENTATION = re.compile(
    rb"""
    "segmentation" (?<! \\"segmentation") \s*:\s*
    (?: \[ [^"{}]* \] | %(flat)s | \[ \s* %(flat)s (?: \s*,\s* %(flat)s )*+ \s* \] )
    (?= \s* (?: \} | ,\s* "(?:[^"\\]|\\.)*+" \s*: ))
    """
    % {b"flat": _FLAT},
    re.VERBOSE,
)


def without_outlines(path: Path, chunk_size: int = 1 << 23) -> str:
    """The text of an annotation file with `[offset, length]` in place of every segmentation.

    A quarter of the text remains, and is JSON if the file is. Malformed values stay; they are
    reported when their mask is read.
    """
    kept, text, start = bytearray(), b"", 0  # `text` is still to do, and lies at `start`
    with open(path, "rb") as file:
        while chunk := file.read(chunk_size):
            text, done = text + chunk, 0
            for match in _SEGMENTATION.finditer(text):
                begin, end = match.span()
                kept += text[done:begin]
                # Short values may be empty, [] or {}, which means no mask.
                if end - begin < 24 and not re.search(rb"\d", match[0]):
                    kept += _KEY + b":null"
                else:
                    kept += b'"segmentation":[%d,%d]' % (start + begin, end - begin)
                done = end
            # The value of the last key, or the rest of a key, may lie in the next text.
            last = text.rfind(_KEY, done)
            rest = max(done, (len(text) - len(_KEY) if last < 0 else last) - 1)
            kept += text[done:rest]
            text, start = text[rest:], start + rest
    return (kept + text).decode("utf-8-sig")


def decode_segmentation(
    segmentation: Any, height: int, width: int, name: str = "a photo"
) -> np.ndarray:
    """The [height, width] uint8 mask, 0 or 1, of polygons or of run-length encodings.

    Args:
        segmentation: polygons, each as x, y, x, y ...; or `{"size", "counts"}` with the counts as
            numbers or compressed to a string; or a list of such encodings.
        name: of the photo, for the message.

    Raises:
        UserError: the outline is malformed.
    """
    try:
        if isinstance(segmentation, dict):
            return pycocotools.mask.decode(_encoding(segmentation, height, width))
        if segmentation and all(isinstance(part, dict) for part in segmentation):
            encoded = [_encoding(part, height, width) for part in segmentation]
            if any(list(each["size"]) != [height, width] for each in encoded):
                raise ValueError("the size of an encoding is not the photo's")
            return pycocotools.mask.decode(pycocotools.mask.merge(encoded))
        if not all(isinstance(part, list) for part in segmentation):
            raise ValueError("expected polygons, or run-length encodings")
        # Two points enclose nothing, and pycocotools would take them for a box.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return np.zeros((height, width), np.uint8)
        if not np.all(np.abs(np.concatenate(polygons).astype(float)) < 1e5):
            raise ValueError("a point lies far outside the photo")
        encoded = pycocotools.mask.frPyObjects(polygons, height, width)
        return pycocotools.mask.decode(pycocotools.mask.merge(encoded))
    except Exception as error:  # pycocotools raises bare Exception too
        raise UserError(f"malformed segmentation of {name} in COCO's file: {error}") from error


def _encoding(segmentation: dict, height: int, width: int) -> dict:
    """A run-length encoding in the compressed form of pycocotools."""
    counts = segmentation["counts"]
    if not isinstance(counts, list):
        return segmentation
    # Fewer pixels than the photo has would leave the rest of the mask undefined.
    if sum(counts) != height * width:
        raise ValueError("its counts do not add up to the photo")
    return pycocotools.mask.frPyObjects(segmentation, height, width)
