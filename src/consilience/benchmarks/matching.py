"""Speed of judging pairs against the loops of the VSE++ and SGRAF line of code, re-expressed, in one run.

Ranks: their way sorts the captions of every image and the images of every caption, and looks for the true ones.
Shards: their way keeps all encodings in float64, padded to the longest caption and with each image once a caption, cuts
them into shards of 100 x 100, and walks through the captions of a shard one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from consilience.benchmarks.sgraf import LONGEST, REGIONS, SIM, VOCABULARY, caption_lengths, plain_scores
from consilience.data.schema import Kind
from consilience.encoders.build import EncoderConfig
from consilience.errors import ConsilienceError, InputError
from consilience.evaluation.matching import matching
from consilience.evaluation.scoring import score_matrix
from consilience.heads.matching import ScorerConfig, Seen
from consilience.methods.contrastive import Contrastive, ContrastiveConfig

IMAGES, PER_IMAGE = 5000, 5
LOOP_IMAGES = 100
SCORED = (20, 100)
SHARD = 100
TOLERANCE = 1e-5


def run(*, repeats: int = 3, seed: int = 0, embed: int = 1024, images: int = IMAGES) -> dict[str, Any]:
    """Measure and return ``{"ratios", "seconds", "megabytes", "note"}``; entries hold median, min, max over repeats.

    Ratios are their processor time over ours (higher = ours is faster): ``ranks`` of 5,000 x 25,000 random scores, both
    directions; ``shards`` of SGRAF on a small set. ``megabytes``: encodings each side holds for that set. One torch
    thread. Raises :class:`ConsilienceError` when the sides disagree, :class:`InputError` for no repeats.
    """
    if repeats < 1:
        raise InputError(f"repeats is {repeats}: expected at least 1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ranks = _ranks(repeats, seed, images)
        shards, megabytes = _shards(repeats, seed, embed)
    finally:
        torch.set_num_threads(threads)
    seconds = {f"{name}_{side}": times for name, both in (("ranks", ranks), ("shards", shards))
               for side, times in both.items()}  # fmt: skip
    return {
        "ratios": {"ranks": _spread(ranks["loop"], ranks["ours"]), "shards": _spread(shards["loop"], shards["ours"])},
        "seconds": {name: _spread(times, [1.0] * repeats) for name, times in seconds.items()},
        "megabytes": megabytes,
        "note": (
            f"{repeats} interleaved repeats, seed {seed}, processor time, one torch thread. Ranks: {images} images, "
            f"{PER_IMAGE} captions each, float32; the loop was timed on {min(LOOP_IMAGES, images)} images and their "
            f"captions and scaled linearly. Shards: {SCORED[0]} images, {SCORED[1]} captions, E = {embed}, encoders "
            "left out. Ranks agree but for chance ties, scores to 1e-5."
        ),
    }


def _ranks(repeats: int, seed: int, images: int) -> dict[str, list[float]]:
    scores = torch.rand(images, images * PER_IMAGE, generator=torch.Generator().manual_seed(seed))
    own = torch.arange(images * PER_IMAGE) // PER_IMAGE
    some = min(LOOP_IMAGES, images)
    matching(scores[:some, : some * PER_IMAGE], own[: some * PER_IMAGE])  # first calls load code
    seconds: dict[str, list[float]] = {"ours": [], "loop": []}
    for _ in range(repeats):
        took, result = _timed(lambda: matching(scores, own))
        seconds["ours"].append(took)
        took, theirs = _timed(lambda: _loop(scores.numpy(), some))
        seconds["loop"].append(took * images / some)
        ours = (result.image_to_text.rank[:some], result.text_to_image.rank[: some * PER_IMAGE])
        for side, found, expected in zip(("images", "captions"), ours, theirs, strict=True):
            # float32 scores of a gallery this large coincide now and then: where two or three tie, ranks differ by 1
            if float((found - torch.tensor(expected)).abs().max()) > 1:
                raise ConsilienceError(f"ranks of {side} differ: timings of unequal work")
    return seconds


def _loop(scores: np.ndarray, images: int) -> tuple[list[int], list[int]]:
    """Best rank of each image's captions, and rank of each caption's image, from 1."""
    best, back = [], []
    for i in range(images):
        order = np.argsort(scores[i])[::-1]
        rank = scores.shape[1]
        for caption in range(PER_IMAGE * i, PER_IMAGE * (i + 1)):
            rank = min(rank, int(np.where(order == caption)[0][0]))
        best.append(rank + 1)
    columns = scores.T
    for caption in range(PER_IMAGE * images):
        order = np.argsort(columns[caption])[::-1]
        back.append(int(np.where(order == caption // PER_IMAGE)[0][0]) + 1)
    return best, back


def _shards(repeats: int, seed: int, embed: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    torch.manual_seed(seed)
    config = ContrastiveConfig(
        networks=1,
        scorer=ScorerConfig(name="sgr", sim=SIM, slots=REGIONS),
        encoders=EncoderConfig(embed=embed, text="gru", regions=REGIONS, max_tokens=LONGEST, tokenizer="bytes"),
    )
    method = Contrastive(config, {"image": Kind.REGIONS, "text": Kind.TEXT}, VOCABULARY).eval()
    n, m = SCORED
    regions = F.normalize(torch.rand(n, REGIONS, embed), dim=2)
    lengths = caption_lengths(m, seed)
    mask = torch.arange(LONGEST) < lengths[:, None]
    words = F.normalize(torch.rand(m, LONGEST, embed), dim=2) * mask[:, :, None]
    a = Seen(regions[:, 0], regions, torch.ones(n, REGIONS, dtype=torch.bool)).flat()
    b = Seen(words[:, 0], words, mask).flat()
    kept = (np.repeat(regions.double().numpy(), PER_IMAGE, 0), words.double().numpy())
    seconds: dict[str, list[float]] = {"ours": [], "loop": []}
    for _ in range(repeats):
        took, ours = _timed(lambda: score_matrix(method, a, b, ("image", "text")))
        seconds["ours"].append(took)
        took, theirs = _timed(lambda: _shard_loop(method, *kept, lengths))
        seconds["loop"].append(took)
        if not torch.allclose(ours, theirs, atol=TOLERANCE, rtol=0):
            raise ConsilienceError("scores of SGRAF differ by more than 1e-5: timings of unequal work")
    held = {"loop": sum(x.nbytes for x in kept) / 2**20, "ours": (a.nbytes + b.nbytes) / 2**20}
    return seconds, held


@torch.no_grad()
def _shard_loop(method: Contrastive, images: np.ndarray, captions: np.ndarray, lengths: Tensor) -> Tensor:
    """Scores of all pairs, shard by shard, from float64 encodings with every image repeated."""
    net = method.peers.net(0).sgraf
    images = images[::PER_IMAGE]
    out = np.zeros((len(images), len(captions)))
    for i in range(0, len(images), SHARD):
        for j in range(0, len(captions), SHARD):
            left = torch.from_numpy(images[i : i + SHARD]).float()
            right = torch.from_numpy(captions[j : j + SHARD]).float()
            out[i : i + SHARD, j : j + SHARD] = plain_scores(net, left, right, lengths[j : j + SHARD]).numpy()
    return torch.from_numpy(out).float()


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def _spread(upper: list[float], lower: list[float]) -> dict[str, float]:
    """Median, min and max of the quotients repeat by repeat."""
    quotients = [a / b for a, b in zip(upper, lower)]
    return {"median": median(quotients), "min": min(quotients), "max": max(quotients)}
