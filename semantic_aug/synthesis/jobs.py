"""The jobs of a trial, each with its own random stream.

A job is (source photo, repeat). Jobs form blocks, which are distributed among processes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from semantic_aug import stable_hash
from semantic_aug.experiment.sharding import shard_blocks
from semantic_aug.images.framing import mask_within


@dataclass(frozen=True)
class Job:
    """A synthetic image to make: variant `repeat` of photo `index` of the trial."""

    index: int
    repeat: int

    @property
    def file_name(self) -> str:
        return file_name_of(self.index, self.repeat)


def file_name_of(index: int, repeat: int) -> str:
    return f"{index:06d}-{repeat:03d}.png"


def job_generator(seed: int, source: str, repeat: int) -> torch.Generator:
    """The random stream of a job, which depends on nothing else."""
    return torch.Generator().manual_seed(stable_hash("job", seed, source, repeat))


def make_jobs(indices: Sequence[int], num_synthetic: int) -> list[Job]:
    """All jobs of a trial, photo by photo."""
    return [Job(index, repeat) for index in indices for repeat in range(num_synthetic)]


def without_object(dataset, indices: Iterable[int], save_size: int | None = None) -> dict[int, str]:
    """The photos whose mask does not show an object, each with the reason.

    Args:
        save_size: longer side in pixels to which larger photos are reduced.
    """
    found = {}
    for idx in indices:
        if not dataset.mask_digests([idx])[0]:
            found[idx] = "it has no mask"
            continue
        inside = mask_within(dataset.get_mask_by_idx(idx), save_size) > 0
        if not inside.any():
            found[idx] = "its mask is empty"
        elif inside.all():
            found[idx] = "its mask is the whole photo"
    return found


def share_of(
    jobs: Sequence[Job], batch_size: int, shard: tuple[int, int], already: int = 0
) -> list[list[Job]]:
    """The blocks that a process makes, in order.

    Args:
        batch_size: jobs per block.
        shard: the process's (index, count).
        already: number of blocks distributed before these blocks.
    """
    blocks = [list(jobs[start : start + batch_size]) for start in range(0, len(jobs), batch_size)]
    return [blocks[number] for number in shard_blocks(len(blocks), *shard, already)]
