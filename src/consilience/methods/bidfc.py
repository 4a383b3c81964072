"""BIDFC: an encoder for few labels, from pictures alone, by weak contrast within the batch.

Y. Zhai, W. Zhou, J. Sun, H. Li, Q. Ke, Z. Ying, J. Gan, C. Mai, R. Donida Labati, V. Piuri, F. Scotti, "Weakly
Contrastive Learning via Batch Instance Discrimination and Feature Clustering for Small Sample SAR ATR", IEEE TGRS
(arXiv 2408.03627). Radar chips of one class look alike, so pushing every picture far from every other one destroys the
classes. Here a picture is told from those of its batch only (batch instance discrimination, BID), a temperature says
how far apart they must get, and a second loss pulls the views of one picture together (dynamic-weighted variance, DWV).

Ours is the default: every view is told apart by prototypes that are imprinted from the other views of each picture, in
one joint step with DWV on the same features. ``head: random`` is the published recipe: a linear layer drawn anew for
every batch, one optimiser step a view, then one for DWV. Differences from the released code, each of which was found
wrong there: labels are positions in the batch (a running number modulo the batch size gave two thirds of the pictures a
false partner); DWV's pass is not run, nor is a step taken, while its weight is 0; its mean over the batch can be had
instead of the sum; the head's momentum is forgotten when it is drawn; the averaged network is a copy of its own. Grey
pictures are read as one channel. The paper's text was not at hand: formulas follow the released code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from consilience.data.decode import DecodeConfig
from consilience.data.pictures import Fit
from consilience.data.schema import Batch, Modalities, single
from consilience.distributed import gather_rows
from consilience.encoders.maps import map_encoder
from consilience.errors import InputError, need_positive, need_share
from consilience.heads.imprint import DrawnHead, imprinted_logits
from consilience.heads.projection import classifier
from consilience.losses.contrastive import nt_xent
from consilience.losses.instances import instance_discrimination, ramp, separation, view_variance
from consilience.memory.momentum import Twin
from consilience.methods.base import Method, Optimiser, Phase, Progress, Task
from consilience.methods.registry import register
from consilience.views.keyed import KeyedRandom
from consilience.views.pictures import PictureViewConfig, picture_view

HEAD = 1000  # key of the head's draws, beyond those of any view

VIEWS = PictureViewConfig(
    crop_low=0.85,
    rotate=30,
    rotate_probability=0.2,
    hue=0.0,
    colour_probability=0.4,
    grey=0.0,
    blur=0.0,
    noise=0.1,
    noise_probability=0.2,
)
"""The augmentation of the released code: crop, mirror, rotation, brightness and contrast, noise."""


@dataclass(frozen=True)
class BIDFCConfig:
    """Hyper-parameters. "Code" is the authors' released file; K, T, alpha are its symbols."""

    head: Literal["imprint", "random", "pairs"] = "imprint"
    """What tells the pictures of a batch apart: leave-one-out prototypes, one joint step a batch (ours); a linear layer
    drawn anew for every batch, one step a view (code); or the single other views, as SimCLR does (NT-Xent)."""
    temperature: float = 0.5
    """T, the knob of the distance between pictures: higher is a weaker contrast (of cosines 0.5 is weak and 0.2 strong;
    code: 2, on inner products of raw features)."""
    n_views: int = 5
    """K, views drawn of a picture."""
    views: PictureViewConfig = VIEWS
    """How views are drawn; ``speckle`` is the radar's own noise."""
    encoder: str = "small"
    """Network: small, resnet18 (code), resnet34, resnet50, resnet101, resnet152, vgg19."""
    image_size: int = 64
    """Side of the decoded picture in pixels."""
    image_fit: Fit = "centre"
    """How pictures get there. Chips must not be resized: their size differs by class and would give it away."""
    shrink: int = 2
    """Decoded pixels along a side that are averaged to one of the network's (code: 1)."""
    spared: float = 0.0
    """Share of the other pictures, those nearest to a view, that it is not told from: they may be of its class (ours,
    with ``head: imprint``)."""
    projection: int = 0
    """Width of an MLP between features and contrast (SimCLR: 128); 0: none, as in the code."""
    head_lr: float = 10.0
    """Step of the drawn head, times the schedule (code: that of the network)."""
    head_momentum: float = 0.0
    """Its momentum, forgotten when it is drawn (code: 0.9, not forgotten)."""
    dwv_weight: float = 1.0
    """a_f, final weight of DWV; 0: none."""
    dwv_start: float = 0.1
    """T1 as a share of the epochs, up to which alpha is 0 (code: 30 of 300)."""
    dwv_full: float = 0.5
    """T2, from which it is a_f (code: 150 of 300)."""
    dwv_statistic: Literal["std", "var"] = "std"
    """Standard deviation of the views (code), or the variance of the loss's name."""
    dwv_reduction: Literal["sum", "mean"] = "mean"
    """Over the pictures of the batch (code: sum, which grows with the batch)."""
    separation_weight: float = 0.0
    """Final weight of (spread between pictures - target)^2, an explicit distance (follow-up of the code)."""
    separation_target: float = 1.0
    """That spread: the mean standard deviation of the features over the batch."""
    ema: float = 0.0
    """Memory of an average of the networks, used in place of the last one; 0: none (code: 0.999, without effect)."""
    epochs: int = 25
    """Epochs over the pictures (code: 300)."""
    batch_size: int = 128
    """B, pictures a batch over all processes (code: 256)."""
    optimiser: Optimiser = field(default_factory=lambda: Optimiser("sgd", 0.05, 1e-4, schedule="cosine"))
    """Of the network (code: Adam at 0.3 B / 512 unless asked for SGD, a rule of SGD's)."""

    def __post_init__(self) -> None:
        for name, low in (("n_views", 2), ("shrink", 1), ("image_size", 1), ("epochs", 0), ("batch_size", 2)):
            if getattr(self, name) < low:
                raise InputError(f"--method.{name} {getattr(self, name)}: expected {low} or more")
        need_positive(self, "temperature")
        if self.image_size % self.shrink:
            raise InputError(f"--method.shrink {self.shrink}: expected a divisor of image_size {self.image_size}")
        if not 0 <= self.dwv_start <= self.dwv_full <= 1:
            raise InputError(
                f"--method.dwv_start {self.dwv_start}, dwv_full {self.dwv_full}: expected 0 <= start <= full <= 1"
            )
        need_share(self, "ema", "spared", whole=False)

    @property
    def gathers(self) -> bool:
        """Whether there is a loss on the views of a picture together, beside the contrast."""
        return self.dwv_weight > 0 or self.separation_weight > 0


@register(
    "bidfc",
    title="features for few labels: weak contrast within the batch, clustered views",
    paper="Zhai et al., Weakly contrastive learning via batch instance discrimination and feature clustering for small "
    "sample SAR ATR, IEEE TGRS (arXiv 2408.03627)",
    kinds=("rgb", "grey"),
)
class BIDFC(Method):
    """See the module's docstring."""

    Config = BIDFCConfig
    complete = True
    task = Task.CLASSES
    config: BIDFCConfig

    def __init__(self, config: BIDFCConfig, modalities: Modalities, samples: int) -> None:
        super().__init__(config, modalities, samples)
        c = config
        self.name, kind = single(modalities)
        self.encoder = map_encoder(c.encoder, kind)
        self.head: nn.Module | None = None
        width = self.encoder.width
        if c.projection:
            self.head = classifier(width, width, c.projection)
            width = c.projection
        self.drawn = DrawnHead(c.batch_size, width, c.head_momentum) if c.head == "random" else None
        self.twin = Twin(self.encoder, c.ema) if c.ema else None

    @property
    def decode(self) -> DecodeConfig:
        return DecodeConfig(image_size=self.config.image_size, image_fit=self.config.image_fit)

    def phases(self) -> tuple[Phase, ...]:
        c = self.config
        turns = c.n_views + int(c.gathers) if c.head == "random" else 1
        return (Phase("train", c.epochs, c.optimiser, c.batch_size, turns),)

    def trained(self, phase: str) -> list[nn.Module]:
        return [self.encoder] if self.head is None else [self.encoder, self.head]

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        c = self.config
        if c.head == "random" and progress.turn < c.n_views:
            return {"instances": self._drawn_contrast(batch, progress)}
        weights = self._weights(progress)
        if c.head == "random" and not any(weights.values()):
            return {}  # nothing is computed, and no moment of the optimiser moves the network
        features = self._features(batch, progress, range(c.n_views))
        terms = self._gathering(features, weights)
        return terms if c.head == "random" else {"instances": self._joint_contrast(features)} | terms

    def _features(self, batch: Batch, progress: Progress, views: range) -> Float[Tensor, "b k d"]:
        """Pooled features of views of the joined batch."""
        x, key = self._pictures(batch), (progress.seed, progress.phase, progress.epoch)
        looks = [picture_view(x, KeyedRandom.of(batch.index, *key, view), self.config.views) for view in views]
        found = self.encoder(torch.cat(looks)).unflatten(0, (len(looks), len(x))).transpose(0, 1)
        return gather_rows(found)

    def _pictures(self, batch: Batch) -> Float[Tensor, "b c h w"]:
        """In [0, 1], as large as the network reads them."""
        x = batch.values[self.name].float() / 255
        return F.avg_pool2d(x, self.config.shrink) if self.config.shrink > 1 else x

    def _projected(self, features: Float[Tensor, "*n d"]) -> Float[Tensor, "*n p"]:
        return features if self.head is None else self.head(features)

    def _joint_contrast(self, features: Float[Tensor, "b k d"]) -> Float[Tensor, ""]:
        """All views at once, against prototypes or against each other."""
        c, z = self.config, self._projected(features)
        if c.head == "pairs":
            return nt_xent(list(z.unbind(1)), c.temperature)
        logits = imprinted_logits(z).flatten(0, 1)
        own = torch.arange(len(z), device=z.device).repeat(c.n_views)
        told_from = None
        if c.spared:
            others = logits.detach().scatter(1, own[:, None], -2.0)  # below any cosine
            nearest = others.topk(int(c.spared * (len(z) - 1)), 1).indices
            told_from = torch.ones_like(logits, dtype=torch.bool).scatter(1, nearest, False)
        return instance_discrimination(logits, own, c.temperature, told_from)

    def _drawn_contrast(self, batch: Batch, progress: Progress) -> Float[Tensor, ""]:
        """View ``turn`` against the head that was drawn for this batch, which takes its own step."""
        c, head = self.config, self.drawn
        assert head is not None
        if progress.turn == 0:
            index = gather_rows(batch.index)
            head.reset(KeyedRandom.of(index, progress.seed, progress.phase, progress.epoch, HEAD))
        z = self._projected(self._features(batch, progress, range(progress.turn, progress.turn + 1))[:, 0])
        own = torch.arange(len(z), device=z.device)
        loss = instance_discrimination(head(z), own, c.temperature)
        if self.training:
            rate = c.head_lr * c.optimiser.factor(progress.epoch, c.epochs, c.epochs)
            head.learn(z.detach(), own, c.temperature, rate)
        return loss

    def _weights(self, progress: Progress) -> dict[str, float]:
        """alpha(e) of DWV; the follow-up raises that of the separation in the second half of the epochs."""
        c = self.config
        return {
            "variance": ramp(progress.epoch, c.dwv_start * c.epochs, c.dwv_full * c.epochs, c.dwv_weight),
            "separation": ramp(progress.epoch, 0.5 * c.epochs, c.epochs, c.separation_weight),
        }

    def _gathering(self, features: Float[Tensor, "b k d"], weights: dict[str, float]) -> dict[str, Tensor]:
        c, terms = self.config, {}
        if weights["variance"]:
            terms["variance"] = weights["variance"] * view_variance(features, c.dwv_statistic, c.dwv_reduction)
        if weights["separation"]:
            terms["separation"] = weights["separation"] * separation(features, c.separation_target)
        return terms

    @torch.no_grad()
    def after_batch(self, batch: Batch, progress: Progress) -> None:
        """The average follows the network."""
        if self.twin is not None:
            self.twin.follow(self.encoder)

    def encode(self, batch: Batch, modality: str) -> Float[Tensor, "b d"]:
        """Pooled features of the picture as it is, of the averaged network where there is one."""
        network = self.encoder if self.twin is None else self.twin.network
        found: Tensor = network(self._pictures(batch))
        return found
