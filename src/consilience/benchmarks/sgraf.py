"""Cost of the SGRAF scorer (module sgr): ours against a plain re-expression of the authors' loop.

Sizes of the paper: 36 regions of 2048 features, E = 1024, 256 similarity features, batches of 128 pairs, captions of
8 to 30 words around 13. "Plain" walks through the captions one by one, with separate query and key layers, all nodes in
every step, and autograd as it comes; encoders, global vectors, weights, loss and data are the same on both sides. The
losses sum the hinges of the hardest negatives (``hard``), or their means over all negatives (``mean``, for warm-up).
"""

from __future__ import annotations

import multiprocessing
import re
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consilience.encoders.base import unit
from consilience.encoders.regions import LinearRegions
from consilience.encoders.text import GRUText
from consilience.heads.sgraf import SGRAF
from consilience.heads.similarity import Reasoning

PAIRS, REGIONS, FEATURES, EMBED, SIM, VOCABULARY = 128, 36, 2048, 1024, 256, 8481
SHORTEST, LONGEST = 8, 30
EVALUATED = (256, 1000)
CEILING = 1 << 28
Loss = Literal["hard", "mean"]
Job = Callable[[], Tensor]


def caption_lengths(count: int, seed: int) -> Tensor:
    """Words of captions as in Flickr30K and COCO: log-normal, median 12, within 8 to 30 (mean about 13)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (12 * (0.33 * torch.randn(count, generator=generator)).exp()).round().long()
    return drawn.clamp(SHORTEST, LONGEST)


def plain_scores(net: SGRAF, regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
    """Scores [b, c] by a loop over captions, with the weights of ``net``."""
    (part,) = net._parts()
    pairs, judge = part.pairs, part.pairs.judge
    assert isinstance(judge, Reasoning)
    words = words[:, : int(lengths.max())]
    v = part.image(regions, torch.ones(regions.shape[:2], dtype=torch.bool))
    t = part.text(words, torch.arange(words.shape[1]) < lengths[:, None])
    columns = []
    for j, length in enumerate(lengths.tolist()):
        caption = words[j, :length].unsqueeze(0).expand(len(regions), -1, -1)
        attention = unit(F.leaky_relu(torch.bmm(regions, caption.transpose(1, 2)), 0.1))
        weights = F.softmax(9 * attention.transpose(1, 2).contiguous(), dim=2)
        context = unit(torch.bmm(weights, regions))
        local = unit(pairs.local((context - caption).pow(2)))
        whole = unit(pairs.whole((v - t[j]).pow(2)))
        nodes = torch.cat([whole.unsqueeze(1), local], 1)
        for step in judge.steps:
            edges = F.softmax(torch.bmm(step.query(nodes), step.key(nodes).transpose(1, 2)), dim=2)  # type: ignore
            nodes = F.relu(step.graph(torch.bmm(edges, nodes)))  # type: ignore
        columns.append(pairs.judged(nodes[:, 0]))
    return torch.stack(columns, 1)


def triplet(scores: Tensor, loss: Loss) -> Tensor:
    """Hinges with margin 0.2 in both directions, summed over pairs."""
    true = scores.diagonal()
    own = torch.eye(len(scores), dtype=torch.bool)
    rows = (0.2 + scores - true[:, None]).clamp_min(0).masked_fill(own, 0)
    columns = (0.2 + scores - true[None]).clamp_min(0).masked_fill(own, 0)
    if loss == "hard":
        return rows.amax(1).sum() + columns.amax(0).sum()
    return rows.mean(1).sum() + columns.mean(0).sum()


class _Setting:
    """Both encoders, the scorer and one batch."""

    def __init__(self, embed: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.image, self.text = LinearRegions(FEATURES, embed), GRUText(VOCABULARY, embed)
        self.net = SGRAF(embed, SIM, slots=REGIONS, block_bytes=CEILING)
        self.regions = torch.rand(PAIRS, REGIONS, FEATURES)
        self.lengths = caption_lengths(PAIRS, seed)
        self.ids = torch.randint(4, VOCABULARY, (PAIRS, LONGEST))
        self.ids[torch.arange(LONGEST) >= self.lengths[:, None]] = -1

    def encode(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Regions, their mask, words, their mask."""
        return *self.image.slots(self.regions), *self.text.slots(self.ids)

    def scores(self, plain: bool, encoded: tuple[Tensor, Tensor, Tensor, Tensor], few: bool) -> Tensor:
        regions, there, words, mask = encoded
        if plain:
            return plain_scores(self.net, regions, words, self.lengths)
        out: Tensor = self.net(regions, there, words, mask, few)
        return out

    def modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.image, self.text, self.net])


def _forward(plain: bool, *, embed: int, seed: int) -> Job:
    """Scores of one batch in evaluation, encoders left out."""
    setting = _Setting(embed, seed)
    setting.modules().eval()
    with torch.no_grad():
        encoded = setting.encode()

    def run() -> Tensor:
        with torch.no_grad():
            return setting.scores(plain, encoded, False)

    return run


def _train(plain: bool, loss: Loss, *, embed: int, seed: int) -> Job:
    """Encoders, scores, loss and gradients of one batch."""
    setting = _Setting(embed, seed)
    modules = setting.modules()

    def run() -> Tensor:
        modules.zero_grad()
        torch.manual_seed(seed)  # the same dropout every time, on both sides
        value = triplet(setting.scores(plain, setting.encode(), loss == "hard"), loss)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    return run


def _seconds(job: Job, repeats: int) -> dict[str, float]:
    """Processor seconds of ``job``: median, minimum, maximum after one run that is not counted."""
    job()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        job()
        taken.append(time.process_time() - start)
    return {"median": statistics.median(taken), "min": min(taken), "max": max(taken)}


def _megabytes() -> float:
    """Peak memory of this process. Linux hands ru_maxrss of a parent on to its children, so the kernel's own mark is
    read where there is one."""
    status = Path("/proc/self/status")
    if status.exists():
        return float(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _growth(shape: tuple[int, int], embed: int, ceiling: int, queue: Any) -> None:
    """In a process of its own: by how many megabytes scoring ``shape`` raises its peak memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = SGRAF(embed, SIM, slots=REGIONS, block_bytes=ceiling).eval()
    regions, words = torch.rand(shape[0], REGIONS, embed), torch.rand(shape[1], LONGEST, embed)
    there = torch.ones(shape[0], REGIONS, dtype=torch.bool)
    mask = torch.arange(LONGEST) < caption_lengths(shape[1], 0)[:, None]
    with torch.no_grad():
        net(regions[:2], there[:2], words[:2], mask[:2])
        before = _megabytes()
        net(regions, there, words, mask)
    queue.put(_megabytes() - before)


def evaluation_memory(shape: tuple[int, int], embed: int, ceiling: int) -> float:
    """Megabytes of working memory that scoring ``shape`` images and captions takes, measured in a new process."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_growth, args=(shape, embed, ceiling, queue))
    process.start()
    process.join()
    return float(queue.get())


def run(*, repeats: int = 3, seed: int = 0, quick: bool = False, embed: int = EMBED) -> dict[str, Any]:
    """Measure both sides in this process on one thread; about ten minutes, ``quick`` (one repeat) about five.

    Returns ``ratios`` (plain median / our median, above 1 = ours is faster), ``seconds`` (name, then ``plain`` or
    ``ours``, then median, min, max of the processor time), ``pairs_per_second`` (images x captions scored, from the
    medians) and ``memory`` of one evaluation block in MB: what it took beside its inputs, and the ceiling.
    """
    jobs: dict[str, Callable[[bool], Job]] = {
        "score_forward": partial(_forward, embed=embed, seed=seed),
        "step_hard": partial(_train, loss="hard", embed=embed, seed=seed),
        "step_mean": partial(_train, loss="mean", embed=embed, seed=seed),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: dict[str, dict[str, dict[str, float]]] = {}
    try:
        for name, make in jobs.items():
            both = {"plain": make(True), "ours": make(False)}
            seconds[name] = {side: _seconds(job, 1 if quick else repeats) for side, job in both.items()}
    finally:
        torch.set_num_threads(threads)
    return {
        "ratios": {name: both["plain"]["median"] / both["ours"]["median"] for name, both in seconds.items()},
        "seconds": seconds,
        "pairs_per_second": {
            name: {side: PAIRS**2 / times["median"] for side, times in both.items()} for name, both in seconds.items()
        },
        "memory": {"taken_mb": evaluation_memory(EVALUATED, embed, CEILING), "ceiling_mb": CEILING / 2**20},
    }
