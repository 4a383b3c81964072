"""ICNet's head on the encoder of a run: a score of complexity and a map of it, learnt from scored pictures.

Papers: T. Feng, Y. Zhai, J. Yang, J. Liang, D. Fan, J. Zhang, L. Shao, D. Tao, "IC9600: A Benchmark Dataset for
Automatic Image Complexity Assessment", TPAMI 2023 (the head and its losses); CLIC, arXiv 2411.12792 (the encoder is one
that was trained without scores, and stays frozen).

``--train.start RUN`` names the run whose picture encoder is taken; every tensor has to fit, or the run is refused.
The authors' program loads what fits and freezes the rest at random without a message; here a frozen encoder that was
never loaded is an error. A frozen encoder stays in evaluation mode: the moments of its batch norms do not move either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from consilience.data.decode import DecodeConfig
from consilience.data.pictures import Fit
from consilience.data.schema import Batch, Modalities, Target, single
from consilience.distributed import gather_rows
from consilience.encoders.maps import map_encoder
from consilience.encoders.weights import load_part
from consilience.errors import InputError, need_share
from consilience.heads.complexity import ICNetHead
from consilience.methods.base import EncodeAll, Method, Optimiser, Phase, Progress, Task
from consilience.methods.registry import register
from consilience.views.geometry import plain
from consilience.views.keyed import KeyedRandom
from consilience.views.pictures import PictureViewConfig, picture_view

VIEW, LABELLED = range(2)  # purposes of keyed draws


@dataclass(frozen=True)
class ICNetConfig:
    """Hyper-parameters; the defaults are ours, for small pictures. ``icnet-paper`` holds the published ones."""

    encoder: str = "small"
    """Network: small, resnet18 to resnet152, vgg19. That of the run it starts from."""
    encoder_weights: str | None = None
    """File with its first weights, instead of a run."""
    frozen: bool = True
    """Leave the encoder as it is (CLIC), or train it too (ICNet)."""
    image_size: int = 64
    """Side of the pictures in pixels (papers: 512). Another size than the run's changes what its features see."""
    fit: Fit = "cut"
    """How pictures of any shape get there."""
    width: int = 64
    """Channels of the head (papers: 512)."""
    side: int = 8
    """Side of the map, places (papers: 64, an eighth of the picture's)."""
    slam: int = 8
    """Side of what SLAM reads (papers: 32)."""
    hidden: int = 64
    """Hidden layer of SLAM (papers: 512)."""
    lowest: float = 0.0
    """Score that the network's 0 means."""
    highest: float = 1.0
    """Score that its 1 means (SAVOIAS: 100)."""
    map_weight: float = 0.1
    """Weight of the error of the map's mean; the score's has the rest (papers: 0.1)."""
    label_fraction: float = 1.0
    """Share of the training pictures whose scores are told (P2 studies small ones); drawn by sample and seed."""
    views: PictureViewConfig = field(
        default_factory=lambda: PictureViewConfig(
            crop_low=1.0, ratio=1.0, colour_probability=0.0, grey=0.0, blur=0.0, flip=0.5
        )
    )
    """Mirror images only, as published: crops would change the score."""
    epochs: int = 30
    """Epochs over the scored pictures (papers: 30)."""
    batch_size: int = 64
    """Pictures a step over all processes (papers: 64)."""
    optimiser: Optimiser = field(default_factory=lambda: Optimiser("adam", 2e-3, schedule="cosine"))
    """Of the head, and of the encoder unless it is frozen (papers: SGD 0.9, lr 0.05, weight decay 1e-3, one epoch of
    warm-up, a fifth after epochs 10 and 20)."""

    def __post_init__(self) -> None:
        if self.highest <= self.lowest:
            raise InputError(f"--method.highest {self.highest}: expected more than lowest ({self.lowest})")
        need_share(self, "map_weight", "label_fraction")
        for name in ("width", "side", "slam", "hidden"):
            if getattr(self, name) < 1:
                raise InputError(f"--method.{name} {getattr(self, name)}: expected 1 or more")


@register(
    "icnet",
    title="a score and a map of complexity from scored pictures, on the encoder of a run (supervised)",
    paper="Feng et al., IC9600: A Benchmark Dataset for Automatic Image Complexity Assessment, TPAMI 2023",
    kinds=("rgb", "grey"),
)
class ICNet(Method):
    """See the module's docstring."""

    Config = ICNetConfig
    complete = True
    task = Task.SCORING
    targets: ClassVar[Mapping[str, Target]] = {"score": Target.NUMBER}
    config: ICNetConfig
    loaded: Tensor

    def __init__(self, config: ICNetConfig, modalities: Modalities, samples: int) -> None:
        super().__init__(config, modalities, samples)
        c = config
        self.picture, self.kind = single(modalities)
        self.encoder = map_encoder(c.encoder, self.kind, c.encoder_weights)
        self.head = ICNetHead(self.encoder.width, c.width, c.side, c.slam, c.hidden)
        self.register_buffer("loaded", torch.tensor(c.encoder_weights is not None))

    @property
    def decode(self) -> DecodeConfig:
        return DecodeConfig(image_size=self.config.image_size, image_fit=self.config.fit)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("train", self.config.epochs, self.config.optimiser, self.config.batch_size),)

    def trained(self, phase: str) -> list[nn.Module]:
        return [self.head] if self.config.frozen else [self.encoder, self.head]

    def train(self, mode: bool = True) -> ICNet:
        """As usual, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.frozen:
            self.encoder.eval()
        return self

    def start_from(self, weights: Path, method: str) -> None:
        """The picture encoder of a run of another method."""
        load_part(self.encoder, weights, "encoder")
        self.loaded.fill_(True)

    def prepare(self, progress: Progress, encode_all: EncodeAll) -> None:
        """Refuses to train a head on a frozen encoder that nobody trained."""
        if self.config.frozen and not bool(self.loaded):
            raise InputError(
                "the encoder is frozen and was never trained; name a run with --train.start RUN, or train it too: "
                "--method.frozen false"
            )

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        c, pictures = self.config, plain(batch.values[self.picture], self.kind)
        draws = KeyedRandom.of(batch.index, progress.seed, progress.phase, progress.epoch, VIEW)
        score, place = self._read(picture_view(pictures, draws, c.views))
        true, known = self._targets(batch, progress)
        means = gather_rows(place.float().mean((1, 2, 3)))
        true, known, score = gather_rows(true), gather_rows(known), gather_rows(score.float())
        count = known.sum().clamp(min=1)
        errors = [torch.where(known, (value - true) ** 2, 0.0).sum() / count for value in (score, means)]
        return {"score": (1 - c.map_weight) * errors[0], "map": c.map_weight * errors[1]}

    def _targets(self, batch: Batch, progress: Progress) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:
        """Scores on the network's scale, and which are there and told."""
        c, given = self.config, batch.targets["score"]
        known = torch.isfinite(given)
        true = torch.where(known, (given - c.lowest) / (c.highest - c.lowest), 0.0)
        if bool(((true < 0) | (true > 1)).any()):
            worst = given[(true < 0) | (true > 1)][0]
            raise InputError(
                f"a score of {float(worst):g} outside of {c.lowest:g} to {c.highest:g}; set --method.lowest and "
                "--method.highest"
            )
        told = KeyedRandom.of(batch.index, progress.seed, LABELLED).uniform(0, 0, 1)[:, 0] < c.label_fraction
        return true, known & told

    def _read(self, pictures: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b 1 s s"]]:
        if self.config.frozen:
            with torch.no_grad():
                found = self.encoder.maps(pictures)[-1]
        else:
            found = self.encoder.maps(pictures)[-1]
        scores, maps = self.head(found)
        return scores, maps

    def judge(self, batch: Batch) -> tuple[Float[Tensor, " b"], Float[Tensor, "b 1 s s"]]:
        """Scores and maps on the scale of the given scores."""
        c = self.config
        score, place = self._read(plain(batch.values[self.picture], self.kind))
        scale = c.highest - c.lowest
        return c.lowest + scale * score.float(), c.lowest + scale * place.float()

    def encode(self, batch: Batch, modality: str) -> Float[Tensor, "b d"]:
        """The encoder's pooled features, under the head."""
        found: Tensor = self.encoder(plain(batch.values[modality], self.kind))
        return found
