"""Speed of full-gallery retrieval against the usual ways to compute it, on the same vectors, in one run.

Sides compared: the loop of the RoMo release (one query at a time, one rank at a time), re-expressed;
torchmetrics' RetrievalMAP; and the bare matrix product that no method can do without. Repeats are
interleaved, so that a change in the machine's load meets both sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from consilience.errors import ConsilienceError, InputError
from consilience.evaluation.retrieval import retrieval, retrieval_of_scores

CLASSES = 10
FEATURES = 256
LARGE = 5000
SMALL_QUERIES = 1000
LOOP_QUERIES = 250
TOLERANCE = 1e-6


def run(*, repeats: int = 3, seed: int = 0) -> dict[str, Any]:
    """Measure and return ``{"ratios", "seconds", "note"}``; entries hold median, min and max over repeats.

    Ratios: ``loop`` and ``torchmetrics`` = their wall time over ours (higher = ours is faster); torchmetrics' metric
    takes a score matrix, so both sides start from the same one, and ``torchmetrics_with_product`` adds the matrix
    product to both (None, with the reason in the note, where it is not installed); ``cost_over_product`` = our wall
    time over that of the similarity product alone (1 = free). All of it on one torch thread. Raises
    :class:`ConsilienceError` when two sides disagree on mAP by more than 1e-6, :class:`InputError` for no
    repeats.
    """
    if repeats < 1:
        raise InputError(f"repeats is {repeats}: expected at least 1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine would decide the ratios
    try:
        return _measure(repeats, seed)
    finally:
        torch.set_num_threads(threads)


def _measure(repeats: int, seed: int) -> dict[str, Any]:
    queries, gallery, labels = _clustered(LARGE, seed)
    product = torch.empty(LARGE, LARGE)
    sample = torch.randperm(LARGE, generator=torch.Generator().manual_seed(seed))[:LOOP_QUERIES]
    small, small_labels = queries[:SMALL_QUERIES], labels[:SMALL_QUERIES]
    map_metric = _retrieval_map()
    retrieval(queries[:100], gallery, labels[:100], labels)  # first calls load code and threads

    seconds: dict[str, list[float]] = {"ours_5000x5000": [], "product_5000x5000": [], "loop_5000x5000": []}
    if map_metric is not None:
        seconds |= {"ours_1000x5000": [], "torchmetrics_1000x5000": []}
        seconds |= {"ours_scores_1000x5000": [], "torchmetrics_scores_1000x5000": []}
        scores, relevant = small @ gallery.T, small_labels[:, None] == labels
    for _ in range(repeats):
        took, result = _timed(lambda: retrieval(queries, gallery, labels, labels))
        seconds["ours_5000x5000"].append(took)
        took, _ = _timed(lambda: torch.mm(queries, gallery.T, out=product))
        seconds["product_5000x5000"].append(took)
        took, precisions = _timed(lambda: _loop(queries[sample], gallery, labels[sample], labels))
        seconds["loop_5000x5000"].append(took * LARGE / LOOP_QUERIES)
        _agree("the loop", float(result.ap[sample].mean()), float(np.mean(precisions)))
        if map_metric is not None:
            took, result = _timed(lambda: retrieval(small, gallery, small_labels, labels))
            seconds["ours_1000x5000"].append(took)
            took, theirs = _timed(lambda: _torchmetrics(map_metric, small @ gallery.T, small_labels[:, None] == labels))
            seconds["torchmetrics_1000x5000"].append(took)
            _agree("torchmetrics", result.map, theirs)
            took, result = _timed(lambda: retrieval_of_scores(scores, relevant))
            seconds["ours_scores_1000x5000"].append(took)
            took, theirs = _timed(lambda: _torchmetrics(map_metric, scores, relevant))
            seconds["torchmetrics_scores_1000x5000"].append(took)
            _agree("torchmetrics", result.map, theirs)

    ratios: dict[str, Any] = {
        "loop": _spread(seconds["loop_5000x5000"], seconds["ours_5000x5000"]),
        "torchmetrics": None,
        "torchmetrics_with_product": None,
        "cost_over_product": _spread(seconds["ours_5000x5000"], seconds["product_5000x5000"]),
    }
    missing = " torchmetrics is not installed (pip install 'consilience[bench]'), so its ratio is None."
    if map_metric is not None:
        for name, size in (("torchmetrics", "scores_1000x5000"), ("torchmetrics_with_product", "1000x5000")):
            ratios[name] = _spread(seconds[f"torchmetrics_{size}"], seconds[f"ours_{size}"])
        missing = ""
    return {
        "ratios": ratios,
        "seconds": {name: _spread(values, [1.0] * repeats) for name, values in seconds.items()},
        "note": (
            f"{CLASSES} classes, {FEATURES} features, float32, one torch thread, "
            f"{repeats} interleaved repeats, seed {seed}. Ours computes all default metrics, normalisation "
            f"included where vectors are given; the others AP alone. The loop was timed on {LOOP_QUERIES} random "
            f"queries and scaled linearly to {LARGE}. mAP of both sides agrees to {TOLERANCE:g}." + missing
        ),
    }


def _clustered(n: int, seed: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"], Int64[Tensor, " n"]]:
    """Two noisy unit vectors per item around its class centre, and the classes."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=g)
    centres = torch.randn(CLASSES, FEATURES, generator=g)
    first, second = (F.normalize(centres[labels] + 3 * torch.randn(n, FEATURES, generator=g), dim=1) for _ in range(2))
    return first, second, labels


def _loop(queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor) -> list[float]:
    """AP per query as the release computes it: rank by argsort, then walk down the ranks in Python."""
    similarity = queries.numpy() @ gallery.numpy().T
    wanted, offered = query_labels.numpy(), gallery_labels.numpy()
    precisions = []
    for row, label in zip(similarity, wanted):
        ranked = np.argsort(-row)
        found, total = 0.0, 0.0
        for position, item in enumerate(ranked, start=1):
            if offered[item] == label:
                found += 1
                total += found / position
        precisions.append(total / found if found else 0.0)
    return precisions


def _retrieval_map() -> Callable[[], Any] | None:
    """The class torchmetrics.retrieval.RetrievalMAP, or None where it is not installed."""
    try:
        from torchmetrics.retrieval import RetrievalMAP
    except ImportError:
        return None
    found: Callable[[], Any] = RetrievalMAP
    return found


def _torchmetrics(metric: Callable[[], Any], scores: Tensor, relevant: Tensor) -> float:
    """mAP by RetrievalMAP on flat inputs; scores are shifted above 0, because it drops those that are not."""
    index = torch.arange(len(scores))[:, None].expand_as(scores)
    measure = metric()
    measure.update((scores + 2).flatten(), relevant.flatten(), indexes=index.flatten())
    return float(measure.compute())


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def _agree(name: str, ours: float, theirs: float) -> None:
    if abs(ours - theirs) > TOLERANCE:
        raise ConsilienceError(f"mAP is {ours:.9f} here, {theirs:.9f} by {name}: timings of unequal work")


def _spread(upper: list[float], lower: list[float]) -> dict[str, float]:
    """Median, min and max of the quotients repeat by repeat."""
    quotients = [a / b for a, b in zip(upper, lower)]
    return {"median": median(quotients), "min": min(quotients), "max": max(quotients)}
