"""Random omissions for captions, region features and vectors, in batches, on the device of the tensors.

One share for all of them: every token, region or entry is hidden with the same probability. Draws are keyed
by sample (:mod:`consilience.views.keyed`).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from consilience.views.keyed import KeyedRandom

_PADDING = -1


def tokens_view(tokens: Int64[Tensor, "b t"], random: KeyedRandom, share: float) -> Int64[Tensor, "b t"]:
    """Captions (token ids, then -1) without some of their tokens; the rest moves forward.

    The first and the last token, which are the markers, stay, and at least one token between them does.
    """
    real = tokens != _PADDING
    place = torch.arange(tokens.shape[1], device=tokens.device)
    inner = real & (place > 0) & (place < real.sum(1, keepdim=True) - 1)
    kept = real & (~inner | _stays(inner, random.uniform(40, 0.0, 1.0, tokens.shape[1]), share))
    order = torch.argsort((~kept).to(torch.uint8), dim=1, stable=True)
    return tokens.gather(1, order).where(place < kept.sum(1, keepdim=True), _PADDING)


def regions_view(regions: Float[Tensor, "b r d"], random: KeyedRandom, share: float) -> Float[Tensor, "b r d"]:
    """Region features with some regions set to zero, like padding; at least one region of a picture stays."""
    real = (regions != 0).any(2)
    return regions * _stays(real, random.uniform(41, 0.0, 1.0, regions.shape[1]), share)[:, :, None]


def vector_view(vectors: Float[Tensor, "b d"], random: KeyedRandom, share: float) -> Float[Tensor, "b d"]:
    """Vectors with some entries set to zero; at least one entry that is not zero stays."""
    return vectors * _stays(vectors != 0, random.uniform(42, 0.0, 1.0, vectors.shape[1]), share)


def _stays(real: Bool[Tensor, "b n"], draws: Float[Tensor, "b n"], share: float) -> Bool[Tensor, "b n"]:
    """Which places stay: those with a draw of at least ``share``, and of the real ones that with the highest."""
    highest = torch.where(real, draws, -1.0).argmax(1, keepdim=True)
    return (draws >= share).scatter(1, highest, True)
