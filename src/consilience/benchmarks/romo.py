"""Cost of RoMo's training steps: our encoders and bank against a plain re-expression of the authors' loop.

Sizes of the release, with a batch of 8 for one thread: 224 pixels, 1024 points, a bank of 5000 rows; stage 1
(PLA) with 20 neighbours and D = 1024, stage 2 (RDL) with 40 and 256. "Plain" builds every edge feature
[B, 2C, N, k], finds neighbours by a full top-k and, as the release does, normalises the whole bank at every
update; the image network, the losses and the optimiser are the same on both sides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consilience.encoders.image import ResNet
from consilience.encoders.points import DGCNN, DirectEdgeConv, EdgeConv
from consilience.memory.bank import Bank

BATCH, PIXELS, POINTS, CLASSES, SAMPLES = 8, 224, 1024, 10, 5000
BANKS = (5000, 50000)
MOMENTUM = 0.9
Job = Callable[[], None]


@dataclass(frozen=True)
class Stage:
    """What differs between the two stages (RoMo: PLA and RDL)."""

    width: int
    neighbours: int
    temperature: float


PLA = Stage(width=1024, neighbours=20, temperature=0.05)
RDL = Stage(width=256, neighbours=40, temperature=0.15)


class _PlainBank(Bank):
    """The release's update: move the rows of the batch, then normalise all rows.

    The release moves them towards unnormalised vectors; here both sides get unit vectors, so that they agree.
    """

    @torch.no_grad()
    def update(self, index: Tensor, vectors: Tensor, momentum: float) -> None:
        moved = self.rows[index] * momentum + vectors * (1 - momentum)
        self.rows.index_copy_(0, index, moved / moved.norm(dim=1, keepdim=True))
        self.rows = F.normalize(self.rows, dim=1)


@dataclass(frozen=True)
class Side:
    """What differs between the two programs."""

    edge: type[EdgeConv]
    bank: type[Bank]


SIDES = {"plain": Side(DirectEdgeConv, _PlainBank), "ours": Side(EdgeConv, Bank)}


def _nt_xent(z: list[Tensor], temperature: float) -> Tensor:
    rows = F.normalize(torch.cat(z), dim=1)
    logits = (rows @ rows.t() / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(rows)).roll(len(z[0])))


def _annotate_loss(z: list[Tensor], heads: nn.ModuleList, targets: list[Tensor], tau: float) -> Tensor:
    """Stage 1: cross-entropy to the bank's nearest prototype, and NT-Xent."""
    ce = sum(F.cross_entropy(h(v), t) for h, v, t in zip(heads, z, targets, strict=True))
    return 0.75 * ce + 0.25 * 2 * _nt_xent(z, tau)


def _robust_loss(z: list[Tensor], heads: nn.ModuleList, targets: list[Tensor], tau: float) -> Tensor:
    """Stage 2: (1 - p)(-log p)^0.25 of the pseudo-label, and NT-Xent."""
    total = 0.7 * 2 * _nt_xent(z, tau)
    for head, v, t in zip(heads, z, targets, strict=True):
        log_p = F.log_softmax(head(v), 1).gather(1, t[:, None]).clamp_max(-1e-6)
        total = total + 0.7 * ((1 - log_p.exp()) * (-log_p).pow(0.25)).mean()
    return total


def _step(stage: Stage, side: Side, *, seed: int) -> Job:
    """One optimisation step of ``stage`` on a fixed random batch."""
    torch.manual_seed(seed)
    width = stage.width
    image = ResNet(18)
    top = nn.Sequential(nn.Linear(image.width, width), nn.BatchNorm1d(width), nn.ReLU())
    cloud = DGCNN(width, stage.neighbours, edge=side.edge)
    if stage is PLA:
        heads = nn.ModuleList(nn.Linear(width, CLASSES, bias=False) for _ in range(2))
    else:
        shared = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, CLASSES))
        heads = nn.ModuleList([shared, shared])
    parameters = list(nn.ModuleList([image, top, cloud, heads]).parameters())
    optimiser = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
    banks = [side.bank(SAMPLES, width) for _ in range(2)]
    for b in banks:
        b.fill(torch.randn(SAMPLES, width))
    pixels, points = torch.rand(BATCH, 3, PIXELS, PIXELS), torch.randn(BATCH, POINTS, 3)
    index = torch.randperm(SAMPLES)[:BATCH]
    labels = [torch.randint(CLASSES, (BATCH,)) for _ in range(2)]

    def run() -> None:
        z = [top(image(pixels)), cloud(points)]
        if stage is PLA:
            with torch.no_grad():
                targets = [h(b.rows[index]).argmax(1) for h, b in zip(heads, banks, strict=True)]
            loss = _annotate_loss(z, heads, targets, stage.temperature)
        else:
            loss = _robust_loss(z, heads, labels, stage.temperature)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if stage is PLA:
            for b, v in zip(banks, z, strict=True):
                b.update(index, F.normalize(v.detach(), dim=1), MOMENTUM)

    return run


def _cloud(stage: Stage, side: Side, *, seed: int) -> Job:
    """Forward and backward of the point encoder alone."""
    torch.manual_seed(seed)
    net = DGCNN(stage.width, stage.neighbours, edge=side.edge)
    points = torch.randn(BATCH, POINTS, 3)

    def run() -> None:
        net.zero_grad()
        net(points).square().sum().backward()

    return run


def _update(samples: int, side: Side, *, seed: int) -> Job:
    """Bank updates of 50 rows with D = 1024; ten a run, for the clock."""
    torch.manual_seed(seed)
    memory = side.bank(samples, PLA.width)
    memory.fill(torch.randn(samples, PLA.width))
    index, vectors = torch.randperm(samples)[:50], torch.randn(50, PLA.width)

    def run() -> None:
        for _ in range(10):
            memory.update(index, vectors, MOMENTUM)

    return run


def _seconds(job: Job, repeats: int, divide: int) -> dict[str, float]:
    """Processor seconds of ``job``: median, minimum, maximum after one run that is not counted."""
    job()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        job()
        taken.append((time.process_time() - start) / divide)
    return {"median": statistics.median(taken), "min": min(taken), "max": max(taken)}


def run(*, repeats: int = 3, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Measure both sides in this process on one thread; about five minutes, ``quick`` (one repeat) about two.

    Returns ``ratios`` (plain median / our median, above 1 = ours is faster) and ``seconds`` (name, then
    ``plain`` or ``ours``, then median, min, max of the processor time of one step).
    """
    jobs: dict[str, tuple[Callable[[Side], Job], int]] = {
        "pla_step": (partial(_step, PLA, seed=seed), 1),
        "rdl_step": (partial(_step, RDL, seed=seed), 1),
        "dgcnn_k20": (partial(_cloud, PLA, seed=seed), 1),
        "dgcnn_k40": (partial(_cloud, RDL, seed=seed), 1),
    }
    for samples in BANKS:
        jobs[f"bank_update_{samples}"] = (partial(_update, samples, seed=seed), 10)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: dict[str, dict[str, dict[str, float]]] = {}
    try:
        for name, (make, divide) in jobs.items():
            seconds[name] = {
                side: _seconds(make(parts), 1 if quick else repeats, divide) for side, parts in SIDES.items()
            }
    finally:
        torch.set_num_threads(threads)
    ratios = {name: both["plain"]["median"] / both["ours"]["median"] for name, both in seconds.items()}
    return {"ratios": ratios, "seconds": seconds}
