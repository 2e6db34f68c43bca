"""Pictures that a classifier sees many times: decoded once if they fit into memory.

Otherwise worker threads decode them each time, a few batches ahead.
"""

import functools
import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image

from semantic_aug import UserError
from semantic_aug.experiment.digests import file_digests
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.images.contents import pixel_digest
from semantic_aug.images.reading import read_image, resized_pixels, to_rgb

AHEAD = 64  # pictures that are decoded in advance
MEGABYTE = 2**20


def pixels_of(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """An RGB image as a classifier sees it, resized to height and width: uint8 [3, H, W]."""
    return torch.from_numpy(resized_pixels(image, size)).permute(2, 0, 1)


class Images:
    """Photos of a dataset and synthetic variants, all resized to the same size.

    Args:
        dataset: the dataset of the photos.
        items: for each picture an index into the dataset, a path, or a PIL image.
        size: height and width in pixels.
        memory: megabytes for decoded pictures; if all together need more, `hold` keeps none.
        workers: number of decoding threads; default the number of cores, at most 16. A dataset with
            its own `get_image_by_idx` always gets a single thread.
    """

    def __init__(
        self,
        dataset: FewShotDataset,
        items: Sequence[int | Path | Image.Image],
        size: tuple[int, int],
        memory: float = 0,
        workers: int | None = None,
    ):
        self.dataset, self.items, self.size = dataset, list(items), size
        # A subclass's own way of reading may not be thread-safe.
        own_reader = type(dataset).get_image_by_idx is not FewShotDataset.get_image_by_idx
        self._workers = 1 if own_reader else workers or min(os.cpu_count() or 1, 16)
        self._fit = len(self.items) * 3 * size[0] * size[1] <= memory * MEGABYTE
        self._held: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.items)

    def read(self, number: int) -> torch.Tensor:
        """A picture as uint8 [3, H, W], decoded now unless `hold` has kept it.

        Raises:
            UserError: the picture cannot be read; the message names the picture.
        """
        if self._held is not None:
            return self._held[number]
        item = self.items[number]
        try:
            if isinstance(item, int):
                image = self.dataset.get_image_by_idx(item)
            else:
                image = item if isinstance(item, Image.Image) else read_image(item)
            return pixels_of(to_rgb(image), self.size)
        except (UserError, OSError) as error:
            remedy = "; delete it, and repeat the command that made it"
            remedy = "" if isinstance(self.items[number], int) else remedy
            raise UserError(f"{self.name(number)}: {error}{remedy}") from error

    def hold(self) -> None:
        """Decode all pictures and keep them, if they fit into `memory`.

        Raises:
            UserError: a picture cannot be read.
        """
        if self._held is None and self._fit:
            held = torch.empty((len(self), 3, *self.size), dtype=torch.uint8)
            for number, (pixels,) in enumerate(self.batches([[n] for n in range(len(self))])):
                held[number] = pixels
            self._held = held

    def batches(self, rows: Iterable[Sequence[int]]) -> Iterator[torch.Tensor]:
        """The pictures of every row of B numbers, in order: uint8 [B, 3, H, W].

        Raises:
            UserError: a picture cannot be read.
        """
        if self._held is not None:
            for row in rows:
                yield self._held[row]
            return
        for found in self._decoded(rows):
            for pixels in found:
                if isinstance(pixels, Exception):
                    raise pixels
            yield torch.stack(found)

    def each(self) -> Iterator[torch.Tensor | UserError]:
        """Every picture, or its error, in order; only a few at a time are in memory."""
        for (pixels,) in self._decoded([n] for n in range(len(self))):
            yield pixels

    def _decoded(self, rows: Iterable[Sequence[int]]) -> Iterator[list]:
        def attempt(number):
            try:
                return self.read(number)
            except UserError as error:
                return error

        with ThreadPoolExecutor(self._workers) as threads:
            waiting: deque[list[Future]] = deque()
            ahead = 0
            for row in rows:
                waiting.append([threads.submit(attempt, int(number)) for number in row])
                ahead += len(waiting[-1])
                while ahead > AHEAD and len(waiting) > 1:
                    done = waiting.popleft()
                    ahead -= len(done)
                    yield [future.result() for future in done]
            for done in waiting:
                yield [future.result() for future in done]

    def name(self, number: int) -> str:
        """The name of a picture in messages."""
        item = self.items[number]
        if not isinstance(item, int):
            return "synthetic image"
        records = getattr(self.dataset, "records", None)
        return records[item].source if records else f"photo {item} of split {self.dataset.split!r}"

    def identity(self, number: int) -> str:
        """The name of a picture, independent of its position: a photo's source, or a file name.

        A PIL image has the digest of its pixels.
        """
        item = self.items[number]
        if isinstance(item, int):
            return self._sources[item]
        return item.name if isinstance(item, Path) else pixel_digest(item)

    @functools.cached_property
    def _sources(self) -> list[str]:
        return self.dataset.sources()

    def digest(self) -> str:
        """sha256 of the content of all pictures in order, independent of their names.

        The bytes of a picture's file count, if the file is the whole picture, otherwise its pixels.
        A dataset with its own `content_digests` gives the digests of its photos.
        """
        files, digest = {}, hashlib.sha256()
        for number, item in enumerate(self.items):
            file: object = item
            if isinstance(item, int) and self.dataset.is_whole_file:
                file = self.dataset.records[item].path
            if isinstance(file, Path):
                files[number] = file
        contents = dict(zip(files, file_digests(files.values())))
        if type(self.dataset).content_digests is not FewShotDataset.content_digests:
            # The dataset gives digests without making its photos, which may take long.
            own = {n: item for n, item in enumerate(self.items) if isinstance(item, int)}
            contents |= zip(own, self.dataset.content_digests(own.values()))
        others = [number for number in range(len(self)) if number not in contents]
        with ThreadPoolExecutor(self._workers) as threads:
            contents.update(zip(others, threads.map(self._pixel_digest, others)))
        for number in range(len(self)):
            digest.update(contents[number].encode())
        return digest.hexdigest()

    def _pixel_digest(self, number: int) -> str:
        try:
            return hashlib.sha256(self.read(number).contiguous().numpy().tobytes()).hexdigest()
        except UserError as error:
            return f"unreadable: {error}"
