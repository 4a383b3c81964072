"""Every picture of a batch as a class of its own, and what keeps the views of one picture together (BIDFC).

Y. Zhai et al., "Weakly Contrastive Learning via Batch Instance Discrimination and Feature Clustering for Small Sample
SAR ATR", IEEE TGRS (arXiv 2408.03627); the separation term is of a public successor of its code.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from consilience.errors import InputError
from consilience.losses.contrastive import info_nce

_SMALLEST = 1e-12  # a variance below it is none: its root would have no gradient to speak of, and an endless one


def instance_discrimination(
    logits: Float[Tensor, "n b"],
    own: Int64[Tensor, " n"],
    temperature: float,
    candidates: Bool[Tensor, "n b"] | None = None,
) -> Float[Tensor, ""]:
    """L_BID: mean of -log softmax(logits / T) at each row's ``own`` instance, float32.

    A higher temperature is a weaker contrast: gradients shrink by 1 / T and the softmax flattens. ``candidates``: the
    instances that a row is told from (default all; its own always counts).
    """
    if temperature <= 0:
        raise InputError(f"temperature {temperature}: expected a positive number")
    positives = F.one_hot(own, logits.shape[1]).bool()
    return info_nce(logits.float() / temperature, positives, candidates).mean()


def view_variance(
    features: Float[Tensor, "b k d"],
    statistic: Literal["std", "var"] = "std",
    reduction: Literal["sum", "mean"] = "mean",
) -> Float[Tensor, ""]:
    """L_DWV: spread of a picture's k views, mean over the d numbers, sum or mean over the pictures, float32.

    The unbiased standard deviation, as the authors' code has it, or the variance, as its name says. Views that are
    equal give 0 and a gradient of 0. InputError for fewer than two views.
    """
    if features.shape[1] < 2:
        raise InputError(f"the spread of {features.shape[1]} view; draw two or more")
    variance = features.float().var(1)
    spread = variance if statistic == "var" else _root(variance)
    each = spread.mean(1)
    return each.sum() if reduction == "sum" else each.mean()


def separation(features: Float[Tensor, "b k d"], target: float = 1.0) -> Float[Tensor, ""]:
    """(mean over numbers of the standard deviation over pictures of their mean feature - target)^2, float32.

    It fixes how far apart different pictures lie, which the spread of views leaves free, and so forbids collapse.
    InputError for fewer than two pictures.
    """
    if len(features) < 2:
        raise InputError("the spread between pictures of a batch of one; use larger batches")
    return (_root(features.float().mean(1).var(0)).mean() - target).square()


def ramp(epoch: float, start: float, full: float, weight: float) -> float:
    """alpha(e): 0 up to epoch ``start`` (from 0 on), ``weight`` from ``full`` on, linear between."""
    if epoch <= start:
        return 0.0
    return weight if epoch >= full else weight * (epoch - start) / (full - start)


def _root(variance: Tensor) -> Tensor:
    there = variance > _SMALLEST
    return torch.where(there, torch.where(there, variance, 1.0).sqrt(), 0.0)
