"""What a Table holds and what a batch is: the vocabulary that every other room shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from consilience.errors import InputError


class Kind(StrEnum):
    """What the bytes of a modality are, and the tensor they decode to."""

    RGB = "rgb"
    """Colour image: uint8 [3, S, S], channel order red, green, blue."""
    GREY = "grey"
    """Grey image: uint8 [1, S, S]."""
    POINTS = "points"
    """Point cloud: float32 [P, 3], one point a row, columns x (right), y (up), z."""
    MESH = "mesh"
    """Triangle mesh: float32 [F, 18], one face a row: centre 3, corners relative to the centre 9, unit normal 3,
    row numbers of the three neighbouring faces 3 (edges 12, 23, 31; the face itself where there is none)."""
    TEXT = "text"
    """A caption: int64 [T], token ids from 0 on, then -1 as padding (which token ids mean what, and T, is the
    tokenizer's affair, see :class:`consilience.data.decode.DecodeConfig`)."""
    REGIONS = "regions"
    """Features of the regions of a picture: float32 [R, D], one region a row; rows of zeros are padding."""
    VECTOR = "vector"
    """One feature vector: float32 [D]."""

    @property
    def is_image(self) -> bool:
        return self in (Kind.RGB, Kind.GREY)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the decoded tensor."""
        return torch.uint8 if self.is_image else torch.int64 if self is Kind.TEXT else torch.float32


class Target(StrEnum):
    """What a method may be told about its samples beside their modalities. It names the columns in
    :attr:`~consilience.methods.base.Method.targets`; a method that names none, which is every unsupervised one, gets
    nothing but tensors of its modalities."""

    CLASS = "class"
    """A name: int64 [b], its place in the sorted list of names of the whole Table; -1 without one."""
    NUMBER = "number"
    """A number: float32 [b]; NaN without one."""
    PLACES = "places"
    """Positions in the picture: float32 [b, m, 2], x (right) and y (down) in pixels of the decoded picture; NaN beyond
    a sample's own. A row without a value is refused, an empty list is a picture without any."""


Modalities = Mapping[str, Kind]
"""Modality name to kind, in the order of the Table's columns."""


def single(modalities: Modalities) -> tuple[str, Kind]:
    """Name and kind of the one modality, a picture; :class:`InputError` for anything else."""
    if len(modalities) != 1 or not next(iter(modalities.values())).is_image:
        listed = ", ".join(f"{name} ({kind})" for name, kind in modalities.items())
        raise InputError(f"one picture modality is needed, there are {listed}; choose with --train.modalities")
    return next(iter(modalities.items()))


@dataclass(frozen=True)
class Batch:
    """Decoded rows. Carries no labels but what a method declares as its targets, which an unsupervised one does not:
    it cannot see what is not there."""

    index: Int64[Tensor, " b"]
    """Stable row key: position in the training set, key of every memory and belief."""
    values: Mapping[str, Tensor]
    """Modality name to tensor [b, ...] as :class:`Kind` says; rows whose modality is absent hold zeros
    (texts: -1)."""
    present: Mapping[str, Bool[Tensor, " b"]]
    """Modality name to presence mask."""
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    """Column to its values, as :class:`Target` says."""

    def __len__(self) -> int:
        return int(self.index.shape[0])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        return Batch(
            self.index.to(device),
            {name: value.to(device, non_blocking=True) for name, value in self.values.items()},
            {name: mask.to(device) for name, mask in self.present.items()},
            {name: value.to(device) for name, value in self.targets.items()},
        )
