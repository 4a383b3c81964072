"""CLIC: how complex a picture looks, learnt without scores by momentum contrast of a picture with its own crops.

The problem. People agree on which of two pictures is the more complex, but scores are dear. A feature that says it,
learnt from pictures alone, makes few scores enough.

Papers: S. Liu, S. Zhao, J. Chen, L. Song, "Contrastive Learning for Image Complexity Representation", arXiv 2408.03230
(P1: momentum contrast, Random Crop and Mix); S. Liu, S. Zhao, J. Chen, "CLIC: Contrastive Learning Framework for
Unsupervised Image Complexity Representation", arXiv 2411.12792 (P2: the complexity-aware loss). The contrastive core is
MoCo v2 (X. Chen, H. Fan, R. Girshick, K. He, arXiv 2003.04297).

What differs from the authors' code, and why. Mosaics are made of tensors on the way, not written beforehand, and by
default keep the picture's own zoom: published ones magnify by s c / 2, which changes the very density that is to be
learnt. Keys of the query's own sample in the queue are no negatives. Entropy is that of the pixels in [0, 1]; the
authors' histogram of normalised pixels loses most of them. Keys enter the queue after the backward pass. Batch norms
see the batch of all processes.

"expand" (mosaics as pictures of their own) keeps the batch as it is: where a longer training list would bring a mosaic
instead of a picture, the picture of the batch is exchanged for one of its mosaics, which then gives both the query and
the key. Such a mosaic is a sample of its own, so that its picture is a negative of it; in "both" it shares the id of
its picture, because there a picture and its mosaic are called positives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from consilience.data.decode import DecodeConfig
from consilience.data.pictures import Fit
from consilience.data.schema import Batch, Modalities, single
from consilience.distributed import gather_rows
from consilience.encoders.maps import map_encoder
from consilience.errors import InputError, need_positive, need_share
from consilience.losses.complexity import complexity_aware, feature_activation
from consilience.losses.contrastive import info_nce
from consilience.memory.momentum import Twin
from consilience.memory.queue import NOBODY, Queue
from consilience.methods.base import Method, Optimiser, Phase, Progress, Task
from consilience.methods.registry import register
from consilience.views.geometry import plain
from consilience.views.keyed import KeyedRandom
from consilience.views.mosaic import LEAST, preserve_mix, published_mix
from consilience.views.pictures import PictureViewConfig, picture_view
from consilience.views.statistics import entropy

QUERY, KEY, MIX, EXCHANGE, OTHER = range(5)  # purposes of keyed draws
VIEWS = PictureViewConfig(crop_low=0.6, grey=0.8, blur=0.0)
"""Of queries and keys by default (MoCo v2: crops from 0.2, grey 0.2, blur 0.5)."""


@dataclass(frozen=True)
class CLICConfig:
    """Hyper-parameters; the defaults are ours, for thousands of small pictures. ``clic-v2`` holds the paper's sizes,
    ``clic-released`` those of the authors' program."""

    encoder: str = "small"
    """Network of the pictures: small, resnet18 to resnet152, vgg19 (papers: ResNet-18, -50, -152)."""
    encoder_weights: str | None = None
    """File with its first weights."""
    image_size: int = 64
    """Side of the pictures in pixels (papers: 224)."""
    fit: Fit = "cut"
    """How pictures of any shape get there."""
    width: int = 32
    """Length of the contrasted vectors (papers: 128)."""
    head: Literal["mlp", "linear"] = "mlp"
    """From features to these: D -> D -> width with ReLU (MoCo v2), or one layer (MoCo v1, the released code)."""
    tau: float = 0.1
    """Temperature (MoCo v2: 0.2, released: 0.07)."""
    momentum: float = 0.95
    """m of the key encoder (papers: 0.999; small data need less)."""
    queue: int = 256
    """K, places of the queue (papers: 65536)."""
    queue_share: float = 0.25
    """K is at most this share of the training samples; 0: no such limit. In a larger one most keys are of pictures that
    were just seen, and stale."""
    rcm: Literal["none", "positive", "expand", "both"] = "both"
    """Random Crop and Mix: the key is of a mosaic of the picture (positive), mosaics are pictures of their own
    (expand), or both, as the paper names both uses; none is plain MoCo."""
    rcm_zoom: Literal["preserve", "published"] = "preserve"
    """Mosaics at the picture's own zoom (ours), or of the published geometry (c = 3, scales 1, 2, 4)."""
    rcm_least: int = LEAST
    """Pixels a published mosaic has at least along a side, before it is resized."""
    expand_share: float = 0.5
    """Share of the batch that expand exchanges for mosaics (paper: 10 mosaics a picture, so 10/11)."""
    cal_weight: float = 0.0
    """lambda of the complexity-aware loss (P1: 0, P2: 0.25)."""
    cal_stages: Literal["all", "last"] = "all"
    """Stages whose activations count in it: all (released code), or the last (P2's figure)."""
    query_views: PictureViewConfig = field(default_factory=lambda: VIEWS)
    """How queries are moved and recoloured. Ours: most views are grey, so that pictures cannot be told apart by their
    palette, and crops keep most of the picture, since magnifying changes its density."""
    key_views: PictureViewConfig = field(default_factory=lambda: VIEWS)
    """How keys are, after the mosaic."""
    epochs: int = 40
    """Epochs over the training pictures (papers: 200)."""
    batch_size: int = 64
    """Pictures a step over all processes (papers: 256)."""
    optimiser: Optimiser = field(default_factory=lambda: Optimiser("adam", 3e-3, schedule="cosine"))
    """Of encoder and head (MoCo v2: SGD 0.9, weight decay 1e-4, lr 0.03 at batch 256, cosine)."""

    def __post_init__(self) -> None:
        need_positive(self, "tau", "image_size", "width", "queue")
        need_share(self, "queue_share", "expand_share")
        if self.cal_weight < 0:
            raise InputError(f"--method.cal_weight {self.cal_weight}: expected 0 (off) or a positive weight")


@register(
    "clic",
    title="complexity of pictures without scores, by momentum contrast with mosaics of crops",
    paper="Liu et al., Contrastive Learning for Image Complexity Representation, arXiv 2408.03230 (and 2411.12792)",
    kinds=("rgb", "grey"),
)
class CLIC(Method):
    """See the module's docstring."""

    Config = CLICConfig
    task = Task.SCORING
    config: CLICConfig

    def __init__(self, config: CLICConfig, modalities: Modalities, samples: int) -> None:
        super().__init__(config, modalities, samples)
        c = config
        self.picture, self.kind = single(modalities)
        self.encoder = map_encoder(c.encoder, self.kind, c.encoder_weights)
        width = self.encoder.width
        layers = [] if c.head == "linear" else [nn.Linear(width, width), nn.ReLU()]
        self.projection = nn.Sequential(*layers, nn.Linear(width, c.width))
        self.key_encoder, self.key_projection = Twin(self.encoder, c.momentum), Twin(self.projection, c.momentum)
        most = int(samples * c.queue_share) if c.queue_share else c.queue
        self.queue = Queue(max(1, min(c.queue, most)), c.width)
        # as in MoCo: negatives from the first step on, which the first keys replace
        self.queue.push(torch.randn(self.queue.places, c.width), torch.full((self.queue.places,), NOBODY))
        self._seen: tuple[Tensor, Tensor] | None = None

    @property
    def decode(self) -> DecodeConfig:
        return DecodeConfig(image_size=self.config.image_size, image_fit=self.config.fit)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("train", self.config.epochs, self.config.optimiser, self.config.batch_size),)

    def trained(self, phase: str) -> list[nn.Module]:
        return [self.encoder, self.projection]

    def mosaic(self, images: Float[Tensor, "b c h w"], random: KeyedRandom) -> Float[Tensor, "b c h w"]:
        """A mosaic of each picture (RCM), at the configured zoom."""
        if self.config.rcm_zoom == "preserve":
            return preserve_mix(images, random)
        return published_mix(images, random, self.config.rcm_least)

    def views(
        self, batch: Batch, key: tuple[int, ...]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"], Int64[Tensor, " b"]]:
        """Query and key pictures in [0, 1] and the ids of the samples that they count as, drawn under ``key``."""
        c = self.config
        images, ids = plain(batch.values[self.picture], self.kind), batch.index

        def draws(purpose: int) -> KeyedRandom:
            return KeyedRandom.of(batch.index, *key, purpose)

        if c.rcm in ("expand", "both"):
            exchanged = draws(EXCHANGE).uniform(0, 0, 1)[:, 0] < c.expand_share
            images = torch.where(exchanged[:, None, None, None], self.mosaic(images, draws(OTHER)), images)
            if c.rcm == "expand":
                ids = ids + exchanged.long() * self.samples
        other = self.mosaic(images, draws(MIX)) if c.rcm in ("positive", "both") else images
        return (
            picture_view(images, draws(QUERY), c.query_views),
            picture_view(other, draws(KEY), c.key_views),
            ids,
        )

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        c = self.config
        query, key, ids = self.views(batch, (progress.seed, progress.phase, progress.epoch))
        maps = self.encoder.maps(query)
        z = self.projection(maps[-1].mean((2, 3)))
        with torch.no_grad():
            keys = gather_rows(self.key_projection.network(self.key_encoder.network(key)).float())
            self._seen = keys, gather_rows(ids)
        terms = {"contrast": contrast(gather_rows(z), keys, self._seen[1], self.queue, c.tau)}
        if c.cal_weight:
            known = gather_rows(feature_activation(maps if c.cal_stages == "all" else maps[-1:]))
            terms["complexity"] = c.cal_weight * complexity_aware(known, gather_rows(entropy(query)))
        return terms

    @torch.no_grad()
    def after_batch(self, batch: Batch, progress: Progress) -> None:
        """The queue takes the batch's keys, the twins follow."""
        if self._seen is not None:
            self.queue.push(*self._seen)
            self._seen = None
        self.key_encoder.follow(self.encoder)
        self.key_projection.follow(self.projection)

    def encode(self, batch: Batch, modality: str) -> Float[Tensor, "b d"]:
        """The encoder's features, the mean of its last map over places: complexity is read off them linearly."""
        found: Tensor = self.encoder(plain(batch.values[modality], self.kind))
        return found

    def last_map(self, batch: Batch) -> Float[Tensor, "b d h w"]:
        """The map whose mean is what :meth:`encode` gives."""
        return self.encoder.maps(plain(batch.values[self.picture], self.kind))[-1]

    def activation(self, batch: Batch) -> Float[Tensor, " b"]:
        """FAE, the score without read-out of P2's figure. Measured as good as useless: batch norms fix it."""
        maps = self.encoder.maps(plain(batch.values[self.picture], self.kind))
        return feature_activation(maps if self.config.cal_stages == "all" else maps[-1:])


def contrast(
    z: Float[Tensor, "n d"], keys: Float[Tensor, "n d"], ids: Int64[Tensor, " n"], queue: Queue, tau: float
) -> Float[Tensor, ""]:
    """L_con: cross-entropy of finding a query's key among the queue's K, by cosine; mean over queries.

    Vectors are normalised here. Keys of a query's own sample in the queue are neither positives nor negatives. A query
    that cannot tell gives ln(K + 1): a loss that stays there means that nothing is learnt.
    """
    z, keys = F.normalize(z.float(), dim=1), F.normalize(keys.float(), dim=1)
    others, of, _ = queue.flat()
    logits = torch.cat([(z * keys).sum(1, keepdim=True), z @ others.T], 1) / tau
    positive = torch.zeros_like(logits, dtype=torch.bool)
    positive[:, 0] = True
    own = F.pad(of[None] == ids[:, None], (1, 0))
    return info_nce(logits, positive, ~own).mean()
