"""NCR: learning with noisy correspondence for cross-modal matching.

The problem. Some of the given pairs do not belong together, nobody knows which; learn to match all the same.

Paper: Z. Huang, G. Niu, X. Liu, W. Ding, X. Xiao, H. Wu, X. Peng, "Learning with Noisy Correspondence for Cross-modal
Matching", NeurIPS 2021. Two networks warm up on all pairs, divide the pairs for each other by a mixture on their losses
(co-divide), and replace the yes or no of a pair by a soft label that sets its margin (co-rectify).

What differs from the release: both networks take their step on the same batch, each on the part that the other calls
clean or noisy, so that every process takes the same number of steps; the mixture is seeded and its losses come from
fixed batches; the margin of a pair serves both directions (the release's broadcasts over the whole matrix); rectified
labels come from the scores of the step itself rather than from one more pass in evaluation mode.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from consilience.data.schema import Batch, Modalities
from consilience.distributed import gather_rows
from consilience.encoders.build import EncoderConfig
from consilience.errors import InputError
from consilience.heads.matching import ScorerConfig
from consilience.losses.triplet import Curve, predicted_correspondence, soft_margin, triplet
from consilience.methods.base import Beliefs, EncodeAll, Optimiser, Phase, Progress
from consilience.methods.pairs import PAIR_KINDS, PairMethod
from consilience.methods.registry import register
from consilience.noise.mixture import Mixture
from consilience.noise.pair_beliefs import PairBeliefs
from consilience.views.geometry import ViewConfig


@dataclass(frozen=True)
class NCRConfig:
    """Hyper-parameters; small encoders and budgets by default, ``recipes/ncr-paper.yaml`` holds the paper's."""

    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    """How a pair is scored (paper: sgr)."""
    encoders: EncoderConfig = field(default_factory=EncoderConfig)
    """Networks of the modalities and their input sizes."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """Strength of the augmentation (paper: none)."""
    warmup_epochs: int = 5
    """Epochs on all pairs with the mean triplet loss (paper: 5; CC152K: 10)."""
    clean_epochs: int = 5
    """Co-training epochs on the clean part (paper: the first half of 40)."""
    full_epochs: int = 5
    """Co-training epochs on both parts (paper: the second half)."""
    batch_size: int = 100
    """Pairs a step over all processes (paper: 128)."""
    optimiser: Optimiser = field(default_factory=Optimiser)
    """Of warm-up and clean phase (paper: Adam 2e-4)."""
    full_optimiser: Optimiser = field(default_factory=Optimiser)
    """Of the full phase (paper: Adam 2e-4, a tenth after 10 of its epochs)."""
    margin: float = 0.2
    """alpha, the margin of a pair that is surely right."""
    soft_margin: Curve = "exponential"
    """From the label of a pair to its margin."""
    threshold: float = 0.5
    """A pair is clean when its posterior exceeds this."""
    mixture: Mixture = "gmm"
    """Mixture on the losses (paper: gmm)."""
    seed: int = 0
    """Of the mixture."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise InputError(f"--method.threshold {self.threshold}: expected a probability between 0 and 1")


@register(
    "ncr",
    title="two networks that divide and rectify noisy pairs for each other (baseline)",
    paper="Huang et al., Learning with Noisy Correspondence for Cross-modal Matching, NeurIPS 2021",
    kinds=PAIR_KINDS,
)
class NCR(PairMethod):
    """See the module's docstring."""

    Config = NCRConfig
    config: NCRConfig

    def __init__(self, config: NCRConfig, modalities: Modalities, samples: int) -> None:
        super().__init__(config, modalities, samples, 2)
        self.beliefs = PairBeliefs(2, samples)

    def phases(self) -> tuple[Phase, ...]:
        c = self.config
        return (
            Phase("warmup", c.warmup_epochs, c.optimiser, c.batch_size),
            Phase("clean", c.clean_epochs, c.optimiser, c.batch_size),
            Phase("full", c.full_epochs, c.full_optimiser, c.batch_size),
        )

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        c, key, index = self.config, (progress.seed, progress.phase, progress.epoch), gather_rows(batch.index)
        few = progress.name != "warmup"
        scores = [self.peers.net(k).square(*self.peers.pair(k, batch, key), few) for k in range(2)]
        if progress.name == "warmup":
            return {"triplet": torch.stack([triplet(s, c.margin, "mean").sum() for s in scores]).sum()}
        clean, noisy = [], []
        for k in range(2):
            w, right = self.beliefs.of_peer(k, index)
            part, y = scores[k][right][:, right], w[right]
            if len(y):
                y = y + (1 - y) * predicted_correspondence(part.detach(), c.margin)  # eq. 6
                clean.append(self._ranking(part, y))
            if progress.name == "full" and bool((~right).any()):
                parts = [s[~right][:, ~right] for s in scores]
                y = torch.stack([predicted_correspondence(p.detach(), c.margin) for p in parts]).mean(0)  # eq. 7
                noisy.append(self._ranking(parts[k], y))
        nothing = scores[0].sum() * 0
        terms = {"clean": torch.stack([*clean, nothing]).sum()}
        return terms | ({"noisy": torch.stack([*noisy, nothing]).sum()} if progress.name == "full" else {})

    def _ranking(self, scores: Float[Tensor, "n n"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """Soft-margin triplet loss with the hardest negatives (eq. 9), summed over pairs."""
        return triplet(scores, soft_margin(y, self.config.margin, self.config.soft_margin), "hard").sum()

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        found = {}
        for k in range(2):
            scores = self.peers.net(k).scores(*self.peers.pair(k, batch))
            found[str(k)] = triplet(scores, self.config.margin, "mean")
        return found

    @torch.no_grad()
    def prepare(self, progress: Progress, encode_all: EncodeAll) -> None:
        """Start of a co-training epoch: divide the pairs anew."""
        if progress.name != "warmup":
            self._divide(encode_all)

    def _divide(self, encode_all: EncodeAll) -> None:
        found, c = encode_all.scan(self._losses, self.config.batch_size), self.config
        self.beliefs.renew(torch.stack([found["0"], found["1"]]), c.mixture, c.seed, c.threshold, 0.0)

    @torch.no_grad()
    def finish(self, progress: Progress, encode_all: EncodeAll) -> Beliefs:
        if progress.name == "warmup":
            return {}
        self._divide(encode_all)
        return {"clean_probability": self.beliefs.clean.mean(0).cpu().numpy()}
