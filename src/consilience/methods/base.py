"""What every method is: a module with declared phases and few verbs.

The training loop owns steps, optimisers, processes, files and logs; a method turns batches into loss terms and
vectors. It never learns how many processes run: it gathers rows (:func:`consilience.distributed.gather_rows`)
and otherwise works on tensors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from consilience.data.decode import DecodeConfig
from consilience.data.schema import Batch, Modalities, Target
from consilience.errors import InputError


class Task(StrEnum):
    """What a method is for, and so how a run of it is judged."""

    RETRIEVAL = "retrieval"
    """Vectors of several modalities that are compared."""
    SCORING = "scoring"
    """A number for a picture."""
    CLASSES = "classes"
    """A class for a picture, from few labels."""
    COUNTING = "counting"
    """How many things a picture shows, and where."""


@dataclass(frozen=True)
class Optimiser:
    """How a phase is optimised."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    momentum: float = 0.9
    """Of SGD; unused by the others."""
    schedule: Literal["one-cycle", "cosine", "constant", "step"] = "one-cycle"
    """One-cycle: 5% linear warm-up, then cosine to 0, by step. Cosine: to 0 over the phase, by epoch. Step: a tenth
    after every ``drop_every`` epochs of the phase."""
    drop_every: int = 30
    """Of the step schedule."""
    beta2: float = 0.999
    """Memory of the second moment in Adam and AdamW."""
    warmup_epochs: int = 0
    """Of the cosine schedule: epochs that rise to ``lr`` linearly, by step, before it falls."""

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over ``parameters``."""
        if self.name == "sgd":
            return torch.optim.SGD(parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        cls = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return cls(parameters, self.lr, betas=(0.9, self.beta2), weight_decay=self.weight_decay)

    def factor(self, step: int, steps: int, epochs: int) -> float:
        """The multiple of ``lr`` at ``step`` of ``steps`` of a phase of ``epochs`` (a pure function: no state)."""
        if self.schedule == "constant":
            return 1.0
        epoch = step * epochs // max(1, steps)
        if self.schedule == "step":
            return float(0.1 ** (epoch // max(1, self.drop_every)))
        if self.schedule == "cosine":
            early = min(self.warmup_epochs, epochs)
            if epoch < early:
                return (step + 1) * epochs / (early * max(1, steps))
            return 0.5 * (1 + float(np.cos(np.pi * (epoch - early) / max(1, epochs - early))))
        rise = max(1, steps // 20)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + float(np.cos(np.pi * (step - rise) / max(1, steps - rise))))


@dataclass(frozen=True)
class Phase:
    """One stretch of training with its own optimiser; phases run in order and can be resumed alone."""

    name: str
    epochs: int
    optimiser: Optimiser
    batch_size: int
    turns: int = 1
    """Steps taken on every batch, one after the other (:attr:`Progress.turn`)."""


@dataclass(frozen=True)
class Progress:
    """Where a step stands: everything a schedule or a keyed random draw may depend on."""

    phase: int
    """Position of the phase in :meth:`Method.phases`."""
    name: str
    """Its name."""
    epoch: int
    """Epoch within the phase, from 0."""
    fraction: float
    """Share of the phase's steps already taken, in [0, 1)."""
    seed: int
    """The run's seed."""
    turn: int = 0
    """Which of the phase's steps on the same batch this is."""


@dataclass(frozen=True)
class Encoded:
    """The training set as the method sees it now, in evaluation mode and without augmentation."""

    vectors: Mapping[str, Float[Tensor, "n d"]]
    """Modality name to vectors; row i is training sample i, zeros where the modality is absent."""
    present: Mapping[str, Bool[Tensor, " n"]]


Measure = Callable[[Batch], Mapping[str, Tensor]]
"""From a batch to one row of values a sample; called in evaluation mode, without gradient."""


@runtime_checkable
class EncodeAll(Protocol):
    """A look at the whole training set between epochs. Each costs a pass over the data; labels are not to be had."""

    def __call__(self) -> Encoded:
        """Vectors of every training sample."""

    def scan(self, measure: Measure, batch_size: int) -> dict[str, Tensor]:
        """What ``measure`` says of every training sample, [N, ...] by name, row i of sample i.

        Batches are the same in every scan of a run, however many processes share them, and hold random samples
        (at least two), so that a measure may compare the samples of a batch with each other.
        """


Beliefs = dict[str, np.ndarray]
"""Column name to one value a training sample: what the method believes (pseudo-labels, confidences)."""


class Method(nn.Module, ABC):
    """A published system. Subclasses are built as ``cls(config, modalities, samples)``."""

    Config: ClassVar[type]
    complete: ClassVar[bool] = False
    """Whether it trains on rows that have all modalities only."""
    task: ClassVar[Task] = Task.RETRIEVAL
    binary: ClassVar[bool] = False
    """Whether the signs of its vectors are codes that it has learnt."""
    targets: ClassVar[Mapping[str, Target]] = {}
    """Columns that training batches tell the method (``Batch.targets``); none for an unsupervised method."""
    balance: ClassVar[str | None] = None
    """The one of them whose classes are balanced unless ``--train.balance`` says otherwise."""
    config: Any
    modalities: dict[str, Any]

    def __init__(self, config: Any, modalities: Modalities, samples: int) -> None:
        super().__init__()
        self.config, self.modalities, self.samples = config, dict(modalities), samples

    @property
    @abstractmethod
    def decode(self) -> DecodeConfig:
        """The sizes samples are decoded to."""

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """The phases in order, those of 0 epochs included (they are skipped)."""

    @abstractmethod
    def trained(self, phase: str) -> list[nn.Module]:
        """The modules that the phase trains; everything else is frozen."""

    @abstractmethod
    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Named loss terms, float32 scalars, whose sum is the objective. ``batch`` carries no labels but the method's
        ``targets``. No terms: this turn takes no step, moments of the optimiser included."""

    def after_batch(self, batch: Batch, progress: Progress) -> None:
        """Called once all turns of a batch have been stepped: twins follow, queues are pushed."""
        return

    @abstractmethod
    def encode(self, batch: Batch, modality: str) -> Float[Tensor, "b d"]:
        """Vectors in the common space for one modality, without augmentation; compared by cosine."""

    def represent(self, batch: Batch, modality: str) -> Float[Tensor, "b r"]:
        """What :meth:`score` compares: the vectors of :meth:`encode`, or more for a pairwise scorer."""
        return self.encode(batch, modality)

    def score(self, a: Float[Tensor, "n r"], b: Float[Tensor, "m s"], names: tuple[str, str]) -> Float[Tensor, "n m"]:
        """Scores of every represented sample of modality ``names[0]`` with every one of ``names[1]``; the cosine of
        the vectors unless a method has its own scorer. Higher is nearer."""
        return F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T

    def prepare(self, progress: Progress, encode_all: EncodeAll) -> None:
        """Called at the start of every epoch (epoch 0: of the phase). ``encode_all`` costs a pass over the data."""
        return

    def finish(self, progress: Progress, encode_all: EncodeAll) -> Beliefs:
        """Called at the end of a phase; returns beliefs to be written as columns of the Table."""
        return {}

    def agreement(self, held_out: Encoded) -> float:
        """How well the modalities agree on held-out pairs, without labels; the loop keeps the epoch of the highest.
        ``held_out`` holds what :meth:`represent` gives. NaN, the default: no such measure, the last epoch is kept."""
        return math.nan

    def believe(self, labels: Mapping[str, Tensor]) -> None:
        """Take the given labels, int64 [N] by modality, instead of own pseudo-labels."""
        raise InputError(f"{type(self).__name__} takes no given labels; drop --train.given")

    def start_from(self, weights: Path, method: str) -> None:
        """Take what this method can use of ``weights``, the safetensors file of a run of another ``method``."""
        raise InputError(
            f"--train.start: {weights} is a run of {method}; {type(self).__name__} starts from its own runs"
        )

    def load_released(self, path: Path) -> None:
        """Start from a checkpoint of the authors' own program instead of a run."""
        raise InputError(f"{type(self).__name__} has no released checkpoints to read; give a run folder")
