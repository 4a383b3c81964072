"""InfoNCE, once: explicit positives and candidates, so that every contrastive paper is a choice of masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def info_nce(
    logits: Float[Tensor, "n m"],
    positives: Bool[Tensor, "n m"],
    candidates: Bool[Tensor, "n m"] | None = None,
) -> Float[Tensor, " n"]:
    """-log( sum over positives of exp(logit) / sum over candidates of exp(logit) ), one value a row, float32.

    ``candidates`` (default: all) are the terms of the denominator; a positive always counts as one. Rows without a
    positive give 0 and no gradient. Computed by log-sum-exp in float32: finite for any finite logits.
    """
    logits = logits.float()
    low = torch.finfo(torch.float32).min / 4
    allowed = logits if candidates is None else logits.masked_fill(~(candidates | positives), low)
    value = torch.logsumexp(allowed, 1) - torch.logsumexp(logits.masked_fill(~positives, low), 1)
    return torch.where(positives.any(1), value, value.new_zeros(()))


def nt_xent(
    views: Sequence[Float[Tensor, "b d"]],
    temperature: float,
    groups: Int64[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of recognising a sample's other views among the batch (NT-Xent; mean over V*B anchors).

    ``views``: V tensors [B, D], row i of each is sample i; vectors are normalised here. An anchor is no candidate
    of itself. ``groups``: pseudo-labels; samples of the anchor's group are removed from its negatives (its own
    other views stay), negative numbers mean "no group known".
    """
    z = F.normalize(torch.cat(list(views)).float(), dim=1)
    count, samples = z.shape[0], views[0].shape[0]
    sample = torch.arange(samples, device=z.device).repeat(len(views))
    itself = torch.eye(count, dtype=torch.bool, device=z.device)
    positives = (sample[:, None] == sample[None]) & ~itself
    candidates = ~itself
    if groups is not None:
        group = groups.repeat(len(views))
        candidates &= (group[:, None] != group[None]) | (group[:, None] < 0)
    return info_nce(z @ z.T / temperature, positives, candidates).mean()


def pairwise_nt_xent(
    views: Sequence[Float[Tensor, "b d"]],
    present: Sequence[Bool[Tensor, " b"]],
    temperature: float,
    groups: Int64[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Sum of :func:`nt_xent` over all pairs of views, each over the samples that have both."""
    total = views[0].new_zeros((), dtype=torch.float32)
    for a in range(len(views)):
        for b in range(a + 1, len(views)):
            both = present[a] & present[b]
            if int(both.sum()) > 1:
                chosen = None if groups is None else groups[both]
                total = total + nt_xent([views[a][both], views[b][both]], temperature, chosen)
    return total


def pair_nce(scores: Float[Tensor, "n n"], temperature: float) -> Float[Tensor, " n"]:
    """Cross-entropy of finding a pair's partner among the batch, mean of both directions, one value a pair (CLIP).

    Row i, column j of ``scores`` is the score of image i with caption j; the diagonal holds the pairs.
    """
    logits, own = scores.float() / temperature, torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(logits, own, reduction="none") + F.cross_entropy(logits.T, own, reduction="none")) / 2


def weighted_pair_nce(
    scores: Float[Tensor, "n n"], weights: Float[Tensor, " n"], temperature: float
) -> Float[Tensor, ""]:
    """Mean of :func:`pair_nce` by weight. A pair of weight 0 is no anchor, but its parts stay negatives of others."""
    return (weights * pair_nce(scores, temperature)).sum() / weights.sum().clamp(min=1e-6)


@dataclass(frozen=True)
class Remembered:
    """Vectors of earlier pairs that serve as further negatives."""

    a: Float[Tensor, "m d"]
    """Of the first modality: negatives of ``b``."""
    b: Float[Tensor, "m d"]
    """Of the second: negatives of ``a``."""
    same: Bool[Tensor, "n m"]
    """Whether a remembered pair is the anchor's own, which is then no negative."""


def cross_modal_nce(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "n d"],
    temperature: float,
    weights: Float[Tensor, " n"] | None = None,
    debias: float = 0.0,
    remembered: Remembered | None = None,
) -> Float[Tensor, ""]:
    """N(a, b): InfoNCE of paired vectors by cosine, mean of both directions, mean over pairs by ``weights`` (equal ones
    by default). Row i of ``a`` belongs to row i of ``b``; vectors are normalised here.

    ``debias``: tau+, the share of negatives taken to be of the anchor's class (Chuang et al., "Debiased Contrastive
    Learning", NeurIPS 2020; ConMH: 0.1), see :func:`debiased_pair_nce`. ``remembered``: negatives beyond the batch
    (UCCH, P. Hu et al., IEEE TPAMI 2023; MoCo); without ``debias``.
    """
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    scores = a @ b.T
    weights = torch.ones_like(scores[0]) if weights is None else weights
    if remembered is not None:
        own = torch.eye(len(a), dtype=torch.bool, device=a.device)
        positives = torch.cat([own, torch.zeros_like(remembered.same)], 1)
        candidates = torch.cat([torch.ones_like(own), ~remembered.same], 1)
        both = [
            info_nce(torch.cat([rows, z @ F.normalize(keys, dim=1).T], 1) / temperature, positives, candidates)
            for rows, z, keys in ((scores, a, remembered.b), (scores.T, b, remembered.a))
        ]
        each = (both[0] + both[1]) / 2
    elif debias:
        each = debiased_pair_nce(scores, temperature, debias)
    else:
        return weighted_pair_nce(scores, weights, temperature)
    return (weights * each).sum() / weights.sum().clamp(min=1e-6)


def debiased_pair_nce(scores: Float[Tensor, "n n"], temperature: float, share: float) -> Float[Tensor, " n"]:
    """:func:`pair_nce` of cosines with the sum over an anchor's n - 1 negatives replaced by

    max{ (sum_neg - share (n - 1) e^pos) / (1 - share), (n - 1) e^(-1 / temperature) }.

    Computed in logarithms relative to the positive: finite for any temperature.
    """
    logits = scores.float() / temperature
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    low, count = torch.finfo(torch.float32).min / 4, len(logits) - 1
    if count < 1:
        return logits.diagonal() * 0
    log_share, log_count = math.log(share), math.log(count)
    both = []
    for rows in (logits, logits.T):
        positive = rows.diagonal()
        ratio = rows.masked_fill(own, low).logsumexp(1) - positive
        least = log_count - 1 / temperature - positive
        # beyond the first term there is nothing left to subtract from: the bound applies
        enough = ratio > log_share + log_count + 1e-6
        safe = torch.where(enough, ratio, log_share + log_count + 1.0)
        corrected = safe + torch.log1p(-torch.exp(log_share + log_count - safe)) - math.log(1 - share)
        both.append(F.softplus(torch.where(enough, torch.maximum(corrected, least), least)))
    return (both[0] + both[1]) / 2
