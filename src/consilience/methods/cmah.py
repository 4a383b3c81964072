"""CMAH: contrastive masked auto-encoders for hashing across pictures and point clouds.

The problem. A shape is to be found from a picture of it, and pictures from a shape, among very many; so both become
codes of a few bits that lie near each other in Hamming distance. Pairs are known, categories are not.

Paper: R. Wei, H. Cui, Y. Liu, Y. Hou, Y. Xie, K. Zhou, "Contrastive masked auto-encoders based self-supervised hashing
for 2D image and 3D point cloud cross-modal retrieval", ICME 2024, arXiv 2408.05711. Its abstract says what there is:
contrast of 2D-3D pairs in one Hamming space, and masked auto-encoders of both modalities joined by a fusion block. No
code was released and constants are not known; sizes are those of Point-MAE and MAE, the hash layer's choices those of
ConMH (arXiv 2211.11210), and every choice is a field below.

What is ours: tanh heads (straight-through measured worse), reconstruction that counts little by default, masks and
drop-path keyed by sample, groups of points found in plain torch, and options that are all off: debiased contrast,
ranking loss, joint-affinity targets, nested codes, code health, weights of pairs from a mixture on their losses, a
memory of negatives, groups found once a cloud. Vectors of frozen encoders are taken in the samples' place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from consilience.data.decode import DecodeConfig
from consilience.data.schema import Batch, Kind, Modalities
from consilience.distributed import gather_rows
from consilience.encoders.patches import TokenConfig, Tokens
from consilience.errors import InputError, need_positive, need_share
from consilience.heads.fusion import Fusion
from consilience.heads.hash import Alpha, HashHead, prefixes, slope
from consilience.heads.masked import MaskedDecoder
from consilience.heads.matching import two
from consilience.losses.contrastive import Remembered, cross_modal_nce, pair_nce
from consilience.losses.hashing import code_health
from consilience.losses.ranking import affinity_regression, joint_affinity, margin_ranking
from consilience.losses.reconstruction import chamfer, patch_error
from consilience.memory.groups import GroupMemory
from consilience.memory.queue import Queue
from consilience.methods.base import Beliefs, EncodeAll, Encoded, Method, Optimiser, Phase, Progress
from consilience.methods.registry import register
from consilience.noise.agreement import mean_over_pairs, mean_reciprocal_rank
from consilience.noise.mixture import Mixture
from consilience.noise.pair_beliefs import PairBeliefs
from consilience.views.geometry import ViewConfig, plain, view
from consilience.views.keyed import KeyedRandom
from consilience.views.masking import random_masks, take

MASK, FULL_PATH, MASKED_PATH = 10, 20, 30  # purposes of keyed draws, beside the views' (the modality's position)


@dataclass(frozen=True)
class CMAHConfig(TokenConfig):
    """Hyper-parameters, beside those of tokens and encoders; the defaults are ours, ``recipes/cmah-paper.yaml`` holds
    the sizes of the published parts."""

    bits: int = 128
    """K, length of the codes; a multiple of 8. Shorter ones are better rotated out of long ones after training
    (``index hash --bits 32``) than learnt at their length."""
    head: Literal["tanh", "ste"] = "tanh"
    """From numbers to bits in training: tanh, or rounding with a straight-through gradient (ConMH)."""
    head_norm: Literal["batch", "layer", "none"] = "batch"
    """Norm of the numbers before that: over the batch, which balances the bits, over a sample (ConMH), or none."""
    alpha: Alpha = "constant"
    """Slope of tanh: 1, or the root of 1 + epoch (DJSRH)."""
    pool: Literal["feature", "code_mean"] = "feature"
    """One code from CLS and the maximum over tokens, or the mean of the tokens' codes (ConMH)."""
    nested: bool = False
    """Matryoshka codes: the contrast is averaged over the first 16, 32, ... bits and all of them."""
    mask_points: float = 0.6
    """m_P, share of hidden groups (Point-MAE: 0.6)."""
    mask_image: float = 0.6
    """m_I, share of hidden patches (MAE: 0.75), or parts of a vector."""
    fusion_layers: int = 1
    """Layers of the fusion block between encoders and decoders; 0: each modality is reconstructed alone."""
    decoder_depth: int = 1
    """Blocks of each decoder (Point-MAE: 4)."""
    contrast: Literal["nce", "ranking"] = "nce"
    """N: InfoNCE, or the ranking loss of UCCH over all negatives."""
    tau: float = 0.2
    """Temperature of N; of codes, one differing bit moves a logit by 2 / (K tau)."""
    debias: float = 0.0
    """tau+ of debiased InfoNCE, the share of negatives that are of the anchor's class (ConMH: 0.1)."""
    memory: int = 0
    """Earlier codes of the other modality that are negatives of full codes too (UCCH: 4096)."""
    margin: float = 0.2
    """Of the ranking loss."""
    shift: float = 1.0
    """Of the ranking loss: what negatives beyond the margin are lowered by."""
    masked_contrast: Literal["mm", "fm"] = "mm"
    """M: masked codes against masked ones, or masked ones against full ones."""
    masked_weight: float = 1.0
    """lambda_m, weight of M; 0: no masked contrast."""
    points_weight: float = 0.1
    """lambda_3D, weight of the clouds' Chamfer distance (paper: 1). With lambda_2D 0: no decoders."""
    image_weight: float = 0.1
    """lambda_2D, weight of the patches' squared error (paper: 1), or of that of the parts of a vector."""
    balance: Literal["unit", "uncertainty"] = "unit"
    """Weights of the reconstruction terms: as given, or times learned precisions (Kendall et al., CVPR 2018)."""
    affinity_weight: float = 0.0
    """Weight of the regression of code cosines on the joint affinity of the features (DJSRH)."""
    quantisation_weight: float = 0.0
    """lambda_q, weight of the mean (|u| - 1)^2."""
    imbalance_weight: float = 0.0
    """lambda_b, weight of the squared mean of every bit."""
    correlation_weight: float = 0.0
    """Weight of the squared correlations between bits."""
    pair_weights: Literal["none", "mixture"] = "none"
    """Weights of pairs in N and M: equal, or the probability that a pair is right, from a mixture on its losses."""
    trust_after: int = 3
    """Epochs before the first such look."""
    mixture: Mixture = "gmm"
    """Mixture on the losses."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """Strength of the augmentation."""
    epochs: int = 40
    """Epochs over the training pairs (Point-MAE: 300)."""
    batch_size: int = 100
    """Pairs a step over all processes (Point-MAE: 128)."""
    optimiser: Optimiser = field(default_factory=lambda: Optimiser("adamw", 2e-3, 0.05))
    """One optimiser for all parts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits < 8 or self.bits % 8:
            raise InputError(f"--method.bits {self.bits}: codes are packed into bytes; give a multiple of 8")
        need_positive(self, "tau", "epochs", "batch_size", "decoder_depth")
        need_share(self, "mask_points", "mask_image", "debias", whole=False)
        if self.memory and (self.debias or self.contrast == "ranking"):
            raise InputError("--method.memory gives negatives to plain InfoNCE; drop it, or debias and ranking")

    @property
    def reconstructs(self) -> bool:
        """Whether there are decoders."""
        return self.points_weight > 0 or self.image_weight > 0


class Branch(nn.Module):
    """What one modality has to itself: tokeniser, encoder, hash head."""

    def __init__(self, kind: Kind, c: CMAHConfig) -> None:
        super().__init__()
        self.tokens, self.encoder = c.tokeniser(kind), c.encoder()
        self.head = HashHead(c.width, c.bits, c.head, c.head_norm, c.pool)


@dataclass
class Look:
    """One modality of a batch on its way through a step."""

    tokens: Tokens
    full: Float[Tensor, "b l d"]
    u: Float[Tensor, "n k"]
    """Codes of the full input, of all processes."""
    visible: Tensor
    hidden: Tensor
    seen: Float[Tensor, "b v d"] | None
    """The encoded visible tokens of the masked input, CLS first; None without a masked pass."""
    masked_u: Float[Tensor, "n k"] | None


@register(
    "cmah",
    title="binary codes by contrast and masked auto-encoders, pictures and point clouds",
    paper="Wei et al., Contrastive masked auto-encoders based self-supervised hashing for 2D image and 3D point cloud "
    "cross-modal retrieval, ICME 2024",
    kinds=("rgb", "grey", "points", "vector"),
)
class CMAH(Method):
    """See the module's docstring."""

    Config = CMAHConfig
    complete = True
    binary = True
    config: CMAHConfig

    def __init__(self, config: CMAHConfig, modalities: Modalities, samples: int) -> None:
        super().__init__(config, modalities, samples)
        c = config
        self.first, self.second = two(modalities)
        self.branches = nn.ModuleDict({name: Branch(kind, c) for name, kind in modalities.items()})
        self.decoders = nn.ModuleDict()
        if c.reconstructs:  # after the branches, whose first weights are then the same with and without
            self.fusion = Fusion(c.width, c.attention_heads, c.fusion_layers)
            for name in modalities:
                outputs = self._branch(name).tokens.outputs
                self.decoders[name] = MaskedDecoder(c.width, c.width, c.decoder_depth, c.attention_heads, outputs)
            if c.balance == "uncertainty":
                self.precisions = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in modalities})
        if c.pair_weights == "mixture":
            self.beliefs = PairBeliefs(1, samples)
        if c.memory:
            self.queue = Queue(c.memory, c.bits, partitions=2)
            self.fresh: tuple[Tensor, Tensor] | None = None
        if c.regroup == "cloud":
            self.groups = GroupMemory(samples, c.groups, c.group_size, c.n_points)

    def _branch(self, name: str) -> Branch:
        return cast(Branch, self.branches[name])

    @property
    def decode(self) -> DecodeConfig:
        return self.config.decode

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("train", self.config.epochs, self.config.optimiser, self.config.batch_size),)

    def trained(self, phase: str) -> list[nn.Module]:
        return [self]

    def _look(self, batch: Batch, position: int, name: str, key: tuple[int, ...]) -> Look:
        """Tokens of one view of a modality, encoded whole and, where the losses ask for it, without the hidden ones."""
        c, kind, branch = self.config, self.modalities[name], self._branch(name)
        value = batch.values[name]
        known = (self.groups.of(value, batch.index),) if kind is Kind.POINTS and c.regroup == "cloud" else ()
        tokens: Tokens = branch.tokens(view(value, kind, batch.index, (*key, position), c.views), *known)

        def draws(purpose: int) -> KeyedRandom:
            return KeyedRandom.of(batch.index, *key, purpose + position)

        full = branch.encoder(tokens, None, draws(FULL_PATH))
        share = c.mask_points if kind is Kind.POINTS else c.mask_image
        visible, hidden = random_masks(branch.tokens.count, share, draws(MASK))
        needed = c.reconstructs or c.masked_weight > 0
        seen = branch.encoder(tokens, visible, draws(MASKED_PATH)) if needed else None
        masked_u = gather_rows(branch.head(seen, False)) if c.masked_weight and seen is not None else None
        return Look(tokens, full, gather_rows(branch.head(full)), visible, hidden, seen, masked_u)

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        c, key = self.config, (progress.seed, progress.phase, progress.epoch)
        a, b = (self._look(batch, i, name, key) for i, name in enumerate((self.first, self.second)))
        weights = self.beliefs.clean[0, gather_rows(batch.index)] if c.pair_weights == "mixture" else None
        terms = {"contrast": self._contrast(a.u, b.u, weights, self._remember(a, b, batch))}
        if a.masked_u is not None and b.masked_u is not None:
            if c.masked_contrast == "mm":
                masked = self._contrast(a.masked_u, b.masked_u, weights)
            else:
                masked = (self._contrast(a.u, b.masked_u, weights) + self._contrast(a.masked_u, b.u, weights)) / 2
            terms["masked"] = c.masked_weight * masked
        return terms | self._reconstruction(a, b) | self._health(a, b)

    def _remember(self, a: Look, b: Look, batch: Batch) -> Remembered | None:
        """Codes of earlier pairs, and which of them are an anchor's own; the new ones wait for the end of the step."""
        if not self.config.memory:
            return None
        index = gather_rows(batch.index)
        self.fresh = (torch.cat([a.u, b.u]).detach(), index)
        (first, ids), (second, _) = (self.queue.ring(place) for place in range(2))
        return Remembered(first, second, index[:, None] == ids)

    def after_batch(self, batch: Batch, progress: Progress) -> None:
        """The batch's codes become negatives of later ones."""
        if self.config.memory and self.fresh is not None:
            codes, index = self.fresh
            self.queue.push(codes, index.repeat(2), torch.arange(2, device=index.device).repeat_interleave(len(index)))

    def _contrast(
        self,
        a: Float[Tensor, "n k"],
        b: Float[Tensor, "n k"],
        weights: Float[Tensor, " n"] | None,
        remembered: Remembered | None = None,
    ) -> Float[Tensor, ""]:
        """N(a, b); over nested codes its mean."""
        c, values = self.config, []
        for bits in prefixes(c.bits, c.nested):
            if c.contrast == "nce":
                kept = remembered and Remembered(remembered.a[:, :bits], remembered.b[:, :bits], remembered.same)
                values.append(cross_modal_nce(a[:, :bits], b[:, :bits], c.tau, weights, c.debias, kept))
            else:
                values.append(margin_ranking(a[:, :bits], b[:, :bits], c.margin, c.shift, c.tau, weights))
        return torch.stack(values).mean()

    def _reconstruction(self, a: Look, b: Look) -> dict[str, Tensor]:
        """L_3D and L_2D: what was hidden of each modality, predicted from the visible parts of both."""
        c = self.config
        if not c.reconstructs or a.seen is None or b.seen is None:
            return {}
        fused = self.fusion(a.seen[:, 1:], b.seen[:, 1:])
        terms = {}
        for name, look, tokens in zip((self.first, self.second), (a, b), fused, strict=True):
            place, cloud = look.tokens.place, self.modalities[name] is Kind.POINTS
            predicted = self.decoders[name](tokens, take(place, look.visible), take(place, look.hidden))
            true = take(look.tokens.targets, look.hidden)
            sets = (*true.shape[:2], -1, 3)
            if cloud:
                each = chamfer(predicted.view(sets), true.reshape(sets))
            else:
                each = patch_error(predicted, true)
            value = gather_rows(each.mean(1)).mean()  # the mean over the joined batch, the same on every process
            if c.balance == "uncertainty":
                value = torch.exp(-self.precisions[name]) * value + self.precisions[name]
            terms[f"reconstruct_{name}"] = (c.points_weight if cloud else c.image_weight) * value
        return terms

    def _health(self, a: Look, b: Look) -> dict[str, Tensor]:
        """Optional terms on the codes of the full inputs, means of both modalities."""
        c = self.config
        weights = (c.quantisation_weight, c.imbalance_weight, c.correlation_weight)
        terms = code_health((a.u, b.u), *weights)
        if c.affinity_weight:
            known = [gather_rows(x.full[:, 1:].detach().mean(1)) for x in (a, b)]
            terms["affinity"] = c.affinity_weight * affinity_regression(a.u, b.u, joint_affinity(known[0], known[1]))
        return terms

    def encode(self, batch: Batch, modality: str) -> Float[Tensor, "b k"]:
        """u of the full input: real numbers in [-1, 1] whose signs are the code. Nothing but this modality's
        tokeniser, encoder and head takes part."""
        branch = self._branch(modality)
        tokens = branch.tokens(plain(batch.values[modality], self.modalities[modality]))
        return branch.head.real(branch.encoder(tokens))

    @torch.no_grad()
    def prepare(self, progress: Progress, encode_all: EncodeAll) -> None:
        """Start of an epoch: the slope of tanh, and the trust in every pair."""
        for name in self.modalities:
            self._branch(name).head.alpha.fill_(slope(self.config.alpha, progress.epoch))
        if self.config.pair_weights == "mixture" and progress.epoch >= self.config.trust_after:
            self._believe(encode_all)

    def _believe(self, encode_all: EncodeAll) -> None:
        """w: a mixture on every pair's loss against its batch, averaged with earlier looks."""
        c = self.config

        def measure(batch: Batch) -> dict[str, Tensor]:
            a, b = (F.normalize(self.encode(batch, name).float(), dim=1) for name in (self.first, self.second))
            return {"loss": pair_nce(a @ b.T, c.tau)}

        losses = encode_all.scan(measure, c.batch_size)["loss"]
        self.beliefs.renew(losses[None], c.mixture, 0, 0.5, 0.5)

    @torch.no_grad()
    def finish(self, progress: Progress, encode_all: EncodeAll) -> Beliefs:
        """With weights of pairs, the column ``clean_probability``."""
        if self.config.pair_weights == "none":
            return {}
        self._believe(encode_all)
        return {"clean_probability": self.beliefs.clean[0].cpu().numpy()}

    def agreement(self, held_out: Encoded) -> float:
        """Mean reciprocal rank of the given partner, by cosine of u."""
        return mean_over_pairs(mean_reciprocal_rank, held_out.vectors, held_out.present)
