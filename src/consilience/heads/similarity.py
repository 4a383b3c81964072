"""The modules of SGRAF (Diao, Zhang, Ma, Lu, AAAI 2021) for a block of image-caption pairs; see
:mod:`consilience.heads.sgraf`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from consilience.encoders.base import mean_of_slots, unit
from consilience.encoders.norm import BatchNorm1d
from consilience.heads.pair_difference import squared_difference

SHARPNESS = 9.0
"""Inverse temperature of the attention over regions (SCAN's lambda)."""


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class SlotAttention(nn.Module):
    """One vector for a set of slots, weighted by their agreement with the mean slot.

    weights = softmax(w . (tanh(A slot) * tanh(B mean))), each tanh with dropout 0.4; the result has unit length. With
    ``places``, A and B are followed by batch norms over the slot's place and over the features (the image side);
    padding counts as zeros in their moments.
    """

    def __init__(self, embed: int, places: int | None, dropout: float = 0.4) -> None:
        super().__init__()
        self.local, self.whole, self.weigh = _linear(embed, embed), _linear(embed, embed), _linear(embed, 1)
        self.local_norm = nn.Identity() if places is None else BatchNorm1d(places)
        self.whole_norm = nn.Identity() if places is None else BatchNorm1d(embed)
        self.dropout = nn.Dropout(dropout)

    def forward(self, slots: Float[Tensor, "b l e"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b e"]:
        """Unit vectors; zeros for a row without slots. Masked slots must be zeros."""
        local = self.dropout(self.local_norm(self.local(slots)).tanh())
        whole = self.dropout(self.whole_norm(self.whole(mean_of_slots(slots, mask))).tanh())
        logits = self.weigh(local * whole.unsqueeze(1)).squeeze(-1)
        weights = logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(1)
        return unit(torch.bmm(weights.unsqueeze(1), slots).squeeze(1))


class _Step(nn.Module):
    """One round of reasoning, X <- relu(G softmax(Q X (K X)^T) X), for the nodes that ask."""

    def __init__(self, sim: int) -> None:
        super().__init__()
        self.query, self.key, self.graph = _linear(sim, sim), _linear(sim, sim, bias=False), _linear(sim, sim)

    def forward(self, asking: Float[Tensor, "n a s"], nodes: Float[Tensor, "n l s"]) -> Float[Tensor, "n a s"]:
        """New vectors of the nodes ``asking``."""
        asked = F.linear(asking, self.key.weight.t() @ self.query.weight, self.query.bias @ self.key.weight)
        weights = torch.bmm(asked, nodes.transpose(1, 2)).softmax(2)
        return F.relu(self.graph(torch.bmm(weights, nodes)))


class Reasoning(nn.Module):
    """SGR: a complete graph over the similarity vectors; the answer is node 0, the global one, after all steps."""

    def __init__(self, sim: int, steps: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(_Step(sim) for _ in range(steps))

    def forward(self, nodes: Float[Tensor, "n l s"]) -> Float[Tensor, "n s"]:
        """The first node after all steps; other nodes need no last step, as nobody reads them."""
        for step in self.steps[:-1]:
            nodes = step(nodes, nodes)
        out: Tensor = self.steps[-1](nodes[:, :1], nodes)[:, 0]
        return out


class Filtration(nn.Module):
    """SAF: the mean of the similarity vectors, each weighted by how much it should be trusted."""

    def __init__(self, sim: int) -> None:
        super().__init__()
        self.weigh = _linear(sim, 1)
        self.norm = BatchNorm1d(1)

    def logits(self, nodes: Float[Tensor, "n l s"]) -> Float[Tensor, "n l"]:
        """Trust of each node before batch norm."""
        out: Tensor = self.weigh(nodes).squeeze(-1)
        return out

    def normed(self, logits: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Batch norm over everything given."""
        out: Tensor = self.norm(logits.unsqueeze(1)).squeeze(1)
        return out

    def pooled(self, nodes: Float[Tensor, "n l s"], logits: Float[Tensor, "n l"]) -> Float[Tensor, "n s"]:
        """Unit mean under the weights sigmoid(``logits``), which are made to sum to 1."""
        trust = logits.sigmoid()
        weights = trust / (trust.sum(1, keepdim=True) + 1e-8)
        return unit(torch.bmm(weights.unsqueeze(1), nodes).squeeze(1))

    def forward(self, nodes: Float[Tensor, "n l s"]) -> Float[Tensor, "n s"]:
        """The pooled vector of each pair."""
        logits = self.logits(nodes)
        return self.pooled(nodes, self.normed(logits.flatten()).view_as(logits))


@dataclass(frozen=True)
class Images:
    """Regions [b, r, e], their inner products [b, r, r], global vectors [b, e], and the mask unless all exist."""

    regions: Tensor
    gram: Tensor
    whole: Tensor
    mask: Tensor | None

    def split(self, size: int) -> list[Images]:
        """In parts of ``size`` images."""
        masks = itertools.repeat(None) if self.mask is None else torch.split(self.mask, size)
        tensors = (torch.split(x, size) for x in (self.regions, self.gram, self.whole))
        return [Images(*parts) for parts in zip(*tensors, masks, strict=False)]


class PairSimilarity(nn.Module):
    """Similarity vectors of all pairs of a block, and what is made of them."""

    def __init__(self, embed: int, sim: int, module: Literal["sgr", "saf"], steps: int) -> None:
        super().__init__()
        self.local, self.whole = _linear(embed, sim), _linear(embed, sim)
        self.judge: Reasoning | Filtration = Reasoning(sim, steps) if module == "sgr" else Filtration(sim)
        self.score = _linear(sim, 1)

    def nodes(self, images: Images, words: Tensor, whole: Tensor) -> Float[Tensor, "p nodes s"]:
        """Similarity vectors: global first, then one a word. ``words`` [g, n, l, e], ``whole`` [g, n, e], g = 1 when
        all k images meet the same captions; pairs p = k n, the captions of an image following each other."""
        (k, regions, embed), (g, n, length, _) = images.regions.shape, words.shape
        flat = words.reshape(g, n * length, embed)
        if g == 1:
            raw = (images.regions.reshape(-1, embed) @ flat[0].t()).view(k, regions, n, length)
        else:
            raw = torch.bmm(images.regions, flat.transpose(1, 2)).view(k, regions, n, length)
        logits = SHARPNESS * unit(F.leaky_relu(raw, 0.1))
        if images.mask is not None:
            logits = logits.masked_fill(~images.mask[:, :, None, None], torch.finfo(logits.dtype).min)
        weights = logits.softmax(1).view(k, regions, n * length)
        squares = (weights * torch.bmm(images.gram, weights)).sum(1, keepdim=True)
        mix = (weights / (squares.clamp_min(1e-20).sqrt() + 1e-8)).transpose(1, 2)
        local = squared_difference(mix, images.regions, flat, self.local.weight, self.local.bias)
        ones = mix.new_ones(k, n, 1)
        glob = squared_difference(ones, images.whole.unsqueeze(1), whole, self.whole.weight, self.whole.bias)
        joined = torch.cat([glob.unsqueeze(2), local.view(k, n, length, glob.shape[2])], 2)
        return unit(joined.flatten(0, 1))

    def judged(self, vectors: Float[Tensor, "p s"]) -> Float[Tensor, " p"]:
        """Scores in (0, 1)."""
        out: Tensor = self.score(vectors).squeeze(1).sigmoid()
        return out

    def forward(self, images: Images, words: Tensor, whole: Tensor) -> Float[Tensor, " p"]:
        """Scores of the pairs, see :meth:`nodes`."""
        return self.judged(self.judge(self.nodes(images, words, whole)))
