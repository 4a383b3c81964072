"""For people with arrays: a scikit-learn style estimator over the same loop, Table and run folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator

from consilience.data.decode import decode
from consilience.data.reading import npy_bytes, png_bytes
from consilience.data.schema import Batch, Kind
from consilience.data.table import Row, Table
from consilience.errors import InputError, unknown
from consilience.training.api import train
from consilience.training.config import TrainConfig

Arrays = Mapping[str, np.ndarray]
"""Modality name to samples: pictures uint8 [N, H, W] (grey) or [N, H, W, 3] (RGB), clouds float [N, P, 3]. Row i of
every modality is the same thing."""


class CommonSpace(BaseEstimator):  # type: ignore[misc]
    """``fit`` learns a common space from paired arrays, ``transform`` gives unit vectors of any one modality.

    ``method``: a registered method. ``config``: its configuration dataclass, ``train``: options of the loop (their
    defaults when None). ``out``: the run folder; a temporary one, gone with the estimator, when None.
    """

    def __init__(
        self, method: str = "romo", config: Any = None, train: TrainConfig | None = None, out: str | None = None
    ) -> None:
        self.method, self.config, self.train, self.out = method, config, train, out

    def fit(self, X: Arrays, y: None = None) -> Self:
        """Train on the arrays; ``y`` is refused, because nothing here learns from labels.

        Raises InputError for modalities of different lengths and arrays that are neither pictures nor clouds.
        """
        if y is not None:
            raise InputError("fit takes no labels: the methods here are unsupervised; drop y")
        lengths = {name: len(values) for name, values in X.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"modalities have different numbers of samples: {lengths}; row i must be one thing")
        kinds = {name: kind_of(name, values) for name, values in X.items()}

        def rows() -> Iterator[Row]:
            for i in range(next(iter(lengths.values()))):
                values = {name: _bytes(values[i], kinds[name]) for name, values in X.items()}
                yield Row(f"{i:08d}", "train", values, dict.fromkeys(X, f"row {i}"))

        self._temporary = tempfile.TemporaryDirectory(prefix="consilience-") if self.out is None else None
        place = Path(self._temporary.name if self._temporary else self.out or "")
        table = Table.create(place / "table", rows(), kinds, "arrays")
        self.run_ = train(self.method, table, place / "run", config=self.config, train=self.train, quiet=True)
        return self

    def transform(self, X: Arrays) -> dict[str, np.ndarray]:
        """Unit vectors float32 [N, D] of each modality given; compare them by inner product."""
        if not hasattr(self, "run_"):
            raise InputError("transform before fit: call fit with paired arrays first")
        method, vectors = self.run_.method, {}
        device = next(method.parameters()).device
        for name, values in X.items():
            if name not in method.modalities:
                raise unknown("modality of the run", name, method.modalities)
            kind = method.modalities[name]
            if kind_of(name, values) is not kind:
                raise InputError(f"{name} was fitted as {kind}, now it is {kind_of(name, values)}; give the same kind")
            parts = []
            for start in range(0, len(values), 500):
                chunk = [decode(_bytes(v, kind), kind, name, method.decode) for v in values[start : start + 500]]
                seen = torch.ones(len(chunk), dtype=torch.bool)
                batch = Batch(torch.arange(len(chunk)), {name: torch.from_numpy(np.stack(chunk))}, {name: seen})
                with torch.no_grad():
                    parts.append(F.normalize(method.encode(batch.to(device), name).float(), dim=1).cpu().numpy())
            vectors[name] = np.concatenate(parts)
        return vectors


def kind_of(name: str, values: np.ndarray) -> Kind:
    """What an array holds, by dtype and shape; InputError naming the modality when it is none of them."""
    if values.dtype == np.uint8 and values.ndim == 3:
        return Kind.GREY
    if values.dtype == np.uint8 and values.ndim == 4 and values.shape[3] == 3:
        return Kind.RGB
    if values.dtype.kind == "f" and values.ndim == 3 and values.shape[2] == 3:
        return Kind.POINTS
    raise InputError(
        f"{name} is {values.dtype} {list(values.shape)}; expected pictures uint8 [N, H, W] or [N, H, W, 3], or clouds "
        "float [N, P, 3]"
    )


def _bytes(value: np.ndarray, kind: Kind) -> bytes:
    return png_bytes(value) if kind.is_image else npy_bytes(value.astype(np.float32))
