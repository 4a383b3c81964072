"""What several networks believe of every training pair: how well it fits, and whether it is right."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from consilience.distributed import from_first
from consilience.noise.mixture import Mixture, low_posterior, split


class PairBeliefs(nn.Module):
    """One row a network and training pair, addressed by the pair's index, part of every checkpoint.

    Renewed between epochs from a scan of the whole training set. Every process computes the same from the gathered
    scan; rank 0's result is what all of them take, so that no rounding of another machine can split their ways.
    """

    losses: Tensor
    clean: Tensor
    right: Tensor
    looks: Tensor

    def __init__(self, networks: int, samples: int) -> None:
        super().__init__()
        self.register_buffer("losses", torch.zeros(networks, samples))
        self.register_buffer("clean", torch.ones(networks, samples))
        self.register_buffer("right", torch.ones(networks, samples, dtype=torch.bool))
        self.register_buffer("looks", torch.tensor(0))

    @torch.no_grad()
    def renew(
        self, losses: Float[Tensor, "k n"], mixture: Mixture, seed: int, threshold: float, momentum: float
    ) -> None:
        """Take one more look: w of each network from a mixture on its losses (their moving mean over looks when
        ``momentum`` > 0; the papers: 0), and the split into right and wrong pairs at ``threshold``."""
        share = momentum if int(self.looks) else 0.0
        self.losses.copy_(torch.lerp(losses, self.losses, share))
        for k, own in enumerate(self.losses):
            posterior = from_first(low_posterior(own, mixture, seed))
            self.clean[k] = posterior
            self.right[k] = split(posterior, threshold)
        self.looks += 1

    def of_peer(self, network: int, index: Int64[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:
        """(w, split) that the other network gives the pairs ``index``; its own when it is alone."""
        peer = (network + 1) % len(self.clean)
        return self.clean[peer, index], self.right[peer, index]
