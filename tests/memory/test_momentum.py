"""The twin follows at its own pace and is no alias."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from consilience.errors import InputError
from consilience.memory.momentum import Twin


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_fact_with_a_fixed_network_the_gap_shrinks_by_m() -> None:
    """CLIC's sheet 6a: theta_k after n steps = theta_q + m^n (theta_k0 - theta_q)."""
    net = network()
    twin = Twin(net, 0.9)
    start = {name: value.clone() for name, value in twin.network.state_dict().items()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    for _ in range(5):
        twin.follow(net)
    for name, value in net.named_parameters():
        expected = value + 0.9**5 * (start[name] - value)
        torch.testing.assert_close(twin.network.state_dict()[name], expected)


def test_is_a_copy_without_gradient() -> None:
    net = network()
    twin = Twin(net, 0.5)
    assert not any(p.requires_grad for p in twin.parameters())
    twin.follow(net)
    kept = twin.network[0].weight.clone()
    with torch.no_grad():
        net[0].weight.add_(3.0)
    assert torch.equal(twin.network[0].weight, kept)
    assert all(p.requires_grad for p in net.parameters())


def test_buffers_follow_and_counters_are_copied() -> None:
    net = network()
    twin = Twin(net, 0.5)
    net(torch.randn(8, 3) + 5)
    twin.follow(net)
    torch.testing.assert_close(twin.network[1].running_mean, 0.5 * net[1].running_mean)
    assert int(twin.network[1].num_batches_tracked) == 1


def test_refusals() -> None:
    with pytest.raises(InputError, match="from 0 to 1"):
        Twin(network(), 1.5)
    with pytest.raises(InputError, match="other parameters"):
        Twin(network(), 0.5).follow(nn.Sequential(nn.Linear(3, 4)))  # type: ignore[arg-type]
