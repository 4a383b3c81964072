"""Batch norms over ranks: torch's own in one process, one process on the joined batch in several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from consilience.encoders.norm import BatchNorm1d, BatchNorm2d, synchronise
from consilience.encoders.points import EdgeConv
from consilience.errors import InputError


def _filled(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        norm.weight.uniform_(-1, 1)
        norm.bias.uniform_(-1, 1)
    return norm


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (BatchNorm1d, nn.BatchNorm1d, (6, 4)),
        (BatchNorm1d, nn.BatchNorm1d, (6, 4, 5)),
        (BatchNorm2d, nn.BatchNorm2d, (3, 4, 5, 6)),
    ],
)
def test_one_process_is_torch(ours: type, theirs: type, shape: tuple[int, ...], momentum: float | None) -> None:
    torch.manual_seed(0)
    a, b = _filled(ours(4, momentum=momentum)), theirs(4, momentum=momentum)
    assert list(a.state_dict()) == list(b.state_dict())
    b.load_state_dict(a.state_dict())
    for _ in range(3):
        x = torch.randn(shape) * 3 + 2
        xa, xb = x.clone().requires_grad_(), x.clone().requires_grad_()
        ya, yb = a(xa), b(xb)
        ya.square().sum().backward()
        yb.square().sum().backward()
        torch.testing.assert_close(ya, yb, rtol=0, atol=0)
        torch.testing.assert_close(xa.grad, xb.grad, rtol=0, atol=0)
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], rtol=0, atol=0)
    torch.testing.assert_close(a.eval()(x), b.eval()(x), rtol=0, atol=0)


def test_synchronise_shares_parameters_and_keeps_the_function() -> None:
    shared = nn.BatchNorm1d(5)
    net = nn.Sequential(nn.Linear(3, 5), shared, nn.Sequential(nn.ReLU(), shared), nn.BatchNorm1d(5, eps=0.1))
    names, x = list(net.state_dict()), torch.randn(8, 3)
    parameters = [id(p) for p in net.parameters()]
    before = net.eval()(x)
    same = synchronise(net)
    assert same is net
    assert list(net.state_dict()) == names
    assert [id(p) for p in net.parameters()] == parameters
    assert isinstance(net[1], BatchNorm1d)
    assert net[1] is net[2][1]
    assert not net[3].training
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)
    assert isinstance(synchronise(nn.BatchNorm2d(3)), BatchNorm2d)


def test_settle_needs_two_values() -> None:
    with pytest.raises(InputError, match="two or more"):
        BatchNorm1d(2).settle(torch.zeros(2), torch.zeros(2), 1)


def _parts(x: Tensor, sizes: list[int]) -> list[Tensor]:
    return list(x.split(sizes))


def _modules() -> tuple[nn.Module, EdgeConv]:
    torch.manual_seed(3)
    edge = EdgeConv(3, 6, neighbours=4).double()
    _filled(edge.norm)
    return _filled(BatchNorm1d(4)).double(), edge


def _data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    return torch.randn(7, 4, dtype=torch.float64) * 5 + 100, torch.randn(4, 9, 3, dtype=torch.float64)


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        norm, edge = _modules()
        rows, clouds = _data()
        x = _parts(rows, [5, 2])[rank].clone().requires_grad_()
        c = _parts(clouds, [1, 3])[rank].clone().requires_grad_()
        y, e = norm(x), edge(c)
        (y.pow(3).sum() + e.pow(3).sum()).backward()
        grads = torch.cat([p.grad.flatten() for m in (norm, edge) for p in m.parameters()])
        dist.all_reduce(grads)
        state = [*norm.state_dict().values(), *edge.state_dict().values()]
        torch.save((y, e, x.grad, c.grad, grads, state), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_uneven_ranks_are_one_process(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    norm, edge = _modules()
    x, c = (t.requires_grad_() for t in _data())
    y, e = norm(x), edge(c)
    (y.pow(3).sum() + e.pow(3).sum()).backward()
    grads = torch.cat([p.grad.flatten() for m in (norm, edge) for p in m.parameters()])
    for position, expected in enumerate((y, e, x.grad, c.grad)):
        joined = torch.cat([f[position] for f in found])
        torch.testing.assert_close(joined, expected.detach(), rtol=1e-9, atol=1e-9)
    for rank in range(2):
        torch.testing.assert_close(found[rank][4], grads, rtol=1e-9, atol=1e-9)
        state = [*norm.state_dict().values(), *edge.state_dict().values()]
        for value, expected in zip(found[rank][5], state, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
