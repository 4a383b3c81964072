"""Classifiers whose classes are the pictures of one batch: imprinted from their own views, or drawn at random."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from consilience.errors import InputError
from consilience.views.keyed import KeyedRandom

WEIGHT = 300  # slot of the draws


def imprinted_logits(features: Float[Tensor, "b k d"]) -> Float[Tensor, "k b b"]:
    """Cosines of every view with every picture's leave-one-out prototype: entry [k, i, j] of view k of picture i.

    The prototype of picture j for view k is the direction of the sum of its other views' unit features; it has no
    gradient, and never contains the view that is compared with it. InputError for fewer than two views.
    """
    if features.shape[1] < 2:
        raise InputError(f"prototypes from {features.shape[1]} view; draw two or more")
    unit = F.normalize(features.float(), dim=2)
    with torch.no_grad():
        others = F.normalize(unit.sum(1, keepdim=True) - unit, dim=2)
    return unit.transpose(0, 1) @ others.permute(1, 2, 0)


class DrawnHead(nn.Module):
    """A linear layer from features to the pictures of a batch whose weight is drawn anew for every batch.

    Its rows stand for other pictures every time, so it is no part of what the phase's optimiser trains: :meth:`learn`
    takes its own steps, by the closed gradient of softmax cross-entropy, with momentum that :meth:`reset` forgets. The
    bias is kept from batch to batch, as in the authors' code, and is all that a checkpoint holds.
    """

    weight: Tensor
    bias: Tensor
    weight_speed: Tensor
    bias_speed: Tensor

    def __init__(self, pictures: int, width: int, momentum: float = 0.0) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("bias", torch.zeros(pictures))
        self.register_buffer("weight", torch.zeros(pictures, width), persistent=False)
        self.register_buffer("weight_speed", torch.zeros(pictures, width), persistent=False)
        self.register_buffer("bias_speed", torch.zeros(pictures), persistent=False)

    @torch.no_grad()
    def reset(self, random: KeyedRandom) -> None:
        """Draw the rows of ``random.index`` (the pictures of the batch, in its order): normal, with Xavier's standard
        deviation of the whole layer. Momentum is zero afterwards."""
        pictures, width = self.weight.shape
        self.weight[: len(random.index)] = random.normal(WEIGHT, width) * (2 / (pictures + width)) ** 0.5
        self.weight_speed.zero_()
        self.bias_speed.zero_()

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
        """Logits of the first b pictures, for a batch of b."""
        count = len(features)
        if count > len(self.bias):
            raise InputError(f"a batch of {count}, the head has rows for {len(self.bias)}; raise batch_size")
        # copies: learn() changes these rows before the backward pass needs them
        return F.linear(features, self.weight[:count].clone(), self.bias[:count].clone())

    @torch.no_grad()
    def learn(self, features: Float[Tensor, "b d"], own: Int64[Tensor, " b"], temperature: float, rate: float) -> None:
        """One step of gradient descent on mean cross-entropy of logits / temperature, on the rows of this batch."""
        count = len(features)
        wrong = torch.softmax(self(features).float() / temperature, 1) - F.one_hot(own, count)
        slope = wrong / (count * temperature)
        for rows, speed, gradient in (
            (self.weight, self.weight_speed, slope.T @ features.float()),
            (self.bias, self.bias_speed, slope.sum(0)),
        ):
            speed[:count] = self.momentum * speed[:count] + gradient
            rows[:count] -= rate * speed[:count]
