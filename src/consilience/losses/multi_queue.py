"""Contrast with one queue for every domain (arXiv 2408.05956: a domain is a kind of weather).

The paper's text was not at hand; both losses are rebuilt from its published summary. In L_contra1 keys of the own
domain attract and those of all others repel, and every domain has as many places whatever its frequency. In L_contra2
features of any domain may come to lie at *any* key of the normal one: the sum over positives stands inside the
logarithm, since the mean of logarithms would pull all to the middle of the class.

``keys`` [p, k, d] and ``filled`` [p, k] are a queue's (:class:`~consilience.memory.queue.Queue`); all vectors have
length 1. A partition's sum is weighed by places over filled ones, so that domains count the same from the first step
on.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from consilience.losses.contrastive import info_nce

Positives = Literal["queue", "own"]
"""queue: the own key and all keys of the own partition; own: the own key alone (MoCo)."""


def multi_queue_nce(
    z: Float[Tensor, "b d"],
    own: Float[Tensor, "b d"],
    keys: Float[Tensor, "p k d"],
    filled: Bool[Tensor, "p k"],
    domain: Int64[Tensor, " b"],
    temperature: float,
    positives: Positives = "queue",
    left_out: Bool[Tensor, "b p k"] | None = None,
) -> Float[Tensor, " b"]:
    """L_contra1, one value a sample: the mean over positives u of -log( e^(z.u / t) / (e^(z.own / t) + sum over all
    queues of e^(z.v / t)) ), float32.

    ``domain``: the sample's partition; a negative one has no positives but the own key. ``left_out``: keys that are
    neither positive nor negative (a sample's own earlier keys, where ``positives`` is own).
    """
    partitions, places, _ = keys.shape
    z, bank = z.float(), keys.flatten(0, 1)
    there = filled.flatten().expand(len(z), -1)
    if left_out is not None:
        there = there & ~left_out.flatten(1)
    near = (z * own.float()).sum(1, keepdim=True) / temperature
    far = z @ bank.T / temperature
    logits = torch.cat([near, far + _weights(filled, places)], 1)
    first = torch.zeros_like(logits, dtype=torch.bool)
    first[:, 0] = True
    candidates = torch.cat([first[:, :1], there], 1)
    alone = info_nce(logits, first, candidates)
    if positives == "own":
        return alone
    ring = torch.arange(partitions, device=z.device).repeat_interleave(places)
    mine = (ring == domain[:, None]) & there
    attracted = torch.cat([near, far.masked_fill(~mine, 0.0)], 1).sum(1) / (1 + mine.sum(1))
    return alone + near[:, 0] - attracted


def to_normal_nce(
    z: Float[Tensor, "b d"],
    keys: Float[Tensor, "p k d"],
    filled: Bool[Tensor, "p k"],
    normal: int,
    temperature: float,
) -> Float[Tensor, " b"]:
    """L_contra2, one value a sample: -log( m_normal / sum_w m_w ), m_w the mean of e^(z.v / t) over partition w's keys;
    float32. 0 while partition ``normal`` is empty."""
    partitions, places, _ = keys.shape
    logits = z.float() @ keys.flatten(0, 1).T / temperature + _weights(filled, places)
    ring = torch.arange(partitions, device=z.device).repeat_interleave(places)
    there = filled.flatten().expand(len(z), -1)
    return info_nce(logits, (ring == normal) & there, there)


def _weights(filled: Bool[Tensor, "p k"], places: int) -> Float[Tensor, " n"]:
    """The logarithm of places over filled places, for every key of a partition."""
    return torch.log(places / filled.sum(1).clamp(min=1).float()).repeat_interleave(places)
