"""The momentum twin: a copy of a network that follows it slowly and is never trained (MoCo, He et al., CVPR 2020)."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from consilience.errors import InputError

Net = TypeVar("Net", bound=nn.Module)


class Twin(nn.Module, Generic[Net]):
    """theta_k <- m theta_k + (1 - m) theta_q, for parameters and floating-point buffers (moments of batch norms too);
    whole numbers are copied. The copy owns its tensors, so a later change of the network does not show in it.

    ``momentum`` 0 makes it the network as it was at the last :meth:`follow`, 1 leaves it where it began.
    """

    def __init__(self, network: Net, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise InputError(f"momentum {momentum}: expected a number from 0 to 1")
        self.momentum = momentum
        self.network: Net = copy.deepcopy(network)
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def follow(self, network: Net) -> None:
        """One step towards ``network``; InputError when it is another kind of network."""
        own, other = self.network.state_dict(), network.state_dict()
        if own.keys() != other.keys():
            raise InputError("a twin follows the network it was copied from, not one with other parameters")
        for name, value in own.items():
            if value.is_floating_point():
                value.lerp_(other[name].to(value.dtype), 1 - self.momentum)
            else:
                value.copy_(other[name])
