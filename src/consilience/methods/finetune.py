"""Fine-tuning: a new linear layer on the encoder of a run, both trained on labelled pictures. The supervised end of
few-label studies, and the baseline without pre-training where no run is named.

BIDFC (Zhai et al., arXiv 2408.03627) reports it beside the linear read-out; its schedule is not published, so the
values here are ours. ``--train.start RUN`` names the run; its picture encoder must be the one that is named here, and
every tensor of it has to fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from consilience.data.decode import DecodeConfig
from consilience.data.pictures import Fit
from consilience.data.schema import Batch, Modalities, Target, single
from consilience.distributed import gather_rows
from consilience.encoders.maps import map_encoder
from consilience.encoders.weights import load_part
from consilience.errors import InputError
from consilience.methods.base import Method, Optimiser, Phase, Progress, Task
from consilience.methods.registry import register
from consilience.views.keyed import KeyedRandom
from consilience.views.pictures import PictureViewConfig, picture_view


@dataclass(frozen=True)
class FinetuneConfig:
    """Hyper-parameters."""

    classes: int = 0
    """Number of classes; 0: of the different values of the Table's column ``label``."""
    encoder: str = "small"
    """Network: small, resnet18, resnet34, resnet50, resnet101, resnet152, vgg19. That of the run it starts from."""
    part: str = "encoder"
    """What the encoder is called among the run's weights (``twin.network``: BIDFC's average)."""
    image_size: int = 64
    """Side of the decoded picture in pixels."""
    image_fit: Fit = "centre"
    """How pictures get there; radar chips must not be resized."""
    shrink: int = 2
    """Decoded pixels along a side that are averaged to one of the network's."""
    views: PictureViewConfig = field(
        default_factory=lambda: PictureViewConfig(crop_low=0.9, ratio=1.0, colour_probability=0.0, grey=0.0, blur=0.0)
    )
    """Light augmentation: mirror and small shifts."""
    epochs: int = 100
    """Epochs over the labelled pictures."""
    batch_size: int = 32
    """Pictures a step over all processes."""
    optimiser: Optimiser = field(default_factory=lambda: Optimiser("sgd", 0.01, 1e-4, schedule="cosine"))
    """Of encoder and layer."""

    def __post_init__(self) -> None:
        if self.shrink < 1 or self.image_size % self.shrink:
            raise InputError(f"--method.shrink {self.shrink}: expected a divisor of image_size {self.image_size}")


@register(
    "finetune",
    title="a classifier from labelled pictures, on the encoder of a run (supervised)",
    paper="as in Zhai et al. (BIDFC), arXiv 2408.03627",
    kinds=("rgb", "grey"),
)
class Finetune(Method):
    """See the module's docstring."""

    Config = FinetuneConfig
    complete = True
    task = Task.CLASSES
    targets: ClassVar[Mapping[str, Target]] = {"label": Target.CLASS}
    config: FinetuneConfig

    def __init__(self, config: FinetuneConfig, modalities: Modalities, samples: int) -> None:
        super().__init__(config, modalities, samples)
        if config.classes < 2:
            raise InputError(f"--method.classes {config.classes}: a classifier needs two or more")
        self.name, kind = single(modalities)
        self.encoder = map_encoder(config.encoder, kind)
        self.layer = nn.Linear(self.encoder.width, config.classes)

    @property
    def decode(self) -> DecodeConfig:
        return DecodeConfig(image_size=self.config.image_size, image_fit=self.config.image_fit)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("train", self.config.epochs, self.config.optimiser, self.config.batch_size),)

    def trained(self, phase: str) -> list[nn.Module]:
        return [self.encoder, self.layer]

    def start_from(self, weights: Path, method: str) -> None:
        load_part(self.encoder, weights, self.config.part)

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        random = KeyedRandom.of(batch.index, progress.seed, progress.phase, progress.epoch)
        logits = self.layer(self.encoder(picture_view(self._pictures(batch), random, self.config.views)))
        known = gather_rows(batch.targets["label"])
        if int(known.max()) >= self.config.classes:
            raise InputError(f"--method.classes {self.config.classes}: the data has more; give their number")
        each = F.cross_entropy(gather_rows(logits).float(), known, ignore_index=-1, reduction="sum")
        return {"cross_entropy": each / (known >= 0).sum().clamp(min=1)}

    def _pictures(self, batch: Batch) -> Float[Tensor, "b c h w"]:
        x = batch.values[self.name].float() / 255
        return F.avg_pool2d(x, self.config.shrink) if self.config.shrink > 1 else x

    def classify(self, batch: Batch) -> Float[Tensor, "b k"]:
        """Probabilities of the classes, in the order of the sorted names of the column ``label``."""
        return torch.softmax(self.layer(self.encode(batch, self.name)).float(), 1)

    def encode(self, batch: Batch, modality: str) -> Float[Tensor, "b d"]:
        """Pooled features of the picture as it is."""
        found: Tensor = self.encoder(self._pictures(batch))
        return found
