"""Point-cloud encoders: DGCNN (Wang et al., TOG 2019) and PointNet (Qi et al., CVPR 2017), sized as in RoMo.

Shapes and layer sizes follow LYXRhythm/RoMo (TIP 2024, doi 10.1109/TIP.2024.3426482), without its classifier.
Points are rows: every tensor here is [B, points, channels].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from consilience.encoders.base import Encoder
from consilience.encoders.neighbours import knn, neighbour_max_norm
from consilience.encoders.norm import BatchNorm1d, BatchNorm2d


class EdgeConv(nn.Module):
    """max over neighbours j of LeakyReLU(BN(W [x_j - x_i, x_i])) without ever building the edges.

    Exact, not an approximation: W [x_j - x_i, x_i] = W_d x_j + (W_c - W_d) x_i needs two products a *point*;
    BN and LeakyReLU are monotone a channel, so the maximum (the minimum where BN's weight is negative) goes
    inside them; the training moments follow from neighbour counts and sums. Same parameters and state-dict
    keys as :class:`DirectEdgeConv`. Under autocast the products stay in float32: W_d x_j and W_d x_i nearly
    cancel, and half precision would lose their difference.
    """

    def __init__(self, inputs: int, outputs: int, neighbours: int = 20, slope: float = 0.2) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.slope = slope
        self.conv = nn.Conv2d(2 * inputs, outputs, 1, bias=False)
        self.norm = BatchNorm2d(outputs)

    def forward(
        self, x: Float[Tensor, "b n c"], neighbours: Int64[Tensor, "b n k"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Features [B, N, outputs]; ``neighbours``, rows of the same cloud, default to ``knn`` of ``x``."""
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            found = knn(x, self.neighbours) if neighbours is None else neighbours
            difference, centre = self.conv.weight.flatten(1).chunk(2, dim=1)
            out = neighbour_max_norm(F.linear(x, difference), F.linear(x, centre - difference), found, self.norm)
            return F.leaky_relu(out, self.slope)


class DirectEdgeConv(EdgeConv):
    """The same layer from its definition: gather, concatenate, 1x1 convolution, BN, LeakyReLU, maximum.

    Stores [B, 2C, N, k]; kept as the reference that :class:`EdgeConv` is tested and measured against.
    """

    def forward(
        self, x: Float[Tensor, "b n c"], neighbours: Int64[Tensor, "b n k"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Features [B, N, outputs], as :meth:`EdgeConv.forward`; neighbours by a sort of all distances."""
        if neighbours is None:
            norms = x.square().sum(2)
            distances = norms[:, :, None] - 2 * x @ x.transpose(1, 2) + norms[:, None, :]
            neighbours = distances.topk(self.neighbours, largest=False).indices
        first = torch.arange(x.shape[0], device=x.device)[:, None, None] * x.shape[1]
        far = x.flatten(0, 1)[(neighbours + first).flatten()].view(*neighbours.shape, -1)
        near = x[:, :, None, :].expand_as(far)
        edges = torch.cat([far - near, near], dim=3).permute(0, 3, 1, 2).contiguous()
        out: Tensor = F.leaky_relu(self.norm(self.conv(edges)), self.slope).max(3).values
        return out.transpose(1, 2)


class DGCNN(Encoder):
    """Dynamic graph network: four EdgeConv layers on neighbours of their own input, then a global vector.

    Concatenated layers -> linear to ``width``, BN, LeakyReLU 0.2 -> [max, mean] over points -> linear
    2 width -> width, BN, LeakyReLU 0.01. Input float [B, P, 3] with P >= ``neighbours``. RoMo: width 1024 and
    20 neighbours in stage 1, 256 and 40 in stage 2.
    """

    def __init__(
        self,
        width: int = 1024,
        neighbours: int = 20,
        channels: Sequence[int] = (64, 64, 128, 256),
        edge: type[EdgeConv] = EdgeConv,
    ) -> None:
        super().__init__()
        self.width = width
        inputs = [3, *channels[:-1]]
        self.edges = nn.ModuleList(edge(i, o, neighbours) for i, o in zip(inputs, channels, strict=True))
        self.embed = nn.Linear(sum(channels), width, bias=False)
        self.embed_norm = BatchNorm1d(width)
        self.head = nn.Linear(2 * width, width, bias=False)
        self.head_norm = BatchNorm1d(width)

    def forward(self, x: Float[Tensor, "b p 3"]) -> Float[Tensor, "b width"]:
        """Features of clouds [B, P, 3]. Raises ``InputError`` when P is below the number of neighbours."""
        layers: list[Tensor] = []
        for edge in self.edges:
            layers.append(edge(layers[-1] if layers else x))
        points = self.embed_norm(self.embed(torch.cat(layers, dim=2).flatten(0, 1)))
        points = F.leaky_relu(points, 0.2).view(*x.shape[:2], self.width)
        pooled = torch.cat([points.amax(1), points.mean(1)], dim=1)
        return F.leaky_relu(self.head_norm(self.head(pooled)), 0.01)


class PointNet(Encoder):
    """Shared point-wise layers (linear, BN, ReLU) of sizes 3, ``channels``, ``width``, then max over points.

    ``linear`` adds RoMo's final width -> width layer without bias. Input float [B, P, 3].
    """

    def __init__(self, width: int = 1024, channels: Sequence[int] = (64, 64, 64, 128), linear: bool = True) -> None:
        super().__init__()
        self.width = width
        sizes = [3, *channels, width]
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in pairwise(sizes))
        self.norms = nn.ModuleList(BatchNorm1d(o) for o in sizes[1:])
        self.head = nn.Linear(width, width, bias=False) if linear else nn.Identity()

    def forward(self, x: Float[Tensor, "b p 3"]) -> Float[Tensor, "b width"]:
        """Features of clouds [B, P, 3], invariant to the order of the points."""
        rows = x.flatten(0, 1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            rows = F.relu(norm(layer(rows)))
        out: Tensor = self.head(rows.view(*x.shape[:2], -1).max(1).values)
        return out


def small_pointnet(width: int = 256) -> PointNet:
    """The fast preset: 3-64-128-``width`` with BN and max pool, for clouds of a few hundred points."""
    return PointNet(width, (64, 128), linear=False)
