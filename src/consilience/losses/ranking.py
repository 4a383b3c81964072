"""Alternatives and companions of InfoNCE on codes: a ranking loss with a margin, and similarities as targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def margin_ranking(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "n d"],
    margin: float,
    shift: float,
    temperature: float = 1.0,
    weights: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Ranking over all negatives, after UCCH (P. Hu et al., "Unsupervised Contrastive Cross-Modal Hashing", IEEE TPAMI
    2023).

    With s_ij the cosine of a_i and b_j, and s'_ij = s_ij, or s_ij - ``shift`` for a negative that is already more than
    ``margin`` below the positive (it hardly counts any more):

    margin - s_ii + temperature log sum_j exp(s'_ij / temperature),

    mean of both directions (the release sums them) and over pairs by ``weights``.
    """
    scores = F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T
    positive = scores.diagonal()
    both = []
    for rows in (scores, scores.T):
        easy = rows.detach() < (positive.detach() - margin)[:, None]
        kept = rows - shift * easy
        both.append(margin - positive + temperature * torch.logsumexp(kept / temperature, 1))
    each = (both[0] + both[1]) / 2
    weights = torch.ones_like(each) if weights is None else weights
    return (weights * each).sum() / weights.sum().clamp(min=1e-6)


def joint_affinity(
    a: Float[Tensor, "n d"], b: Float[Tensor, "n e"], share: float = 0.5, eta: float = 0.4, mu: float = 1.5
) -> Float[Tensor, "n n"]:
    """Soft targets from two modalities' features (DJSRH: S. Su, Z. Zhong, C. Zhang, ICCV 2019):

    S~ = share cos(a, a) + (1 - share) cos(b, b),  S = mu [ (1 - eta) S~ + eta S~ S~^T / n ].

    Without gradient.
    """
    with torch.no_grad():
        u, v = F.normalize(a.detach().float(), dim=1), F.normalize(b.detach().float(), dim=1)
        joint = share * (u @ u.T) + (1 - share) * (v @ v.T)
        return mu * ((1 - eta) * joint + eta * (joint @ joint.T) / len(joint))


def affinity_regression(
    a: Float[Tensor, "n k"], b: Float[Tensor, "n k"], targets: Float[Tensor, "n n"]
) -> Float[Tensor, ""]:
    """Mean squared difference between ``targets`` (at most 1) and the cosines of codes: across the modalities, within
    the first and within the second, averaged (DJSRH)."""
    u, v = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    wanted = targets.clamp(max=1)
    return torch.stack([(x @ y.T - wanted).square().mean() for x, y in ((u, v), (u, u), (v, v))]).mean()
