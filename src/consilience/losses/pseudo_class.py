"""Teaching the two modalities of a pair the same classes without being told any."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def pseudo_classification(image: Float[Tensor, "b k"], caption: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """L_pse: mean cross-entropy of the image's prediction with the caption's arg max, which gets no gradient (PC2)."""
    return F.cross_entropy(image.float(), caption.detach().argmax(1))


def prediction_entropy(logits: Float[Tensor, "b k"], of: Literal["batch", "sample"]) -> Float[Tensor, ""]:
    """Entropy in nats: of the batch's mean prediction (PC2's poster), or the mean of the samples' (its release)."""
    log_p = F.log_softmax(logits.float(), 1)
    if of == "sample":
        return -(log_p.exp() * log_p).sum(1).mean()
    mean = log_p.exp().mean(0)
    return -(mean * mean.clamp(min=1e-12).log()).sum()


def soft_cross_entropy(logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """-sum_k t_k log p_k of each row; ``targets`` get no gradient."""
    return -(targets.detach() * F.log_softmax(logits.float(), 1)).sum(1)
