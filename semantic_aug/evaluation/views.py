"""Views of pictures: what a frozen backbone sees of each, computed once and drawn from later."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from semantic_aug import stable_hash
from semantic_aug.evaluation.pictures import Images
from semantic_aug.evaluation.standard_augmentation import augment


@dataclass(frozen=True)
class Views:
    """The views of a picture: itself alone, or several that standard augmentation has changed.

    Attributes:
        augmentation: names of `AUGMENTATIONS`; without any, a picture is shown as it is.
        number: views of each picture.
        seed: of the trial.
    """

    augmentation: tuple[str, ...] = ()
    number: int = 1
    seed: int = 0

    def of(self, images: Images, position: int) -> Iterator[torch.Generator | None]:
        """A random stream for each view of one picture, None where nothing is random.

        It comes from the trial's seed, what the picture is called and the number of the view:
        neither other pictures nor their order matter.
        """
        for view in range(self.number):
            if not self.augmentation:
                yield None
            else:
                seed = stable_hash("view", self.seed, images.identity(position), view)
                yield torch.Generator().manual_seed(seed)

    def shown(self, pixels: torch.Tensor, streams: Sequence) -> torch.Tensor:
        """What the backbone is given of a batch.

        Args:
            pixels: uint8 [B, 3, H, W].
            streams: B of those that `of` gives.

        Returns:
            [B, 3, H, W], uint8 as it is, or float in [0, 1].
        """
        if not self.augmentation:
            return pixels
        return augment(self.augmentation, pixels.float() / 255, streams).images

    def key(self, images: Images) -> tuple:
        """What features depend on beside the backbone and the content of the pictures."""
        if not self.augmentation:
            return ()
        names = [images.identity(position) for position in range(len(images))]
        return self.augmentation, self.number, self.seed, names

    def draw(self, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A view of each picture, all equally likely: rows among those of all pictures.

        Of a single view nothing is drawn, so that the stream stays where it is.
        """
        if self.number == 1:
            return pictures
        view = torch.randint(self.number, pictures.shape, generator=generator)
        return pictures * self.number + view


AS_IT_IS = Views()
