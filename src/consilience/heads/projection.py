"""What stands between an encoder and a loss: projections into the common space, and classifiers over clusters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from consilience.encoders.norm import BatchNorm1d


def projection(inputs: int, outputs: int, *, rectified: bool) -> nn.Module:
    """Linear + batch norm into the common space, optionally followed by ReLU (RoMo's image projection)."""
    layers: list[nn.Module] = [nn.Linear(inputs, outputs), BatchNorm1d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if rectified else []))


class Prototypes(nn.Module):
    """One centre a cluster; the logits are inner products W z (RoMo eq. of SSM) or cosines / temperature."""

    def __init__(self, clusters: int, width: int, temperature: float | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(clusters, width), dim=1))
        self.temperature = temperature

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Logits over clusters; with a temperature, invariant to the lengths of z and of the centres."""
        if self.temperature is None:
            return F.linear(z, self.weight)
        return F.linear(F.normalize(z.float(), dim=1), F.normalize(self.weight, dim=1)) / self.temperature

    @torch.no_grad()
    def set(self, centres: Float[Tensor, "k d"]) -> None:
        """Put the centres where a clustering found them."""
        self.weight.copy_(centres)


def classifier(inputs: int, hidden: int, classes: int) -> nn.Module:
    """Linear, ReLU, Linear: RoMo's shared head of the second stage."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
