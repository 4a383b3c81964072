"""Embedding shared by the processes that torchrun started, on one machine or several that see the same folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from consilience.data.table import Table
from consilience.distributed import rank, world_size
from consilience.embedding.job import encode_part, finish, plan
from consilience.training.api import Run

_PATIENCE = timedelta(days=30)
"""How long a rank waits for the slowest one; torchrun ends all of them when one fails."""


def embed_shared(
    run: Run,
    table: Table | None = None,
    *,
    where: str | None = None,
    modalities: Sequence[str] | None = None,
    name: str = "vector",
    codes: str = "code",
    missing: bool = False,
    batch_size: int = 500,
    quiet: bool = False,
) -> dict[str, str]:
    """:func:`consilience.embedding.job.embed`, every rank taking every W-th of the parts that are left; in a process
    that is alone, the same as it.

    Parts are the same for any number of ranks, so a job may be resumed with another number, and the vectors are the
    bits of one process. Rank 0 says which parts are left and commits. The Table's folder must be the same for all.
    """
    joins = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    told: list[Any] = [None]
    if rank() == 0:
        job = plan(
            run, table, where=where, modalities=modalities, name=name, codes=codes, missing=missing,
            batch_size=batch_size,
        )  # fmt: skip
        told = [(job, job.left())]
    if world_size() > 1:
        dist.broadcast_object_list(told)
    job, left = told[0]
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
