"""Fixed views of pictures: a frozen backbone processes them once, and training draws from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from semantic_aug import stable_hash
from semantic_aug.evaluation.pictures import Images
from semantic_aug.evaluation.standard_augmentation import augment


@dataclass(frozen=True)
class Views:
    """The views of each picture: the unchanged picture, or several random augmentations of it.

    Attributes:
        augmentation: names from `AUGMENTATIONS`; empty for the unchanged picture.
        number: number of views of each picture.
        seed: of the trial.
    """

    augmentation: tuple[str, ...] = ()
    number: int = 1
    seed: int = 0

    def of(self, images: Images, position: int) -> Iterator[torch.Generator | None]:
        """A random stream for each view of a picture; None for an unchanged picture.

        The stream depends only on the trial's seed, the picture's identity and the view's number.
        """
        for view in range(self.number):
            if not self.augmentation:
                yield None
            else:
                seed = stable_hash("view", self.seed, images.identity(position), view)
                yield torch.Generator().manual_seed(seed)

    def shown(self, pixels: torch.Tensor, streams: Sequence) -> torch.Tensor:
        """The backbone's input for a batch of views.

        Args:
            pixels: uint8 [B, 3, H, W], the picture of each view.
            streams: B results of `of`, one for each view.

        Returns:
            [B, 3, H, W]: the same uint8 pixels, or augmented float pixels in [0, 1].
        """
        if not self.augmentation:
            return pixels
        return augment(self.augmentation, pixels.float() / 255, streams).images

    def key(self, images: Images) -> tuple:
        """The settings of views that the features depend on; empty for unchanged pictures."""
        if not self.augmentation:
            return ()
        names = [images.identity(position) for position in range(len(images))]
        return self.augmentation, self.number, self.seed, names

    def draw(self, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw a view of each picture, all equally likely.

        With a single view, nothing is drawn from `generator`.

        Args:
            pictures: int64 numbers of pictures, of any shape.

        Returns:
            int64 rows of the features of `cached_features`, in the same shape.
        """
        if self.number == 1:
            return pictures
        view = torch.randint(self.number, pictures.shape, generator=generator)
        return pictures * self.number + view


AS_IT_IS = Views()
