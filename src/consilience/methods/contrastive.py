"""Plain matching: pairs are believed as they come. The baselines that robust methods are measured against.

InfoNCE: A. van den Oord, Y. Li, O. Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018, in the
symmetric form of CLIP (Radford et al., ICML 2021). Triplets with the hardest negative of the batch: F. Faghri,
D. Fleet, J. Kiros, S. Fidler, "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", BMVC 2018. The mean
over all negatives in their place is the warm-up loss of NCR and PC2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from consilience.data.schema import Batch, Modalities
from consilience.encoders.build import EncoderConfig
from consilience.heads.matching import ScorerConfig
from consilience.losses.contrastive import pair_nce
from consilience.losses.triplet import triplet
from consilience.methods.base import Optimiser, Phase, Progress
from consilience.methods.pairs import PAIR_KINDS, PairMethod
from consilience.methods.registry import register
from consilience.views.geometry import ViewConfig


@dataclass(frozen=True)
class ContrastiveConfig:
    """Hyper-parameters."""

    objective: Literal["infonce", "triplet-hard", "triplet-mean"] = "infonce"
    """Loss over the batch's score matrix."""
    networks: int = 2
    """Networks trained side by side whose scores are averaged; two, as the robust methods have."""
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    """How a pair is scored."""
    encoders: EncoderConfig = field(default_factory=EncoderConfig)
    """Networks of the modalities and their input sizes."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """Strength of the augmentation."""
    epochs: int = 15
    """Epochs over the training pairs."""
    batch_size: int = 100
    """Pairs a step over all processes."""
    optimiser: Optimiser = field(default_factory=Optimiser)
    """One optimiser for all networks."""
    tau: float = 0.1
    """Temperature of InfoNCE (cosine scores)."""
    margin: float = 0.2
    """Margin of the triplets."""


@register(
    "contrastive",
    title="InfoNCE or triplets on pairs taken as they come (baseline)",
    paper="van den Oord et al. 2018; Radford et al., ICML 2021; Faghri et al. (VSE++), BMVC 2018",
    kinds=PAIR_KINDS,
)
class Contrastive(PairMethod):
    """See the module's docstring."""

    Config = ContrastiveConfig
    config: ContrastiveConfig

    def __init__(self, config: ContrastiveConfig, modalities: Modalities, samples: int) -> None:
        super().__init__(config, modalities, samples, config.networks)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("train", self.config.epochs, self.config.optimiser, self.config.batch_size),)

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        c, total, key = self.config, [], (progress.seed, progress.phase, progress.epoch)
        for k in range(len(self.peers)):
            scores = self.peers.net(k).square(*self.peers.pair(k, batch, key), c.objective == "triplet-hard")
            if c.objective == "infonce":
                total.append(pair_nce(scores, c.tau).mean())
            else:
                total.append(triplet(scores, c.margin, "hard" if c.objective == "triplet-hard" else "mean").sum())
        return {c.objective.replace("-", "_"): torch.stack(total).sum()}
