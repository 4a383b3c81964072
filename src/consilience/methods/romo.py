"""RoMo: robust unsupervised multimodal learning with noisy pseudo-labels.

The problem. Pairs of views of the same thing are known (an image and a point cloud of one object), categories are
not; find a common space in which things of one category lie together whatever the modality.

Paper: Y. Li, Y. Qin, Y. Sun, D. Peng, X. Peng, P. Hu, "RoMo: Robust Unsupervised Multimodal Learning with Noisy
Pseudo Labels", IEEE Transactions on Image Processing 33, 2024, 5086-5097, doi 10.1109/TIP.2024.3426482.

Two stages. *Annotate* (the paper's PLA): self-matching supervision (SSM) against memory banks and prototypes plus
modality-invariance learning (MLM). *Robust* (RDL): learn from the resulting pseudo-labels with the robust
concentrating loss (RCLL) plus MLM.

What differs from the authors' release: nothing here reads a label (its pseudo-labels are true ones), pairs are matched
by id, rows of the bank belong to their samples, k-means of each view starts from the joint centres. Beside the paper's
recipe (``recipes/romo-paper.yaml``) stand our repairs, on by default, each a field below: contrastive warm-up, balanced
targets fused over modalities and neighbours, pseudo-label-aware negatives, re-labelling, weights by agreement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from consilience.data.decode import DecodeConfig
from consilience.data.schema import Batch, Modalities
from consilience.distributed import gather_rows
from consilience.encoders.build import EncoderConfig
from consilience.errors import InputError
from consilience.heads.projection import Prototypes, classifier
from consilience.heads.towers import Towers
from consilience.losses import robust
from consilience.losses.contrastive import pairwise_nt_xent
from consilience.memory.bank import Bank
from consilience.methods.base import Beliefs, EncodeAll, Encoded, Method, Optimiser, Phase, Progress
from consilience.methods.registry import register
from consilience.noise.agreement import fuse, mean_over_pairs, mean_reciprocal_rank, mutual_information, unanimous
from consilience.noise.clustering import class_centres, enough_for, kmeans, neighbour_mean, sinkhorn, two_step_kmeans
from consilience.noise.pseudo_labels import PseudoLabels
from consilience.views.geometry import ViewConfig

ANNOTATE, ROBUST = 1, 2  # values of the stage buffer; 0 is the warm-up
Views = Sequence[Float[Tensor, "b d"]]


@dataclass(frozen=True)
class RoMoConfig:
    """Hyper-parameters; the defaults are ours, ``recipes/romo-paper.yaml`` holds the paper's."""

    clusters: int = 10
    """K, the number of categories. Nothing else of the labels is ever used."""
    width: int = 64
    """D, dimension of the common space in the annotate stage (paper: 1024)."""
    robust_width: int = 64
    """D in the robust stage when ``restart`` builds new networks (paper: 256)."""
    robust_neighbours: int = 20
    """k of DGCNN in the robust stage's new networks (paper: 40; annotate stage: encoders.neighbours)."""
    encoders: EncoderConfig = field(default_factory=EncoderConfig)
    """Networks of the modalities and their input sizes."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """Strength of the augmentation."""
    rectified: bool = False
    """ReLU after the image projection (paper: on)."""
    warmup_epochs: int = 5
    """Epochs of MLM alone before the first clustering; stands in for pre-trained encoders (paper: 0)."""
    annotate_epochs: int = 4
    """Epochs of the annotate stage (paper: 30)."""
    robust_epochs: int = 4
    """Epochs of the robust stage (paper: 50)."""
    batch_size: int = 100
    """Pairs a step over all processes (paper: 50)."""
    annotate_optimiser: Optimiser = field(default_factory=Optimiser)
    """Warm-up and annotate stage (paper: SGD 1e-3, weight decay 1e-5, cosine)."""
    robust_optimiser: Optimiser = field(default_factory=Optimiser)
    """Robust stage (paper: SGD 2e-4, weight decay 1e-6, cosine)."""
    ssm_weight: float = 1.0
    """Weight of SSM in the annotate stage (paper: 0.75)."""
    mlm_weight: float = 0.5
    """Weight of MLM in the annotate stage (paper: 0.25)."""
    rdl_weight: float = 1.0
    """Weight of the robust loss (paper: 0.7)."""
    robust_mlm_weight: float = 0.5
    """Weight of MLM in the robust stage (paper: 0.7)."""
    tau: float = 0.1
    """Temperature of MLM in warm-up and annotate stage (paper: 0.05)."""
    robust_tau: float = 0.1
    """The same in the robust stage (paper: 0.15)."""
    bank_momentum: float = 0.9
    """Weight of the old row in the memory bank's update (section SSM)."""
    clustering_seed: int = 313
    """Seed of k-means (the release's value)."""
    targets: Literal["per-view", "fused"] = "fused"
    """per-view (paper): arg max of the prototypes on each view's own bank. fused: one label a pair from the mean of the
    banks, by balanced assignment, so that no cluster can swallow the others."""
    neighbours: int = 10
    """Fused targets are taken from the mean of that many nearest samples (1: no smoothing; paper: 1)."""
    head: Literal["prototypes", "mlp"] = "prototypes"
    """Classifier of the robust stage: cosine prototypes carried over, or the paper's new Linear-ReLU-Linear."""
    temperature: float = 0.1
    """Of the cosine prototypes (fused targets)."""
    restart: bool = False
    """New networks for the robust stage (paper: on) instead of going on with the annotators."""
    robust_loss: Literal["rcll", "rcll-released", "ce", "mae", "gce"] = "rcll"
    """RCLL as the paper means it, as the release computes it, or a baseline in its place."""
    alpha: float = 0.25
    """Exponent of RCLL."""
    clip: Literal["none", "chance", "ramp"] = "ramp"
    """Probabilities up to 1/K carry no gradient: never, always (paper's intent), or from 10% to 50% of the stage."""
    exclude_same: bool = True
    """Samples of the anchor's pseudo-label are no negatives of MLM in the robust stage (paper: they are)."""
    relabel: bool = True
    """Draw new pseudo-labels at every epoch of the robust stage (paper: once)."""
    disagreement_weight: float = 0.3
    """Weight of pairs whose modalities predict different clusters, before scaling the mean to 1 (paper: 1)."""

    def __post_init__(self) -> None:
        for name, low in (("clusters", 2), ("batch_size", 4)):
            if getattr(self, name) < low:
                raise InputError(f"--method.{name} {getattr(self, name)}: expected at least {low}")
        for name in ("tau", "robust_tau", "temperature"):
            if getattr(self, name) <= 0:
                raise InputError(f"--method.{name} {getattr(self, name)}: a temperature is positive")


def ssm(logits: Sequence[Float[Tensor, "_ k"]], targets: Sequence[Int64[Tensor, " _"]]) -> Float[Tensor, ""]:
    """L_ssm: sum over views of the mean cross-entropy between W_v z_v and the target cluster."""
    return torch.stack([F.cross_entropy(x.float(), t) for x, t in zip(logits, targets, strict=True)]).sum()


def mlm(views: Views, seen: Sequence[Tensor], tau: float, groups: Int64[Tensor, " b"] | None = None) -> Tensor:
    """L_mlm: for two views (2 / 2B) times the sum over anchors, i.e. twice NT-Xent; summed over pairs of views."""
    return 2 * pairwise_nt_xent(views, seen, tau, groups)


def rdl(logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"], config: RoMoConfig, fraction: float) -> Tensor:
    """The robust loss of the second stage, float32 [b]; ``fraction`` of the stage drives the ramp."""
    if config.robust_loss == "rcll":
        ramp = {"none": 0.0, "chance": 1 / config.clusters, "ramp": robust.chance_ramp(fraction, config.clusters)}
        return robust.rcll(logits, labels, config.alpha, ramp[config.clip])
    if config.robust_loss == "rcll-released":
        return robust.rcll_released(logits, labels, config.alpha)
    return robust.BASELINES[config.robust_loss](logits, labels)


@register(
    "romo",
    title="unsupervised common space of paired modalities through noisy pseudo-labels",
    paper="Li, Qin, Sun, Peng, Peng, Hu: RoMo, IEEE TIP 33, 2024",
    kinds=("rgb", "grey", "points", "mesh"),
)
class RoMo(Method):
    """Warm-up, annotate, robust; see the file's header. State: towers, prototypes, banks, labels, weights."""

    Config = RoMoConfig
    config: RoMoConfig
    stage: Tensor

    def __init__(self, config: RoMoConfig, modalities: Modalities, samples: int) -> None:
        super().__init__(config, modalities, samples)
        if len(modalities) < 2:
            raise InputError(f"RoMo aligns modalities and needs two or more; the data has {', '.join(modalities)}")
        enough_for(samples, config.clusters)
        names, fused = list(modalities), config.targets == "fused"

        def towers(width: int, neighbours: int) -> Towers:
            return Towers(config.encoders, modalities, width, neighbours, config.rectified)

        self.towers = nn.ModuleDict({"annotate": towers(config.width, config.encoders.neighbours)})
        if config.restart:
            self.towers["robust"] = towers(config.robust_width, config.robust_neighbours)
        width = config.robust_width if config.restart else config.width
        temperature = config.temperature if fused else None
        # per view W_v as in the paper, or one set of centres that all views share
        self.prototypes = nn.ModuleDict(
            {name: Prototypes(config.clusters, config.width, temperature) for name in (["all"] if fused else names)}
        )
        prototypes = config.head == "prototypes"
        self.head: nn.Module = (
            Prototypes(config.clusters, width, config.temperature)
            if prototypes
            else classifier(width, 128, config.clusters)
        )
        self.banks = nn.ModuleDict({name: Bank(samples, config.width) for name in names})
        self.pseudo = PseudoLabels(names, samples, config.clusters)
        self.register_buffer("stage", torch.tensor(0))

    @property
    def decode(self) -> DecodeConfig:
        return self.config.encoders.decode

    def phases(self) -> tuple[Phase, ...]:
        c = self.config
        return (
            Phase("warmup", c.warmup_epochs, c.annotate_optimiser, c.batch_size),
            Phase("annotate", c.annotate_epochs, c.annotate_optimiser, c.batch_size),
            Phase("robust", c.robust_epochs, c.robust_optimiser, c.batch_size),
        )

    def trained(self, phase: str) -> list[nn.Module]:
        if phase == "robust":
            return [self._towers("robust"), self.head]
        return [self._towers(phase), *([self.prototypes] if phase == "annotate" else [])]

    def _towers(self, phase: str) -> Towers:
        return cast(Towers, self.towers["robust" if phase == "robust" and self.config.restart else "annotate"])

    def _heads(self) -> dict[str, nn.Module]:
        """The classifier of each modality at the current stage: prototypes, later the shared robust head."""
        if int(self.stage) == ROBUST:
            return dict.fromkeys(self.modalities, self.head)
        fused = self.config.targets == "fused"
        return {name: self.prototypes["all" if fused else name] for name in self.modalities}

    def _banks(self) -> Encoded:
        rows = {name: cast(Bank, bank).rows for name, bank in self.banks.items()}
        return Encoded(rows, {name: row.abs().sum(1) > 0 for name, row in rows.items()})

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        c, key = self.config, (progress.seed, progress.phase, progress.epoch)
        z, present = self._towers(progress.name).moved(batch, key, c.views)
        index = gather_rows(batch.index)
        if progress.name == "warmup":
            return {"mlm": mlm(z, present, c.tau)}
        if progress.name == "annotate":
            return self._annotate(z, present, index)
        return self._robust(z, present, index, progress.fraction)

    def _annotate(self, z: list[Tensor], present: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        """One step of PLA: SSM + MLM, then the touched rows of the banks follow."""
        c, heads, logits, targets = self.config, self._heads(), [], []
        for position, name in enumerate(self.modalities):
            seen, bank = present[position], cast(Bank, self.banks[name])
            logits.append(heads[name](z[position][seen]))
            if c.targets == "fused" or self.pseudo.given:
                targets.append(self.pseudo.labels[position, index[seen]])
            else:  # the view teaches itself: its slowly moving bank row names the cluster of its present vector
                with torch.no_grad():
                    targets.append(heads[name](bank.rows[index[seen]]).argmax(1))
            moved = z[position][seen].detach()
            # the release lets long vectors pull harder; with fused targets every sample counts alike
            bank.update(index[seen], F.normalize(moved, dim=1) if c.targets == "fused" else moved, c.bank_momentum)
        return {
            "ssm": c.ssm_weight * ssm(logits, targets),
            "mlm": c.mlm_weight * mlm(z, present, c.tau),
        }

    def _robust(self, z: list[Tensor], present: list[Tensor], index: Tensor, fraction: float) -> dict[str, Tensor]:
        """One step of RDL: robust loss on the pseudo-labels of each view + MLM."""
        c, terms = self.config, []
        weight = self.pseudo.relative_weights(index)
        for position, seen in enumerate(present):
            labels = self.pseudo.labels[position, index[seen]]
            each = rdl(self.head(z[position][seen]), labels, c, fraction)
            terms.append((weight[seen] * each).mean())
        groups = self.pseudo.groups(index) if c.exclude_same else None
        return {
            "rdl": c.rdl_weight * torch.stack(terms).sum(),
            "mlm": c.robust_mlm_weight * mlm(z, present, c.robust_tau, groups),
        }

    @torch.no_grad()
    def prepare(self, progress: Progress, encode_all: EncodeAll) -> None:
        """Start of an epoch: cluster once, then renew targets (annotate) and pseudo-labels (robust)."""
        first, given = progress.epoch == 0, bool(self.pseudo.given)
        if progress.name != "warmup" and first and int(self.stage) < ANNOTATE and not given:
            self.stage.fill_(ANNOTATE)
            self._initialise(encode_all())
            self._label(self._banks())
        elif progress.name == "annotate" and self.config.targets == "fused" and not given:
            self._label(self._banks())
        if progress.name == "robust":
            if first and not given and not self.config.restart:
                self._carry_head(encode_all)
            self.stage.fill_(ROBUST)
            if not first and not given and self.config.relabel:
                self._label(encode_all())

    def _initialise(self, encoded: Encoded) -> None:
        """Banks from the encoders; k-means on all banks together, then on each bank from the joint centres."""
        c, rows = self.config, []
        for name, module in self.banks.items():
            bank = cast(Bank, module)
            bank.fill(encoded.vectors[name])
            bank.rows[~encoded.present[name]] = 0
            rows.append(bank.rows[encoded.present[name]])
        if c.targets == "fused":
            joint, _ = kmeans(fuse(self._banks().vectors, encoded.present), c.clusters, c.clustering_seed)
            centres = {"all": F.normalize(joint, dim=1)}
        else:
            found = two_step_kmeans(rows, c.clusters, c.clustering_seed)
            centres = dict(zip(self.banks, found, strict=True))
        for name, value in centres.items():
            cast(Prototypes, self.prototypes[name]).set(value)

    def _carry_head(self, encode_all: EncodeAll) -> None:
        """Without new networks, cosine prototypes go on from the annotators' (or from the labels' class means)."""
        if not isinstance(self.head, Prototypes):
            return
        if self.config.targets == "fused":
            self.head.set(cast(Prototypes, self.prototypes["all"]).weight)
        else:
            encoded = encode_all()
            vectors = fuse(encoded.vectors, encoded.present)
            self.head.set(class_centres(vectors, self.pseudo.labels[0], self.head.weight))

    def _label(self, encoded: Encoded) -> None:
        """Pseudo-labels and weights of all samples from ``encoded`` under the classifiers of the current stage."""
        c, heads = self.config, self._heads()
        own = torch.stack([heads[name](encoded.vectors[name]).argmax(1) for name in self.modalities])
        if c.targets == "fused":
            smooth = neighbour_mean(fuse(encoded.vectors, encoded.present), c.neighbours)
            shared = next(iter(heads.values()))
            labels = sinkhorn(shared(smooth) * c.temperature).argmax(1).expand_as(own)
        else:
            labels = own
        agreed = unanimous(own, [encoded.present[name] for name in self.modalities])
        self.pseudo.renew(labels, agreed, c.disagreement_weight)

    @torch.no_grad()
    def finish(self, progress: Progress, encode_all: EncodeAll) -> Beliefs:
        """After annotate: the pseudo-labels the robust stage starts from. After robust: its final ones."""
        if progress.name == "warmup" or bool(self.pseudo.given):
            return {}
        encoded = encode_all()
        self._label(encoded)
        return self.pseudo.columns(self.probabilities(encoded))

    def believe(self, labels: Mapping[str, Tensor]) -> None:
        self.pseudo.believe(labels)

    def probabilities(self, encoded: Encoded) -> dict[str, Float[Tensor, "n k"]]:
        """Soft cluster membership of each modality under the classifier of the current stage."""
        return {name: head(encoded.vectors[name]).softmax(1) for name, head in self._heads().items()}

    def encode(self, batch: Batch, modality: str) -> Float[Tensor, "b d"]:
        return self._towers("robust" if int(self.stage) == ROBUST else "annotate").plain(batch, modality)

    @torch.no_grad()
    def agreement(self, held_out: Encoded) -> float:
        """Before there are clusters: mean reciprocal rank of the true partner. After: mutual information of the
        modalities' cluster predictions. Mean over pairs of modalities; no label is involved."""
        if int(self.stage) == 0:
            return mean_over_pairs(mean_reciprocal_rank, held_out.vectors, held_out.present)
        return mean_over_pairs(mutual_information, self.probabilities(held_out), held_out.present)
