"""What methods on pairs of two modalities share: the verbs that only hand over to their networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from consilience.data.decode import DecodeConfig
from consilience.data.schema import Batch, Modalities
from consilience.heads.matching import Peers
from consilience.heads.released import load_released
from consilience.methods.base import Encoded, Method
from consilience.noise.agreement import reciprocal_rank_of_scores

PAIR_KINDS = ("rgb", "grey", "points", "mesh", "text", "regions", "vector")


class PairMethod(Method):
    """A method whose networks are :class:`~consilience.heads.matching.Peers`. Its configuration has the fields
    ``scorer``, ``encoders`` and ``views``; rows that lack a modality are not trained on."""

    complete = True

    def __init__(self, config: Any, modalities: Modalities, samples: int, networks: int) -> None:
        super().__init__(config, modalities, samples)
        self.peers = Peers(networks, config.scorer, config.encoders, config.views, modalities)

    @property
    def decode(self) -> DecodeConfig:
        found: DecodeConfig = self.config.encoders.decode
        return found

    def trained(self, phase: str) -> list[nn.Module]:
        return [self.peers]

    def encode(self, batch: Batch, modality: str) -> Float[Tensor, "b d"]:
        return self.peers.encode(batch, modality)

    def represent(self, batch: Batch, modality: str) -> Float[Tensor, "b r"]:
        return self.peers.represent(batch, modality)

    def score(self, a: Float[Tensor, "n r"], b: Float[Tensor, "m s"], names: tuple[str, str]) -> Float[Tensor, "n m"]:
        return self.peers.score(a, b, names)

    def agreement(self, held_out: Encoded) -> float:
        """Mean reciprocal rank of the given partner."""
        first, second = self.peers.names
        return reciprocal_rank_of_scores(self.score(held_out.vectors[first], held_out.vectors[second], (first, second)))

    def load_released(self, path: Path) -> None:
        """Networks of SGRAF, NCR or PC2; InputError where they do not fit, see :mod:`consilience.heads.released`."""
        load_released(path, self.peers)
