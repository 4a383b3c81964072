"""Two gloo ranks with uneven shares of a batch take the step of one process, in both stages, and hold its queues."""

from __future__ import annotations

import os
import random
import sys

from tests.training.test_processes import finish

CODE = """
import torch, torch.distributed as dist
from consilience.data.schema import Batch, Kind
from consilience.distributed import rank, sum_over_ranks, world_size
from consilience.encoders.norm import synchronise
from consilience.methods.base import Progress
from consilience.methods.multi_queue_moco import MultiQueueConfig, MultiQueueMoCo
from consilience.views.crops import CropConfig
g = torch.Generator().manual_seed(0)
pictures = torch.randint(0, 256, (11, 3, 32, 32), dtype=torch.uint8, generator=g)
places = 32 * torch.rand(11, 4, 2, generator=g)
places[::3, 2:] = torch.nan
weather = torch.arange(11) % 3
keys = torch.randn(24, 8, generator=g)
def batch(rows):
    told = {"places": places[rows], "weather": weather[rows]}
    return Batch(rows, {"image": pictures[rows]}, {"image": torch.ones(len(rows), dtype=torch.bool)}, told)
def step(options, progress, rows):
    torch.manual_seed(0)
    sizes = dict(image_size=32, crops=CropConfig(size=24), places=8, dim=8)
    config = MultiQueueConfig(weathers="a,normal,z", **sizes, **options)
    method = MultiQueueMoCo(config, {"image": Kind.RGB}, 11)
    synchronise(method)
    for queue in (method.queue, method.banks):
        queue.push(keys, torch.arange(24), torch.arange(24) % len(queue.keys))
    torch.stack(list(method.step(batch(rows), progress).values())).sum().backward()
    found = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    method.after_batch(batch(rows), progress)
    return found, {n: b for n, b in method.named_buffers()}
runs = [(o, p) for o in ({}, {"queues": "single"}, {"density_loss": "map"})
        for p in (Progress(0, "learn", 0, 0.5, 0), Progress(1, "refine", 0, 0.5, 0))]
alone = [step(*run, torch.arange(11)) for run in runs]
dist.init_process_group("gloo")
mine = torch.arange(6) if rank() == 0 else torch.arange(6, 11)
for run, (gradients, buffers) in zip(runs, alone):
    found, own = step(*run, mine)
    assert found.keys() == gradients.keys()
    for name, value in found.items():
        joined = sum_over_ranks(value) / world_size()
        told = lambda text: f"{run} {name}: {text}"
        torch.testing.assert_close(joined, gradients[name], atol=5e-5, rtol=2e-3, msg=told)
    for name, value in own.items():
        torch.testing.assert_close(value, buffers[name], atol=1e-5, rtol=1e-4)
dist.destroy_process_group()
"""


def test_two_ranks_take_the_step_of_one() -> None:
    port = random.Random(os.getpid() + 7).randrange(20_000, 60_000)
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "--no-python"]
    finish([*run, sys.executable, "-c", CODE])
