"""This process's share of the work, from settings, SLURM arrays and launchers."""

import logging
import os
import re
from collections.abc import Mapping

from semantic_aug import UserError, stable_hash

log = logging.getLogger(__name__)


def shard_of(
    index: int | None, count: int | None, environ: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """This process's (index, count): as given, or from SLURM and a launcher together.

    A SLURM array may have any offset and step; processes of one launch (accelerate launch,
    torchrun, mpirun, or srun) divide the share of their array task among themselves.

    Raises:
        UserError: settings contradict each other, or an array has gaps, whose work nobody would
            do.
    """
    if (index is None) != (count is None):
        raise UserError("--shard_index and --num_shards go together")
    if index is not None and count is not None:
        if not 0 <= index < count:
            raise UserError(f"--shard_index: got {index}, expected 0 to {count - 1}")
        return index, count
    task, tasks = _array_task(environ)
    process, processes = _launched_process(environ)
    return task * processes + process, tasks * processes


def _array_task(environ) -> tuple[int, int]:
    """(index, count) among the tasks of a SLURM array."""
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return 0, 1
    task = _number(environ, "SLURM_ARRAY_TASK_ID")
    first = _number(environ, "SLURM_ARRAY_TASK_MIN", 0)
    step = max(1, _number(environ, "SLURM_ARRAY_TASK_STEP", 1))
    last = _number(environ, "SLURM_ARRAY_TASK_MAX", task)
    if task not in range(first, last + 1, step):
        raise UserError(
            f"the environment has SLURM_ARRAY_TASK_ID={task}, and the array's tasks are {first} to "
            f"{last} in steps of {step}: unset the variable that SLURM did not set, or pass "
            "--shard_index and --num_shards"
        )
    count = (last - first) // step + 1
    if _number(environ, "SLURM_ARRAY_TASK_COUNT", count) != count:
        raise UserError(
            f"this SLURM array has gaps between its tasks {first} and {last}: submit an array "
            "without gaps, such as --array=0-3, or pass --shard_index and --num_shards"
        )
    return (task - first) // step, count


# Variables of launchers: size, rank, and rank on a node. A launcher within srun counts its
# processes on all nodes.
_LAUNCHERS = (
    ("WORLD_SIZE", "RANK", "LOCAL_RANK"),  # accelerate launch, torchrun
    # Intel MPI and MPICH, which accelerate launch --cpu may start
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
    ("PMI_SIZE", "PMI_RANK", "PMI_LOCAL_RANK"),  # Cray's
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),  # srun
)


def _launched_process(environ) -> tuple[int, int]:
    """(index, count) among the processes of one launch."""
    for size, rank, _ in _LAUNCHERS:
        count = _number(environ, size, 1)
        if count > 1:
            if rank not in environ or _number(environ, rank) >= count:
                raise UserError(
                    f"the environment has {size}={count} and {rank}={environ.get(rank)}, expected "
                    f"{rank} from 0 to {count - 1}: unset both, or pass --shard_index and "
                    "--num_shards"
                )
            return _number(environ, rank), count
    if environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_PORT" in environ:
        log.warning(
            "accelerate launch --cpu has started one process, which does all the work; "
            "accelerate launch --multi_gpu --num_processes N starts N, also without a GPU"
        )
    return 0, 1


def local_rank(environ=os.environ) -> int:
    """This process's number, from 0, among the processes of its launch on this machine.

    If no launcher gives this number: the number among the processes on all machines.
    """
    if "LOCAL_RANK" in environ:
        return _number(environ, "LOCAL_RANK")
    index, count = _launched_process(environ)
    for size, _, local in _LAUNCHERS:
        # srun's rank is of no use if srun has started an mpirun on each node.
        if local in environ and _number(environ, size, 1) == count > 1:
            return _number(environ, local)
    return index


def _number(environ, name: str, default: int | None = None) -> int:
    text = environ.get(name, str(default))
    if not re.fullmatch(r"\d+", text):
        raise UserError(f"the environment has {name}={text!r}, expected a whole number")
    return int(text)


def shard_blocks(num_blocks: int, shard_index: int, num_shards: int, already: int = 0) -> list[int]:
    """The blocks of one shard: every num_shards-th block in a fixed shuffled order.

    The order is shuffled because neighbouring blocks often take equally long, or were left over by
    the same interruption.

    Args:
        already: the number of blocks that earlier calls dealt out, so that the first shards do not
            always get the further blocks.
    """
    order = sorted(range(num_blocks), key=lambda number: stable_hash("block", number))
    return order[(shard_index - already) % num_shards :: num_shards]
