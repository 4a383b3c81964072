"""Embedding shared by the processes that torchrun started, on one machine or several that see the same folders."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from consilience.distributed import rank, world_size
from consilience.embedding.job import Plan, encode_part, finish
from consilience.errors import ConsilienceError
from consilience.training.api import Run

_PATIENCE = timedelta(days=30)
"""How long a rank waits for the slowest one; torchrun ends all of them when one fails."""


def shared(run: Run, job: Plan, quiet: bool) -> dict[str, str]:
    """A :data:`~consilience.embedding.job.Worker`: every rank takes every W-th of the parts that are left; a process
    that is alone takes all.

    Parts are the same for any number of ranks, so a job may be resumed with another number, and the vectors are the
    bits of one process. Rank 0 says which parts are left and commits. Raises ConsilienceError when the ranks have
    planned different jobs: the run's and the Table's folder must be the same for all.
    """
    joins = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    told: list[Any] = [(job.folder.name, job.left()) if rank() == 0 else None]
    if world_size() > 1:
        dist.broadcast_object_list(told)
    planned, left = told[0]
    if planned != job.folder.name:
        raise ConsilienceError(f"rank {rank()} plans other rows of {job.table.path} than rank 0; share one folder")
    for number in tqdm(left[rank() :: world_size()], desc="embed", disable=quiet or rank() > 0, mininterval=1.0):
        encode_part(run, job, number)
    if world_size() > 1:
        dist.barrier()
    columns = finish(job) if rank() == 0 else dict(zip(job.modalities, job.columns, strict=True))
    if world_size() > 1:
        dist.barrier()
    if joins:
        dist.destroy_process_group()
    return columns
