"""Options of the loop: the same for every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from consilience.errors import InputError


@dataclass(frozen=True)
class TrainConfig:
    """How to run: seed, precision, checkpoints. What to learn is the method's configuration."""

    seed: int = 0
    """Seed of initial weights, order of the data, views and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU when torch sees one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the networks under autocast; losses, banks and moments stay float32."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 switches clipping off."""
    accumulate: int = 1
    """Batches whose gradients are summed before one optimiser step."""
    validation: float = 0.1
    """Share of the training pairs held out for the label-free selection; unused when the data has a split
    called ``validation`` or ``val``."""
    select: Literal["best", "last"] = "best"
    """Which epoch of the last phase is kept: the one whose modalities agree best on held-out pairs, or the last."""
    checkpoint_every: int = 200
    """Batches between checkpoints inside an epoch; one is written at the end of every epoch in any case."""
    workers: int = 0
    """Processes that read and decode; 0 decodes in a thread of this one."""
    threads: int = 0
    """torch threads; 0 leaves torch's choice. Bitwise resumption needs the same number."""
    log_every: int = 10
    """Batches between lines of log.jsonl."""
    tensorboard: bool = False
    """Also write TensorBoard files (needs the extra: pip install 'consilience[track]')."""
    given: str | None = None
    """Pseudo-labels to learn from instead of the method's own: a column of the Table, or files in RoMo's text format
    as MODALITY=FILE,MODALITY=FILE. Naming the column ``label`` makes the run supervised: a ceiling, not a result."""
    pairs: Literal["true", "class-shuffled"] = "true"
    """class-shuffled pairs every sample with a random one of its class, as the authors' lists do: a label leak, kept
    to measure what it is worth."""
    start: str | None = None
    """Run folder whose networks and memories this run starts from, as from a warm-up (same method, sizes and data),
    or a checkpoint of the authors (.pth.tar; pc2, ncr, contrastive)."""
    modalities: str = ""
    """Modalities to learn from, comma-separated (image,text); all of them when empty."""
    where: str | None = None
    """SQL filter of the training rows, such as "index < 2000"; the other rows are neither trained on nor held out."""
    corrupt: float = 0.0
    """Share of the training pairs that are mismatched on purpose: their first modality is shuffled among them."""
    noise_index: str | None = None
    """File of mismatches in NCR's and PC2's format (.npy: for every training caption the image it is given)."""
    trust: str | None = None
    """Column with the trust in each training row, from 0 to 1 (``audit`` writes pair_trust)."""
    trust_as: Literal["sample", "exclude"] = "sample"
    """sample: a row takes part in that share of the epochs. exclude: rows below the threshold are left out."""
    trust_threshold: float = 0.5
    """Of ``trust_as`` exclude."""
    balance: str = "auto"
    """Column whose classes are balanced: the commonest takes half of every epoch, the others share the other half
    equally. auto: the column that the method asks for, if any; none: rows as they come."""
    review: bool = False
    """Follow the decisions of a review (columns review and review_partner): dropped pairs are left out, re-paired ones
    get their new partner, and both these and kept ones are trusted whatever ``trust`` says."""

    def __post_init__(self) -> None:
        for name, low in (("accumulate", 1), ("checkpoint_every", 1), ("log_every", 1), ("workers", 0)):
            if getattr(self, name) < low:
                raise InputError(f"--train.{name} {getattr(self, name)}: expected {low} or more")
        if not 0 <= self.validation < 1:
            raise InputError(f"--train.validation {self.validation}: expected a share from 0 to below 1")
        for name in ("corrupt", "trust_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--train.{name} {getattr(self, name)}: expected a share from 0 to 1")
        if self.corrupt and self.noise_index:
            raise InputError("--train.corrupt draws mismatches, --train.noise_index reads them; give one of them")
        if self.review and (self.corrupt or self.noise_index or self.pairs != "true"):
            raise InputError(
                "--train.review gives pairs their reviewed partners; --train.corrupt, --train.noise_index and "
                "--train.pairs give them others: leave these out"
            )
        if self.clip_norm < 0:
            raise InputError(f"--train.clip_norm {self.clip_norm}: expected 0 (off) or a positive norm")
