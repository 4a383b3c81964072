"""Random meshes in the layout of ``Kind.MESH``, and MeshNet written directly from its definition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from consilience.encoders.mesh import MeshNet


def random_mesh(batch: int, faces: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Float [batch, faces, 18] with consistent corners, unit normals and random neighbours."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(batch, faces, 3, generator=generator, dtype=dtype)
    corners = torch.randn(batch, faces, 3, 3, generator=generator, dtype=dtype)
    corners = corners - corners.mean(2, keepdim=True)
    normal = torch.linalg.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    normal = normal / normal.norm(dim=2, keepdim=True)
    neighbours = torch.randint(faces, (batch, faces, 3), generator=generator)
    return torch.cat([centre, corners.flatten(2), normal, neighbours.to(dtype)], dim=2)


def _mlp(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Eval-mode linear, BN, ReLU triples on the last axis of ``x``."""
    for linear, norm in zip(layers[0::3], layers[1::3], strict=True):
        x = torch.relu(_norm(norm, x @ linear.weight.t() + linear.bias))
    return x


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def slow_meshnet(net: MeshNet, mesh: Tensor) -> Tensor:
    """Evaluation-mode features of one mesh [F, 18] with nothing factored and nothing batched."""
    centre, corners, normal = mesh[:, :3], mesh[:, 3:12], mesh[:, 12:15]
    around = mesh[:, 15:].long()
    spatial = _mlp(net.spatial, centre)
    pairs = [corners[:, :6], corners[:, 3:], torch.cat([corners[:, 6:], corners[:, :3]], 1)]
    rotated = _mlp(net.rotate.fuse, sum(_mlp(net.rotate.pair, p) for p in pairs) / 3)
    kernel = torch.zeros(len(mesh), 64, dtype=mesh.dtype)
    alpha, beta = net.kernel.alpha, net.kernel.beta
    vectors = torch.stack([alpha.sin() * beta.cos(), alpha.sin() * beta.sin(), alpha.cos()], 2)
    for i in range(len(mesh)):
        for n in [normal[i], *normal[around[i]]]:
            kernel[i] += torch.exp(-(n - vectors).square().sum(2) / (2 * 0.2**2)).sum(1) / 16
    kernel = torch.relu(_norm(net.kernel.norm, kernel))
    structural = _mlp(net.structural, torch.cat([rotated, kernel, normal], 1))
    kept = []
    for conv in (net.conv1, net.conv2):
        spatial = _mlp(conv.combine, torch.cat([spatial, structural], 1))
        kept.append(spatial)
        edges = torch.cat([structural[:, None].expand(-1, 3, -1), structural[around]], 2)
        edges = torch.relu(_norm(conv.concat_norm, edges @ conv.concat.weight.t() + conv.concat.bias))
        structural = _mlp(conv.aggregate, edges.amax(1))
    kept.append(_mlp(net.fusion, torch.cat([spatial, structural], 1)))
    pooled = _mlp(net.concat, torch.cat(kept, 1)).amax(0)
    hidden = torch.relu(net.head[0].weight @ pooled + net.head[0].bias)
    return torch.relu(net.head[3].weight @ hidden + net.head[3].bias)


def settled_meshnet(seed: int = 0) -> MeshNet:
    """An evaluation-mode MeshNet in float64 whose norms (weights of both signs) are not the identity."""
    torch.manual_seed(seed)
    net = MeshNet().double()
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, -0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()
