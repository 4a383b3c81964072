"""Vectors that another program computed: a perceptron with one hidden layer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from consilience.encoders.base import Encoder
from consilience.encoders.norm import BatchNorm1d


class VectorMLP(Encoder):
    """Linear, batch norm, ReLU, linear."""

    def __init__(self, inputs: int, hidden: int = 512, width: int = 256) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden, bias=False), BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b width"]:
        """Features of one vector a row."""
        out: Tensor = self.layers(x)
        return out
