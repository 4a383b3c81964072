"""Clusters as label proposals: k-means, balanced assignment, neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from consilience.errors import ConsilienceError, InputError


def enough_for(samples: int, clusters: int) -> None:
    """InputError unless ``samples`` can form ``clusters``."""
    if samples < clusters:
        raise InputError(
            f"{samples} samples cannot form {clusters} clusters; lower --method.clusters or give more data"
        )


def kmeans(
    vectors: Float[Tensor, "n d"],
    clusters: int,
    seed: int,
    start: Float[Tensor, "k d"] | None = None,
    restarts: int = 10,
) -> tuple[Float[Tensor, "k d"], Int64[Tensor, " n"]]:
    """Centres and assignment of Lloyd's algorithm (k-means++ with ``restarts``, or from ``start``).

    One thread: scikit-learn sums in thread order otherwise, and a resumed run must find the same bits.
    Raises InputError when there are fewer vectors than clusters, ConsilienceError when clusters stay empty.
    """
    enough_for(len(vectors), clusters)
    data = vectors.detach().cpu().float().numpy()
    model = KMeans(
        clusters,
        init="k-means++" if start is None else start.detach().cpu().float().numpy(),
        n_init=restarts if start is None else 1,
        random_state=seed,
    )
    with threadpool_limits(limits=1):
        labels = model.fit_predict(data)
    if len(np.unique(labels)) < clusters:
        raise ConsilienceError(
            f"only {len(np.unique(labels))} of {clusters} clusters are used: the vectors have collapsed; "
            "train longer before clustering (--method.warmup_epochs) or lower --method.clusters"
        )
    centres = torch.from_numpy(model.cluster_centers_.astype(np.float32)).to(vectors.device)
    return centres, torch.from_numpy(labels.astype(np.int64)).to(vectors.device)


def two_step_kmeans(views: Sequence[Float[Tensor, "n_v d"]], clusters: int, seed: int) -> list[Float[Tensor, "k d"]]:
    """Centres of each view, found from the centres of all views together (RoMo, section SSM): cluster k means the
    same in every view, which separate clusterings would not give."""
    joint, _ = kmeans(torch.cat(list(views)), clusters, seed)
    return [kmeans(view, clusters, seed, start=joint)[0] for view in views]


def class_centres(
    vectors: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], otherwise: Float[Tensor, "k d"]
) -> Float[Tensor, "k d"]:
    """Unit mean of the vectors of each label; a label without members keeps its row of ``otherwise``."""
    sums = torch.zeros_like(otherwise).index_add_(0, labels, vectors)
    return torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), otherwise)


def sinkhorn(scores: Float[Tensor, "n k"], epsilon: float = 0.05, rounds: int = 3) -> Float[Tensor, "n k"]:
    """Balanced soft assignment: rows sum to 1, columns to about N/K (entropic transport; Cuturi 2013, SwAV 2020).

    ``scores``: similarity of sample and cluster. Small ``epsilon`` sharpens, ``rounds`` balances.
    """
    log_plan = scores.float() / epsilon
    for _ in range(rounds):
        log_plan = log_plan - torch.logsumexp(log_plan, 0, keepdim=True)
        log_plan = log_plan - torch.logsumexp(log_plan, 1, keepdim=True)
    return log_plan.exp()


def neighbour_mean(vectors: Float[Tensor, "n d"], neighbours: int, block: int = 1024) -> Float[Tensor, "n d"]:
    """Each unit vector replaced by the unit mean of its nearest neighbours (cosine, itself included), by blocks."""
    if neighbours <= 1:
        return vectors
    unit = F.normalize(vectors, dim=1)
    near = torch.cat([(part @ unit.T).topk(min(neighbours, len(unit)), 1).indices for part in torch.split(unit, block)])
    mean = torch.stack([unit[near[:, j]] for j in range(near.shape[1])]).mean(0)
    return F.normalize(mean, dim=1)
