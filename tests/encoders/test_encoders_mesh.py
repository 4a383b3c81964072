"""MeshNet against a slow version, its invariances, its mask."""

from __future__ import annotations

import pytest
import torch

from consilience.encoders.mesh import FaceRotate, MeshNet
from consilience.errors import InputError
from tests.encoders.mesh_reference import random_mesh, settled_meshnet, slow_meshnet


def test_is_its_definition() -> None:
    net = settled_meshnet()
    mesh = random_mesh(2, 12)
    expected = torch.stack([slow_meshnet(net, m) for m in mesh])
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(net(mesh), expected, rtol=1e-9, atol=1e-9)


def test_order_of_faces_does_not_matter() -> None:
    net, mesh, order = settled_meshnet(), random_mesh(2, 40), torch.randperm(40)
    moved = mesh[:, order].clone()
    moved[:, :, 15:] = order.argsort()[moved[:, :, 15:].long()].to(mesh.dtype)
    torch.testing.assert_close(net(moved), net(mesh), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(net(mesh[:, order]), net(mesh))  # without renumbering it is another mesh


@pytest.mark.parametrize("turns", [1, 2])
def test_rotation_of_corners_does_not_matter(turns: int) -> None:
    net, mesh = settled_meshnet(), random_mesh(2, 40)
    turned = mesh.clone()
    turned[:, ::2, 3:12] = mesh[:, ::2, 3:12].roll(3 * turns, dims=2)
    torch.testing.assert_close(net(turned), net(mesh), rtol=1e-9, atol=1e-9)
    # the neighbours then follow their edges, and only their set matters
    turned[:, ::2, 15:] = mesh[:, ::2, 15:].roll(turns, dims=2)
    torch.testing.assert_close(net(turned), net(mesh), rtol=1e-9, atol=1e-9)
    swapped = mesh.clone()
    swapped[:, :, 3:12] = mesh[:, :, [6, 7, 8, 3, 4, 5, 9, 10, 11]]
    assert not torch.allclose(net(swapped), net(mesh))


def test_rotation_does_not_matter_in_training() -> None:
    torch.manual_seed(0)
    rotate = FaceRotate().double()
    corners = torch.randn(30, 9, dtype=torch.float64)
    turned = torch.cat([corners[:15].roll(3, dims=1), corners[15:]])
    torch.testing.assert_close(rotate(corners), rotate(turned), rtol=1e-9, atol=1e-9)


def test_training_keeps_a_random_share_of_the_faces() -> None:
    torch.manual_seed(0)
    net = MeshNet(dropout=0.0).train()
    mesh = random_mesh(3, 60, dtype=torch.float32)
    seen: list[torch.Tensor] = []
    net.concat.register_forward_hook(lambda module, args, out: seen.append(out))
    pooled: list[torch.Tensor] = []
    net.head.register_forward_pre_hook(lambda module, args: pooled.append(args[0]))
    torch.manual_seed(5)
    first = net(mesh)
    torch.manual_seed(5)
    chosen = torch.randperm(60)[:3]
    torch.testing.assert_close(pooled[0], seen[0].view(3, 60, -1)[:, chosen].amax(1), rtol=0, atol=0)
    torch.manual_seed(5)
    assert torch.equal(net(mesh), first)
    assert net(mesh).shape == (3, 256)
    net(random_mesh(3, 4, dtype=torch.float32))  # a mesh of few faces keeps one


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    net = MeshNet(dropout=0.0, mask_ratio=0.0).double()
    net(random_mesh(4, 50)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("bad", [-1.0, 20.0])
def test_neighbours_must_exist(bad: float) -> None:
    mesh = random_mesh(1, 20)
    mesh[0, 3, 16] = bad
    with pytest.raises(InputError, match=r"outside 0\.\.19"):
        MeshNet().double()(mesh)


def test_padding_of_absent_meshes_is_finite() -> None:
    mesh = torch.cat([random_mesh(2, 20, dtype=torch.float32), torch.zeros(1, 20, 18)])
    assert MeshNet()(mesh).isfinite().all()
