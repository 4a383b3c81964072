"""SGRAF from its definition: a Python loop over captions, nothing folded, nothing shared, nothing masked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from consilience.heads.sgraf import SGRAF, Similarity
from consilience.heads.similarity import Reasoning


def l2(x: Tensor, dim: int = -1) -> Tensor:
    return x / (x.square().sum(dim, keepdim=True).sqrt() + 1e-8)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.t() + (0 if layer.bias is None else layer.bias)


def similarity_vectors(part: Similarity, regions: Tensor, v: Tensor, caption: Tensor, t: Tensor) -> Tensor:
    """[b, 1 + words, s]: global similarity, then one a word. ``regions`` [b, r, e], ``caption`` [l, e]."""
    c = regions @ caption.t()
    c = torch.where(c > 0, c, 0.1 * c)
    c = l2(c, dim=2)
    weight = torch.exp(9 * c)
    weight = weight / weight.sum(1, keepdim=True)
    context = l2((weight.unsqueeze(3) * regions.unsqueeze(2)).sum(1))
    local = l2(linear(part.pairs.local, (context - caption) ** 2))
    whole = l2(linear(part.pairs.whole, (v - t) ** 2))
    return torch.cat([whole.unsqueeze(1), local], 1)


def reasoned(judge: Reasoning, x: Tensor) -> Tensor:
    for step in judge.steps:
        edges = torch.softmax(linear(step.query, x) @ linear(step.key, x).transpose(1, 2), 2)
        x = torch.relu(linear(step.graph, edges @ x))
    return x[:, 0]


def filtered(judge: nn.Module, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    logits = linear(judge.weigh, x).squeeze(2)
    logits = (logits - mean) / (variance + judge.norm.eps).sqrt() * judge.norm.weight + judge.norm.bias
    weight = torch.sigmoid(logits)
    weight = weight / (weight.abs().sum(1, keepdim=True) + 1e-8)
    return l2((weight.unsqueeze(2) * x).sum(1))


def slow_global(attend: nn.Module, slots: Tensor) -> Tensor:
    """[e] of one set of slots [l, e], without norms and dropout."""
    local = torch.tanh(linear(attend.local, slots))
    whole = torch.tanh(linear(attend.whole, slots.mean(0)))
    logits = linear(attend.weigh, local * whole).squeeze(1)
    return l2((torch.softmax(logits, 0).unsqueeze(1) * slots).sum(0))


def slow_scores(net: SGRAF, regions: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """[b, c], for images whose regions all exist. Global vectors are taken from the module (tested apart)."""
    everything = torch.ones(regions.shape[:2], dtype=torch.bool)
    seen, said = net.globals_of_images(regions, everything), net.globals_of_captions(words, word_mask)
    found = []
    for part, v, t in zip(net.parts, seen, said, strict=True):
        vectors = []
        for j in range(len(words)):
            caption = words[j][word_mask[j]]
            vectors.append(similarity_vectors(part, regions, v, caption, t[j]))
        judge = part.pairs.judge
        if isinstance(judge, Reasoning):
            answers = [reasoned(judge, x) for x in vectors]
        else:
            mean, variance = judge.norm.running_mean, judge.norm.running_var
            if judge.training:
                logits = torch.cat([linear(judge.weigh, x).flatten() for x in vectors])
                mean, variance = logits.mean(), logits.var(correction=0)
            answers = [filtered(judge, x, mean, variance) for x in vectors]
        found.append(torch.stack([torch.sigmoid(linear(part.pairs.score, x)).squeeze(1) for x in answers], 1))
    return torch.stack(found).mean(0)
