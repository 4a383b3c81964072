"""MeshNet (Feng et al., AAAI 2019): features of a triangle mesh from its faces and their neighbours.

Layer sizes follow iMoonLab/MeshNet; the classifier's last layer is left out, as in RoMo.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from consilience.encoders.base import Encoder
from consilience.encoders.neighbours import neighbour_max_norm
from consilience.encoders.norm import BatchNorm1d, BatchNorm2d
from consilience.errors import InputError


def _dense(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), BatchNorm1d(outputs), nn.ReLU())


class FaceRotate(nn.Module):
    """Mean over the corner pairs 12, 23, 31 of a shared MLP, then an MLP; unchanged by rotating the corners.

    The three pairs share one batch of moments, so the invariance holds in training too (the public code
    normalises each pair by itself).
    """

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Sequential(*_dense(6, 32), *_dense(32, 32))
        self.fuse = nn.Sequential(*_dense(32, 64), *_dense(64, 64))

    def forward(self, corners: Float[Tensor, "r 9"]) -> Float[Tensor, "r 64"]:
        """Features of faces from their corners relative to the centre."""
        corner = corners.view(-1, 3, 3)
        pairs = torch.cat([corner, corner.roll(-1, dims=1)], dim=2)
        out: Tensor = self.fuse(self.pair(pairs.view(-1, 6)).view(-1, 3, 32).mean(1))
        return out


class FaceKernelCorrelation(nn.Module):
    """How well the normals of a face and its three neighbours match learnt kernels of four unit vectors each.

    Value = (1/16) sum over {own + 3 neighbour normals n} x {4 vectors w} of exp(-||n - w||^2 / (2 sigma^2)),
    then BN and ReLU. The response of a normal is computed once and looked up for the neighbours.
    """

    def __init__(self, kernels: int = 64, sigma: float = 0.2) -> None:
        super().__init__()
        self.sigma = sigma
        self.alpha = nn.Parameter(torch.rand(kernels, 4) * math.pi)
        self.beta = nn.Parameter(torch.rand(kernels, 4) * 2 * math.pi)
        self.norm = BatchNorm1d(kernels)

    def forward(self, normals: Float[Tensor, "r 3"], rows: Int64[Tensor, "r 3"]) -> Float[Tensor, "r kernels"]:
        """Features of faces; ``rows`` are the neighbours' row numbers in ``normals``."""
        with torch.autocast(normals.device.type, enabled=False):  # the exponent magnifies rounding 12 times
            sin, cos = self.alpha.sin(), self.alpha.cos()
            vectors = torch.stack([sin * self.beta.cos(), sin * self.beta.sin(), cos], dim=-1)
            products = normals @ vectors.view(-1, 3).t().to(normals.dtype)
            distances = normals.square().sum(1, keepdim=True) + 1 - 2 * products
            response = torch.exp(distances / (-2 * self.sigma**2)).view(len(normals), -1, 4).sum(2)
            around = response.index_select(0, rows.flatten()).view(len(normals), 3, -1).sum(1)
        return F.relu(self.norm((response + around) / 16))


class MeshConvolution(nn.Module):
    """Combination (MLP on spatial, structural), aggregation (max over neighbours of an MLP on own, other)."""

    def __init__(self, spatial: int, structural: int, spatial_out: int, structural_out: int) -> None:
        super().__init__()
        self.combine = _dense(spatial + structural, spatial_out)
        self.concat = nn.Linear(2 * structural, structural)
        self.concat_norm = BatchNorm2d(structural)
        self.aggregate = _dense(structural, structural_out)

    def forward(
        self,
        spatial: Float[Tensor, "r s"],
        structural: Float[Tensor, "r t"],
        neighbours: Int64[Tensor, "b f 3"],
    ) -> tuple[Tensor, Tensor]:
        """New spatial and structural features, one row a face."""
        spatial = self.combine(torch.cat([spatial, structural], dim=1))
        own, other = self.concat.weight.chunk(2, dim=1)
        a, c = F.linear(structural, other), F.linear(structural, own, self.concat.bias)
        shape = (*neighbours.shape[:2], -1)
        best = neighbour_max_norm(a.view(shape), c.view(shape), neighbours, self.concat_norm)
        return spatial, self.aggregate(F.relu(best).flatten(0, 1))


class MeshNet(Encoder):
    """Input float32 [B, F, 18] (``Kind.MESH``): centre, corners relative to it, unit normal, neighbour rows.

    In training only a random share ``1 - mask_ratio`` of the faces (the same ones for the whole batch, drawn
    from torch's global CPU generator) enters the max pool. The feature is the output of 1024-512-``width``
    with dropout after each layer.
    """

    def __init__(self, width: int = 256, dropout: float = 0.5, mask_ratio: float = 0.95) -> None:
        super().__init__()
        self.width = width
        self.mask_ratio = mask_ratio
        self.spatial = nn.Sequential(*_dense(3, 64), *_dense(64, 64))
        self.rotate = FaceRotate()
        self.kernel = FaceKernelCorrelation()
        self.structural = nn.Sequential(*_dense(131, 131), *_dense(131, 131))
        self.conv1 = MeshConvolution(64, 131, 256, 256)
        self.conv2 = MeshConvolution(256, 256, 512, 512)
        self.fusion = _dense(1024, 1024)
        self.concat = _dense(1792, 1024)
        self.head = nn.Sequential(
            nn.Linear(1024, 512), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(512, width), nn.ReLU(), nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "b f 18"]) -> Float[Tensor, "b width"]:
        """Features of meshes. Raises :class:`InputError` when a neighbour's row number does not exist."""
        faces = x.shape[1]
        neighbours = x[:, :, 15:18].long()
        if neighbours.numel() and not 0 <= int(neighbours.min()) <= int(neighbours.max()) < faces:
            raise InputError(
                f"mesh with {faces} faces names a neighbouring face outside 0..{faces - 1}; import it again"
            )
        first = torch.arange(len(x), device=x.device) * faces
        rows = (neighbours + first[:, None, None]).view(-1, 3)
        faces_flat = x.flatten(0, 1)
        centres, corners, normals = faces_flat[:, :3], faces_flat[:, 3:12], faces_flat[:, 12:15]
        spatial = self.spatial(centres)
        shape = [self.rotate(corners.contiguous()), self.kernel(normals, rows), normals]
        structural = self.structural(torch.cat(shape, dim=1))
        spatial1, structural = self.conv1(spatial, structural, neighbours)
        spatial2, structural = self.conv2(spatial1, structural, neighbours)
        spatial3 = self.fusion(torch.cat([spatial2, structural], dim=1))
        features = self.concat(torch.cat([spatial1, spatial2, spatial3], dim=1)).view(len(x), faces, -1)
        if self.training:
            kept = max(1, round(faces * (1 - self.mask_ratio)))
            features = features[:, torch.randperm(faces)[:kept].to(x.device)]
        out: Tensor = self.head(features.amax(1))
        return out
