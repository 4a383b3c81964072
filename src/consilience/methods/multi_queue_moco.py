"""Multi-queue MoCo: counting crowds in bad weather that only a few per cent of the training pictures show.

The problem. How many things a picture shows, and where, is to be estimated also in haze, rain and snow; there are
points for every thing and a name of the weather for every training picture, but hardly any pictures in bad weather.
Weather is unknown when counting.

Paper: T. Pan, Z. Zheng, X. Jia, "Boosting Adverse Weather Crowd Counting via Multi-queue Contrastive Learning",
arXiv 2408.05956 (2024). Stage 1 (weather-aware representation learning) trains a counting network with momentum
contrast in which every weather has its own queue of equal length; stage 2 (contrastive-learning-guided refining)
freezes the encoder and trains a small refiner that moves features to the queue of normal weather. The counter is that
of the Bayesian loss (Ma et al., ICCV 2019). No code of the method was released and the text was not at hand: both
contrastive losses are rebuilt from the published summary (docs/multi-queue-moco.md says what is known and what is not).

What is ours: batches balanced by weather in both stages (``--train.balance none`` switches that off), equal weights of
queues while they fill, the sum over positives inside the logarithm in stage 2, and weather put on pictures while
training (off: it did not measure better).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from consilience.data.decode import DecodeConfig
from consilience.data.schema import Batch, Modalities, Target, single
from consilience.distributed import gather_rows
from consilience.encoders.maps import map_encoder
from consilience.errors import InputError, need_positive, unknown
from consilience.heads.density import DensityDecoder, Refiner, in_tiles
from consilience.losses.density import Background, bayesian_loss, map_loss
from consilience.losses.multi_queue import Positives, multi_queue_nce, to_normal_nce
from consilience.memory.momentum import Twin
from consilience.memory.queue import Queue
from consilience.methods.base import EncodeAll, Method, Optimiser, Phase, Progress, Task
from consilience.methods.registry import register
from consilience.views.crops import CropConfig, crop_view
from consilience.views.keyed import KeyedRandom
from consilience.views.weather import weather_view

QUERY, KEY, SKY = 0, 1, 2  # purposes of keyed draws


@dataclass(frozen=True)
class MultiQueueConfig:
    """Hyper-parameters; the defaults are for pictures of about 100 pixels, ``recipes/multi-queue-moco-paper.yaml`` has
    the published sizes."""

    encoder: str = "small"
    """f: small (four convolutions), resnet18 to resnet152, or vgg19 (the paper's default)."""
    encoder_weights: str | None = None
    """File with the encoder's weights."""
    image_size: int = 112
    """Side in pixels of the square that pictures are scaled into whole."""
    crops: CropConfig = field(default_factory=CropConfig)
    """Training views."""
    stride: int = 4
    """Pixels that a cell of the density map stands for along a side (BL: 8); the encoder's map is enlarged to that."""
    tile: int = 3584
    """Squares with longer sides are counted in tiles of at most that many pixels (MAN)."""
    weathers: str = ""
    """Names of the weathers, sorted, comma-separated; empty: those of the Table's column ``weather``."""
    normal: str = "normal"
    """The weather that stage 2 refines towards."""
    density_loss: Literal["bayesian", "map"] = "bayesian"
    """L_den: the Bayesian loss, or squared error to a map of the points and a tenth of the count's error."""
    sigma: float = 2.5
    """Standard deviation of L_den's Gaussians in pixels (BL: 8)."""
    background: Background = "ratio"
    """Of the Bayesian loss: BL's form, MAN's form (gap), or none."""
    beta: float = 1.0
    """Of the background (BL: 1; MAN: 0.15)."""
    queues: Literal["weather", "single"] = "weather"
    """A queue for every weather, or one for all with as many places together, positives then being the own key
    (MoCo)."""
    places: int = 128
    """K_w, places of each queue (1024 where a weather has as many pictures)."""
    positives: Positives = "queue"
    """Of L_contra1: the own key and all of the own queue, or the own key."""
    exclude_same: bool = True
    """With own keys alone: a picture's earlier keys are no negatives."""
    dim: int = 128
    """Width of the embedding."""
    tau: float = 0.2
    """Temperature (MoCo v2)."""
    momentum: float = 0.99
    """Of the momentum copies (MoCo: 0.999; 0.99 below 5,000 pictures)."""
    contrast_weight: float = 0.2
    """lambda_1; 0: the density loss alone."""
    refine_weight: float = 1.0
    """lambda_2; 0: a refiner trained by the density loss alone."""
    synthesis: float = 0.0
    """Share of the normal pictures of a batch that are put into haze, rain or snow while training, for the density loss
    alone; at most 1/3: made-up weather that crowds out the real one measures worse."""
    learn_epochs: int = 40
    """Of stage 1, over the training pictures (paper: some 600)."""
    refine_epochs: int = 10
    """Of stage 2 (paper: some 200)."""
    batch_size: int = 16
    """Pictures a step over all processes (BL, MAN: 1; contrast needs more)."""
    optimiser: Optimiser = field(default_factory=lambda: Optimiser("adam", 2e-3, 1e-4))
    """Of stage 1 (BL: Adam at 1e-5)."""
    refine_optimiser: Optimiser = field(default_factory=lambda: Optimiser("adam", 1e-3, 1e-4))
    """Of stage 2."""

    def __post_init__(self) -> None:
        need_positive(self, "stride", "tile", "sigma", "places", "dim", "tau", "batch_size", "image_size")
        if not 0 <= self.synthesis <= 1 / 3:
            raise InputError(f"--method.synthesis {self.synthesis}: expected a share from 0 to 1/3")
        if self.crops.size > self.image_size or self.crops.size % self.stride or self.image_size % self.stride:
            raise InputError(
                f"--method.crops.size {self.crops.size}, image_size {self.image_size}: expected multiples of stride "
                f"{self.stride}, the crop no larger than the picture"
            )


@register(
    "multi-queue-moco",
    title="counting in bad weather: density maps, a queue for every weather, features refined to normal weather",
    paper="Pan, Zheng, Jia, Boosting Adverse Weather Crowd Counting via Multi-queue Contrastive Learning, "
    "arXiv 2408.05956",
    kinds=("rgb", "grey"),
)
class MultiQueueMoCo(Method):
    """See the module's docstring."""

    Config = MultiQueueConfig
    task = Task.COUNTING
    targets: ClassVar = {"places": Target.PLACES, "weather": Target.CLASS}
    balance = "weather"
    complete = True
    config: MultiQueueConfig

    def __init__(self, config: MultiQueueConfig, modalities: Modalities, samples: int) -> None:
        super().__init__(config, modalities, samples)
        c = config
        self.name, kind = single(modalities)
        self.weathers = [name.strip() for name in c.weathers.split(",")] if c.weathers else [c.normal]
        if c.normal not in self.weathers:
            raise unknown("--method.normal: weather", c.normal, self.weathers)
        self.normal = self.weathers.index(c.normal)
        self.encoder = map_encoder(c.encoder, kind, c.encoder_weights)
        width, stride = self.encoder.width, self.encoder.strides[-1]
        if stride % c.stride or c.image_size % stride or c.crops.size % stride:
            raise InputError(
                f"--method.stride {c.stride}: {c.encoder} has maps of stride {stride}; expected a divisor of that, and "
                "image_size and crops.size multiples of it"
            )
        self.decoder = DensityDecoder(width, stride // c.stride)
        self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, c.dim))
        self.refiner = Refiner(width)
        self.slow_encoder, self.slow_projector = Twin(self.encoder, c.momentum), Twin(self.projector, c.momentum)
        many = len(self.weathers)
        self.queue = Queue(c.places, c.dim, many) if c.queues == "weather" else Queue(c.places * many, c.dim)
        self.banks = Queue(c.places, c.dim, many)
        self.pushes: list[tuple[Queue, Tensor, Tensor, Tensor]] = []

    @property
    def decode(self) -> DecodeConfig:
        return DecodeConfig(image_size=self.config.image_size, image_fit="whole")

    def phases(self) -> tuple[Phase, ...]:
        c = self.config
        return (
            Phase("learn", c.learn_epochs, c.optimiser, c.batch_size),
            Phase("refine", c.refine_epochs, c.refine_optimiser, c.batch_size),
        )

    def trained(self, phase: str) -> list[nn.Module]:
        if phase == "refine":
            return [self.refiner, self.decoder]
        return [self.encoder, self.decoder, *([self.projector] if self.config.contrast_weight else [])]

    @torch.no_grad()
    def prepare(self, progress: Progress, encode_all: EncodeAll) -> None:
        """Stage 2 begins with empty banks."""
        if progress.name == "refine" and progress.epoch == 0:
            self.banks.pushed.zero_()

    def features(self, pictures: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """h = f(x), unrefined."""
        return self.encoder.maps(pictures)[-1]

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        self.pushes = []
        # a picture of rare weather comes several times an epoch: the place in it makes another view each time
        key = (progress.seed, progress.phase, progress.epoch, int(progress.fraction * 2**40))
        pictures, weather = self._sky(batch, KeyedRandom.of(batch.index, *key, SKY))
        places, c = batch.targets["places"], self.config
        crops = crop_view(pictures, places, KeyedRandom.of(batch.index, *key, QUERY), c.crops)
        if progress.name == "refine":
            return self._refine(batch, crops.pictures, crops.points, crops.scale, weather)
        features = self.features(crops.pictures)
        terms = {"density": self._density(self.decoder(features), crops.points, crops.scale)}
        if c.contrast_weight:
            other = crop_view(pictures, places, KeyedRandom.of(batch.index, *key, KEY), c.crops)
            terms["contrast"] = c.contrast_weight * self._contrast(batch, features, other.pictures, weather)
        return terms

    def _sky(self, batch: Batch, random: KeyedRandom) -> tuple[Tensor, Int64[Tensor, " b"]]:
        """Pictures in [0, 1] and their weathers; those that were put into some here have none of the known ones
        (-1)."""
        pictures, weather = batch.values[self.name].float() / 255, batch.targets["weather"]
        if int(weather.max()) >= len(self.weathers):
            raise InputError(
                f"--method.weathers {self.config.weathers}: the data has more names than these; leave the option out"
            )
        if self.config.synthesis:
            changed, which = weather_view(pictures, random, self.config.synthesis)
            which = which & (weather == self.normal)
            pictures = torch.where(which[:, None, None, None], changed, pictures)
            weather = torch.where(which, -1, weather)
        return pictures, weather

    def _density(
        self, density: Float[Tensor, "b 1 y x"], points: Float[Tensor, "b m 2"], scale: Float[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """L_den, mean over the pictures of all processes."""
        c = self.config
        if c.density_loss == "map":
            each = map_loss(density, points, c.stride, c.sigma)
        else:
            each = bayesian_loss(density, points, c.stride, c.sigma, scale * c.image_size, c.background, c.beta)
        return gather_rows(each).mean()

    def _contrast(
        self, batch: Batch, features: Tensor, other: Float[Tensor, "b c h w"], weather: Int64[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """L_contra1 of z = p(f(x)) with k = p_k(f_k(x')) of another crop; k is pushed after the step."""
        c = self.config
        z = self.embed(features)
        with torch.no_grad():
            keys = F.normalize(self.slow_projector.network(self.slow_encoder.network(other)).float(), dim=1)
        ring = weather if c.queues == "weather" else torch.where(weather < 0, weather, 0)
        own = c.positives == "own" or c.queues == "single"
        same = (self.queue.ids == batch.index[:, None, None]) if own and c.exclude_same else None
        each = multi_queue_nce(
            z, keys, self.queue.keys, self.queue.filled(), ring, c.tau, "own" if own else "queue", same
        )
        self.pushes = [(self.queue, keys, batch.index, ring)]
        return gather_rows(each).mean()

    def _refine(
        self,
        batch: Batch,
        pictures: Float[Tensor, "b c s t"],
        points: Float[Tensor, "b m 2"],
        scale: Float[Tensor, " b"],
        weather: Int64[Tensor, " b"],
    ) -> dict[str, Tensor]:
        """Stage 2: L_den(g(r(h))) + lambda_2 L_contra2(p(r(h))), h and p fixed."""
        c = self.config
        self.encoder.eval()
        with torch.no_grad():
            features = self.features(pictures)
            plain = self.embed(features)
        refined = self.refiner(features)
        terms = {"density": self._density(self.decoder(refined), points, scale)}
        if c.refine_weight:
            each = to_normal_nce(self.embed(refined), self.banks.keys, self.banks.filled(), self.normal, c.tau)
            terms["refine"] = c.refine_weight * gather_rows(each).mean()
            self.pushes = [(self.banks, plain, batch.index, weather)]
        return terms

    def embed(self, features: Float[Tensor, "b d y x"]) -> Float[Tensor, "b e"]:
        """z: unit vectors, float32, of feature maps, refined or not."""
        projected: Tensor = self.projector(features.mean((2, 3)))
        return F.normalize(projected.float(), dim=1)

    def after_batch(self, batch: Batch, progress: Progress) -> None:
        if progress.name == "learn" and self.config.contrast_weight:
            self.slow_encoder.follow(self.encoder)
            self.slow_projector.follow(self.projector)
        for queue, keys, ids, rings in self.pushes:
            queue.push(gather_rows(keys), gather_rows(ids), gather_rows(rings))
        self.pushes = []

    def density(self, batch: Batch) -> Float[Tensor, "b 1 y x"]:
        """How many things lie in each cell of ``stride`` x ``stride`` pixels of the decoded squares; their count is the
        sum over the cells that the picture covers (:func:`~consilience.data.density.covered`)."""
        c = self.config
        pictures = batch.values[self.name].float() / 255

        def counted(tile: Tensor) -> Tensor:
            found: Tensor = self.decoder(self.refiner(self.features(tile)))
            return found

        return in_tiles(counted, pictures, c.tile, self.encoder.strides[-1])

    def embeddings(self, batch: Batch) -> dict[str, Any]:
        """What is known of whole pictures: ``features``, the mean of h; ``plain``, z of h; ``refined``, z of r(h)."""
        features = self.features(batch.values[self.name].float() / 255)
        refined = self.refiner(features)
        return {"features": features.mean((2, 3)), "plain": self.embed(features), "refined": self.embed(refined)}

    def encode(self, batch: Batch, modality: str) -> Float[Tensor, "b d"]:
        """The mean of the refined features."""
        refined: Tensor = self.refiner(self.features(batch.values[modality].float() / 255))
        return refined.mean((2, 3)).float()
