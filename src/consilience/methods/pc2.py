"""PC2: pseudo-classification based pseudo-captioning for noisy correspondence.

The problem. Some of the given pairs do not belong together, nobody knows which; learn to match all the same, and make
use of the half-pairs that are left over.

Paper: Y. Duan, Z. Gu, Z. Ying, L. Qi, C. Meng, Y. Shi, "PC2: Pseudo-Classification Based Pseudo-Captioning for Noisy
Correspondence Learning in Cross-Modal Retrieval", ACM MM 2024, arXiv 2408.01349.

On NCR's base (two networks, warm-up, co-dividing by a mixture on the losses, soft margins) it puts a classifier that
both modalities share and that nobody labels; its predictions name a clean pair whose caption a noisy image may borrow,
and how much they move between epochs (oscillation) says how far a clean pair may be trusted.

What differs from the release: memories are addressed by the pair, so a prediction is compared with its own past; the
margin of a pair serves both directions; images that borrow the same caption are no negatives of each other; a caption's
class does not depend on its batch; both networks take their step on the same batch, each on the parts that the other
sees in it, so all processes take the same steps. Beside the paper's recipe (``recipes/pc2-paper.yaml``) stand our
repairs, on by default, each a field below: balanced pseudo-classes (the published ones collapse into one), InfoNCE
in place of triplets, captions borrowed as prototypes from the peer's memory, agreement as the sign of stability.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from consilience.data.schema import Batch, Modalities
from consilience.distributed import from_first, gather_rows
from consilience.encoders.build import EncoderConfig
from consilience.errors import InputError
from consilience.heads.matching import ScorerConfig, Seen
from consilience.heads.projection import Prototypes
from consilience.heads.pseudo_class import PseudoClassifier
from consilience.heads.released import load_released, predictions_beside
from consilience.losses.contrastive import pair_nce, weighted_pair_nce
from consilience.losses.pseudo_class import prediction_entropy, pseudo_classification, soft_cross_entropy
from consilience.losses.triplet import Curve, soft_margin, triplet
from consilience.methods.base import Beliefs, EncodeAll, Optimiser, Phase, Progress
from consilience.methods.pairs import PAIR_KINDS, PairMethod
from consilience.methods.registry import register
from consilience.noise.clustering import sinkhorn
from consilience.noise.lending import nearest_trusted
from consilience.noise.mixture import Mixture, low_posterior
from consilience.noise.oscillation import divergence, moving_mean, rectified
from consilience.noise.pair_beliefs import PairBeliefs
from consilience.views.geometry import ViewConfig


@dataclass(frozen=True)
class PC2Config:
    """Hyper-parameters; the defaults are ours, ``recipes/pc2-paper.yaml`` holds the paper's."""

    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    """How a pair is scored (paper: sgr on regions and words)."""
    encoders: EncoderConfig = field(default_factory=EncoderConfig)
    """Networks of the modalities and their input sizes."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """Strength of the augmentation (paper: none)."""
    warmup_epochs: int = 3
    """Epochs on all pairs (paper: 5; NoW: 10)."""
    clean_epochs: int = 4
    """Co-training epochs on the clean part alone, a second warm-up (paper: 25)."""
    full_epochs: int = 8
    """Co-training epochs in which noisy images borrow captions (paper: 25)."""
    batch_size: int = 100
    """Pairs a step over all processes (paper: 128)."""
    warmup_optimiser: Optimiser = field(default_factory=lambda: Optimiser(schedule="constant"))
    """Of the warm-up (paper: Adam 2e-4)."""
    clean_optimiser: Optimiser = field(default_factory=lambda: Optimiser(schedule="constant"))
    """Of the clean phase (paper: Adam 2e-4)."""
    full_optimiser: Optimiser = field(default_factory=Optimiser)
    """Of the full phase (paper: Adam 2e-4, a tenth of it after 5 of its epochs)."""
    warmup: Literal["all", "small-loss"] = "all"
    """Pairs of a warm-up batch: all, or the half with the smallest losses (the release's warmup_sele)."""
    ranking: Literal["triplet", "infonce"] = "infonce"
    """Loss on trusted pairs: triplets with soft margins (paper), or InfoNCE weighted by trust."""
    tau: float = 0.1
    """Temperature of InfoNCE (cosine scores)."""
    margin: float = 0.2
    """alpha, the margin of a pair that is surely right."""
    soft_margin: Curve = "exponential"
    """From trust in a pair to its margin."""
    threshold: float = 0.5
    """A pair is clean when the peer's posterior exceeds this."""
    division: Literal["hard", "soft"] = "hard"
    """hard: noisy pairs are not trained on as pairs (paper). soft (InfoNCE): they are, weighted by their posterior."""
    mixture: Mixture = "gmm"
    """Mixture on the losses (paper: gmm)."""
    memory: float = 0.5
    """Weight of earlier looks in the losses that are divided (paper: 0, the last look alone)."""
    classes: int = 32
    """K, number of pseudo-classes (paper: 128)."""
    head: Literal["released", "balanced"] = "balanced"
    """released: a multi-layer head taught by the caption's arg max and the entropy. balanced: cosine prototypes
    taught by the other modality's balanced assignment (Sinkhorn), both ways."""
    entropy: Literal["batch", "sample"] = "batch"
    """Entropy that the released head maximises: of the batch's mean (poster) or of each sample (release)."""
    pse_weight: float = 1.0
    """Weight of the pseudo-classification loss."""
    entropy_weight: float = 10.0
    """lambda_en of the released head (paper: 10)."""
    temperature: float = 0.05
    """Of the balanced head."""
    sharpness: float = 0.03
    """epsilon of the balanced head's Sinkhorn assignment; 3 rounds."""
    stability: Literal["oscillation", "agreement", "none"] = "agreement"
    """What raises trust in a clean pair: an image prediction that stays put (paper), image and caption predictions
    that have agreed over the epochs, or nothing."""
    captions: Literal["batch", "memory", "none"] = "memory"
    """Where noisy images borrow: the nearest clean pair of the batch by predicted class (paper), the mean of the
    nearest clean pairs' captions in the peer's memory (cosine scorer only), or nowhere."""
    neighbours: int = 5
    """Captions averaged into a prototype (memory)."""
    cut: float = 0.5
    """Least similarity of a borrowed caption's image (paper: 0.5, of predictions)."""
    noisy_weight: float = 1.0
    """Weight of the loss on borrowed captions."""
    seed: int = 0
    """Of the mixtures."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise InputError(f"--method.threshold {self.threshold}: expected a probability between 0 and 1")
        if self.classes < 2:
            raise InputError(f"--method.classes {self.classes}: expected at least 2")
        if self.scorer.name != "cosine":
            if self.captions == "memory":
                raise InputError("--method.captions memory needs vectors; with SGRAF use batch or none")
            if self.ranking == "infonce":
                raise InputError("--method.ranking infonce needs cosines; with SGRAF use triplet")


@register(
    "pc2",
    title="find the wrong pairs while training, and let their images borrow captions",
    paper="Duan et al., PC2: Pseudo-Classification Based Pseudo-Captioning for Noisy Correspondence, ACM MM 2024",
    kinds=PAIR_KINDS,
)
class PC2(PairMethod):
    """See the module's docstring. Networks A and B are 0 and 1."""

    Config = PC2Config
    config: PC2Config
    bank: Tensor
    agreed: Tensor
    stable: Tensor
    banked: Tensor
    borrowed: Tensor
    sureness: Tensor
    texts: Tensor

    def __init__(self, config: PC2Config, modalities: Modalities, samples: int) -> None:
        super().__init__(config, modalities, samples, 2)
        c, width = config, self.peers.net(0).width
        slots = 1 if c.scorer.name == "cosine" else c.scorer.slots
        self.heads = nn.ModuleList(
            Prototypes(c.classes, width, c.temperature)
            if c.head == "balanced"
            else PseudoClassifier(width, c.classes, slots)
            for _ in range(2)
        )
        self.beliefs = PairBeliefs(2, samples)
        self.register_buffer("bank", torch.full((2, samples, c.classes), 1 / c.classes))
        self.register_buffer("banked", torch.tensor(False))
        self.register_buffer("agreed", torch.zeros(2, samples))
        self.register_buffer("stable", torch.zeros(2, samples))
        near = c.neighbours if c.captions == "memory" else 0
        self.register_buffer("borrowed", torch.zeros(2, samples, near, dtype=torch.int64))
        self.register_buffer("sureness", torch.zeros(2, samples, near))
        self.register_buffer("texts", torch.zeros(2, samples if near else 0, width))

    def phases(self) -> tuple[Phase, ...]:
        c, names = self.config, ("warmup", "clean", "full")
        epochs = (c.warmup_epochs, c.clean_epochs, c.full_epochs)
        optimisers = (c.warmup_optimiser, c.clean_optimiser, c.full_optimiser)
        return tuple(Phase(*each, c.batch_size) for each in zip(names, epochs, optimisers, strict=True))

    def trained(self, phase: str) -> list[nn.Module]:
        return [self.peers, self.heads]

    def _logits(self, k: int, seen: Seen) -> Float[Tensor, "b k"]:
        """Pseudo-class logits of one modality of this process's rows in network k."""
        head, slots, mask = self.heads[k], seen.slots, seen.mask
        logits: Tensor = head((slots * mask[:, :, None]).sum(1)) if isinstance(head, Prototypes) else head(slots, mask)
        return logits

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        key, index = (progress.seed, progress.phase, progress.epoch), gather_rows(batch.index)
        terms: dict[str, Tensor] = {}
        for k in range(2):
            image, text = self.peers.pair(k, batch, key)
            few = progress.name != "warmup" and self.config.ranking == "triplet"
            scores = self.peers.net(k).square(image, text, few)
            p, q = gather_rows(self._logits(k, image)), gather_rows(self._logits(k, text))
            found = {"rank": (scores.sum() + p.sum() + q.sum()) * 0}  # every parameter has a gradient on every rank
            if progress.name == "warmup":
                found["rank"] = found["rank"] + self._warmup(scores)
                found |= self._classes(p, q)
            else:
                w, right = self.beliefs.of_peer(k, index)
                y = rectified(w, self.stable[1 - k, index])
                if int(right.sum()) > 1:
                    found["rank"] = found["rank"] + self._clean(scores, right, y, w)
                    found |= self._classes(p[right], q[right])
                if progress.name == "full" and self.config.captions != "none":
                    lent = self._borrowed(k, index, right, scores, p, gather_rows(image.vectors))
                    found["borrowed"] = lent + found["rank"] * 0
            for name, value in found.items():
                terms[name] = terms[name] + value if name in terms else value
        return terms

    def _warmup(self, scores: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
        """Mean triplet loss or InfoNCE on all pairs, or on the half that fits best."""
        c = self.config
        weights = torch.ones_like(scores[0])
        if c.warmup == "small-loss":
            losses = triplet(scores.detach(), c.margin, "mean")
            weights = torch.zeros_like(weights).scatter(0, losses.argsort(stable=True)[: max(1, len(losses) // 2)], 1)
        if c.ranking == "infonce":
            return weighted_pair_nce(scores, weights, c.tau)
        return (weights * triplet(scores, c.margin, "mean")).sum()

    def _clean(self, scores: Float[Tensor, "n n"], right: Bool[Tensor, " n"], y: Tensor, w: Tensor) -> Tensor:
        """Loss on the clean part. Triplets are made within it; under InfoNCE the halves of noisy pairs, which are
        somebody's halves after all, stay negatives of the clean ones. ``y``, ``w``: trust and posterior [n]."""
        if self.config.ranking == "infonce":
            return self._ranking(scores, torch.where(right, y, w if self.config.division == "soft" else 0 * w))
        return self._ranking(scores[right][:, right], y[right])

    def _ranking(
        self, scores: Float[Tensor, "n n"], y: Float[Tensor, " n"], others: Bool[Tensor, "n n"] | None = None
    ) -> Float[Tensor, ""]:
        """Loss on pairs trusted to degree y; ``others``: which pairs may be negatives of each other."""
        c = self.config
        if c.ranking == "infonce":
            own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
            allowed = scores if others is None else scores.masked_fill(~(others | own), -1e4)
            return weighted_pair_nce(allowed, y, c.tau)
        return triplet(scores, soft_margin(y, c.margin, c.soft_margin), "hard", others).sum()

    def _classes(self, p: Float[Tensor, "n k"], q: Float[Tensor, "n k"]) -> dict[str, Tensor]:
        """Pseudo-classification: p of the images, q of the captions."""
        c = self.config
        if c.head == "balanced":
            with torch.no_grad():
                targets = [sinkhorn(x.float() * c.temperature, c.sharpness) for x in (q, p)]
            both = soft_cross_entropy(p, targets[0]).mean() + soft_cross_entropy(q, targets[1]).mean()
            return {"classes": c.pse_weight * both / 2}
        return {
            "classes": c.pse_weight * pseudo_classification(p, q),
            "entropy": -c.entropy_weight * prediction_entropy(p, c.entropy),
        }

    def _borrowed(
        self, k: int, index: Int64[Tensor, " n"], right: Bool[Tensor, " n"], scores: Tensor, p: Tensor, images: Tensor
    ) -> Float[Tensor, ""]:
        """Loss of noisy images with the captions they borrow; ``scores`` [n, n], ``p`` [n, k], ``images`` [n, d]."""
        c, noisy, nothing = self.config, ~right, scores.new_zeros(())
        if c.captions == "memory":
            near, sure = self.borrowed[k, index], self.sureness[k, index]
            usable = noisy & (sure.sum(1) > 0)
            if int(usable.sum()) < 2:
                return nothing
            near, sure = near[usable], sure[usable]
            prototypes = F.normalize((self.texts[k][near] * sure[:, :, None]).sum(1), dim=1)
            y = (sure.sum(1) / (sure > 0).sum(1).clamp(min=1)).clamp(0, 1)
            others = ~(near[:, None, :, None] == near[None, :, None, :]).any(3).any(2)
            return c.noisy_weight * self._ranking(images[usable] @ prototypes.T, y, others)
        if int(noisy.sum()) < 2 or not bool(right.any()):
            return nothing
        unit = F.normalize(p.detach().float().softmax(1), dim=1)
        y, nearest = (unit[noisy] @ unit[right].T).max(1)
        chosen = torch.nonzero(right)[:, 0][nearest]
        y = torch.where(y < c.cut, 0.0, y.clamp(max=1))
        others = chosen[:, None] != chosen[None]
        return c.noisy_weight * self._ranking(scores[noisy][:, chosen], y, others)

    def _look(self, batch: Batch) -> dict[str, Tensor]:
        """Per-pair loss (mean triplet against the batch) and predictions of both networks."""
        found: dict[str, Tensor] = {}
        for k in range(2):
            image, text = self.peers.pair(k, batch)
            scores, c = self.peers.net(k).scores(image, text), self.config
            found[f"loss{k}"] = pair_nce(scores, c.tau) if c.ranking == "infonce" else triplet(scores, c.margin, "mean")
            found[f"p{k}"] = self._logits(k, image).float().softmax(1)
            found[f"q{k}"] = self._logits(k, text).float().softmax(1)
        return found

    @torch.no_grad()
    def prepare(self, progress: Progress, encode_all: EncodeAll) -> None:
        """Start of an epoch: divide the pairs, see what has moved, and choose what noisy images borrow."""
        if progress.name == "warmup":
            if self.config.stability == "oscillation" and progress.epoch == self.config.warmup_epochs - 1:
                self._remember(encode_all.scan(self._look, self.config.batch_size))
            return
        self._divide(encode_all)
        if progress.name == "full" and self.config.captions == "memory":
            self._borrow(encode_all)

    def _divide(self, encode_all: EncodeAll) -> None:
        """Co-dividing (w, the split) and stability (v) of every training pair."""
        c, found = self.config, encode_all.scan(self._look, self.config.batch_size)
        first = int(self.beliefs.looks) == 0
        self.beliefs.renew(torch.stack([found["loss0"], found["loss1"]]), c.mixture, c.seed, c.threshold, c.memory)
        for k in range(2):
            self.agreed[k] = moving_mean(self.agreed[k], (found[f"p{k}"] * found[f"q{k}"]).sum(1), 0.5, first)
            if c.stability == "agreement":
                self.stable[k] = from_first(low_posterior(-self.agreed[k], c.mixture, c.seed))
            elif c.stability == "oscillation" and bool(self.banked):
                moved = divergence(found[f"p{k}"], self.bank[k])
                self.stable[k] = from_first(low_posterior(moved, c.mixture, c.seed))
        self._remember(found)

    def _remember(self, found: dict[str, Tensor]) -> None:
        self.bank.copy_(torch.stack([found["p0"], found["p1"]]))
        self.banked.fill_(True)

    def load_released(self, path: Path) -> None:
        released = self.config.head == "released"
        load_released(path, self.peers, self.heads if released else None)
        if released and (saved := predictions_beside(path, self.samples, self.config.classes)) is not None:
            self._remember({"p0": saved[0], "p1": saved[1]})

    def _borrow(self, encode_all: EncodeAll) -> None:
        """For every pair the images of clean pairs most like its own, in the peer's space, and their captions."""
        encoded, c = encode_all(), self.config
        images, texts = (encoded.vectors[name].chunk(2, 1) for name in self.peers.names)
        for k in range(2):
            self.texts[k] = F.normalize(texts[k], dim=1)
            right = self.beliefs.right[1 - k]
            self.borrowed[k], self.sureness[k] = nearest_trusted(images[1 - k], right, c.neighbours, c.cut)

    @torch.no_grad()
    def finish(self, progress: Progress, encode_all: EncodeAll) -> Beliefs:
        """Columns: probability that a pair is right, its stability, its pseudo-class by modality (mean of both)."""
        if progress.name == "warmup":
            return {}
        self._divide(encode_all)
        found = {
            "clean_probability": self.beliefs.clean.mean(0),
            "stability": self.stable.mean(0),
            "pseudo_class": self.bank[0].argmax(1),
        }
        return {name: value.cpu().numpy() for name, value in found.items()}
