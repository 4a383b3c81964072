"""Queue and twin are the same in one process and in two: memories are pushed with the joined batch and stay equal."""

from __future__ import annotations

import os
import random
import subprocess
import sys

CODE = """
import torch, torch.distributed as dist
from consilience.data.schema import Batch, Kind
from consilience.distributed import rank, sum_over_ranks, world_size
from consilience.methods.base import Progress
from consilience.methods.clic import CLIC, CLICConfig
torch.set_num_threads(1)
torch.manual_seed(3)
pixels = torch.randint(0, 255, (33, 3, 32, 32), dtype=torch.uint8)
def batch(rows):
    return Batch(rows, {"image": pixels[rows]}, {"image": torch.ones(len(rows), dtype=torch.bool)})
def trained(share):
    torch.manual_seed(0)
    options = dict(image_size=32, width=8, queue=20, queue_share=0, cal_weight=0.25, momentum=0.8)
    method = CLIC(CLICConfig(**options), {"image": Kind.RGB}, 33).train()
    parameters = [p for module in method.trained("train") for p in module.parameters()]
    optimiser = torch.optim.SGD(parameters, 0.02)
    for step in range(6):  # batches of 11 in a ring of 20: the ring is full after two and turns over
        rows = torch.arange(11) + 11 * (step % 3)
        mine = batch(share(rows))
        progress = Progress(0, "train", step // 3, 0.0, 0)
        optimiser.zero_grad()
        torch.stack(list(method.step(mine, progress).values())).sum().backward()
        for parameter in parameters:
            parameter.grad = sum_over_ranks(parameter.grad) / world_size()
        optimiser.step()
        method.after_batch(mine, progress)
    return method
alone = trained(lambda rows: rows)
assert sorted(alone.queue.ids[0].tolist()) == sorted([*range(13, 33)]), alone.queue.ids
dist.init_process_group("gloo")
shared = trained(lambda rows: rows[:7] if rank() == 0 else rows[7:])
assert torch.equal(shared.queue.ids, alone.queue.ids)
assert torch.equal(shared.queue.pushed, alone.queue.pushed)
torch.testing.assert_close(shared.queue.keys, alone.queue.keys, atol=2e-4, rtol=0)
for name, value in alone.state_dict().items():
    torch.testing.assert_close(shared.state_dict()[name], value, atol=2e-4, rtol=2e-3, msg=lambda m: f"{name}: {m}")
for part in (shared.queue, shared.key_encoder, shared.key_projection):
    for name, value in part.state_dict().items():
        first = value.clone()
        dist.broadcast(first, src=0)
        assert torch.equal(value, first), name
dist.destroy_process_group()
"""


def test_queue_and_twin_of_two_processes_are_those_of_one() -> None:
    """Six steps of momentum contrast with uneven shares: the same ring, ids and twins as one process, and bit-equal
    memories on both ranks."""
    port = random.Random(os.getpid() + 9).randrange(20_000, 60_000)
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "--no-python"]
    done = subprocess.run([*run, sys.executable, "-c", CODE], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
