"""Read-outs: a linear model on the frozen features of a run, fitted on few rows and kept beside the run.

Features are standardised by the rows that the read-out is fitted on. Its own strength of regularisation is chosen by
leave-one-out on these rows (ridge) or is scikit-learn's default (logistic); no other row is looked at.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int64
from safetensors import safe_open
from safetensors.numpy import load_file, save

from consilience.data.schema import single
from consilience.errors import InputError
from consilience.files import write_bytes
from consilience.training.api import Run
from consilience.training.passes import encode_rows

FOLDER = "readouts"
_ALPHAS = tuple(10.0**k for k in range(-3, 6))


@dataclass(frozen=True)
class Readout:
    """An affine map of standardised features: to one score (ridge), or to a logit a class (logistic)."""

    kind: Literal["ridge", "logistic"]
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    weight: Float[np.ndarray, "d k"]
    bias: Float[np.ndarray, " k"]
    classes: tuple[str, ...] = ()
    """Names of the columns of a logistic read-out."""

    def logits(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """float64 [n, k]; InputError for features of another width."""
        if features.shape[1] != len(self.mean):
            raise InputError(f"features of {features.shape[1]} numbers; the read-out was fitted on {len(self.mean)}")
        found: np.ndarray = (features.astype(np.float64) - self.mean) / self.scale @ self.weight + self.bias
        return found

    def predict(self, features: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Scores float64 [n], or class names [n] (the first of equally likely ones)."""
        found = self.logits(features)
        return found[:, 0] if self.kind == "ridge" else np.asarray(self.classes)[found.argmax(1)]

    def probabilities(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Of the classes, float64, rows sum to 1; of a logistic read-out only."""
        if self.kind != "logistic":
            raise InputError("a ridge read-out gives scores; probabilities are a logistic one's")
        found = self.logits(features)
        found = np.exp(found - found.max(1, keepdims=True))
        return np.asarray(found / found.sum(1, keepdims=True))

    def save(self, run: Path, name: str) -> Path:
        """Write ``RUN/readouts/NAME.safetensors`` (atomically); returns the file."""
        file = run / FOLDER / f"{name}.safetensors"
        file.parent.mkdir(exist_ok=True)
        tensors = {key: np.ascontiguousarray(getattr(self, key)) for key in ("mean", "scale", "weight", "bias")}
        facts = {"kind": self.kind, "classes": json.dumps(self.classes)}
        write_bytes(file, save(tensors, metadata=facts))
        return file

    @classmethod
    def load(cls, run: Path, name: str) -> Readout:
        """The read-out ``name`` of a run; InputError, with those that there are, when it was not fitted."""
        file = run / FOLDER / f"{name}.safetensors"
        if not file.exists():
            listed = ", ".join(fitted(run)) or "none"
            raise InputError(
                f"{run} has no read-out {name!r} (fitted: {listed}); fit it with: consilience evaluate {run}"
            )
        with safe_open(file, "numpy") as opened:
            facts = opened.metadata()
        return cls(**load_file(file), kind=facts["kind"], classes=tuple(json.loads(facts["classes"])))


def fitted(run: Path) -> list[str]:
    """Names of the read-outs of a run, sorted."""
    return sorted(file.stem for file in (run / FOLDER).glob("*.safetensors"))


def features_of(
    run: Run, rows: str | Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, "n d"]]:
    """Rows (offsets, or those that pass an SQL filter) that have the run's picture, and their frozen features."""
    name, _ = single(run.method.modalities)
    chosen = run.table.select(rows) if isinstance(rows, str) else rows
    chosen = chosen[np.isin(chosen, run.table.select(f"{name} is not null"))]
    device = next(run.method.parameters()).device
    return chosen, encode_rows(run.method, run.table, chosen, device).vectors[name].cpu().numpy()


def fit_ridge(features: Float[np.ndarray, "n d"], scores: Float[np.ndarray, " n"]) -> Readout:
    """Ridge regression; the penalty of least leave-one-out error. InputError for fewer than two rows."""
    from sklearn.linear_model import RidgeCV

    mean, scale = _moments(features)
    model = RidgeCV(_ALPHAS).fit((features - mean) / scale, scores)
    bias = np.atleast_1d(np.asarray(model.intercept_, dtype=np.float64))
    return Readout("ridge", mean, scale, np.asarray(model.coef_, dtype=np.float64).reshape(-1, 1), bias)


def fit_logistic(features: Float[np.ndarray, "n d"], names: np.ndarray) -> Readout:
    """Multinomial logistic regression (scikit-learn's penalty, C = 1). InputError for fewer than two classes."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = _moments(features)
    names = np.asarray(names).astype(str)
    if len(np.unique(names)) < 2:
        raise InputError("a classifier needs labels of two or more classes")
    model = LogisticRegression(max_iter=2000).fit((features - mean) / scale, names)
    weight, bias = model.coef_.T, model.intercept_
    if weight.shape[1] == 1:  # of two classes scikit-learn keeps the second's logit only
        weight, bias = np.hstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Readout("logistic", mean, scale, weight, bias, tuple(model.classes_.tolist()))


def _moments(features: Float[np.ndarray, "n d"]) -> tuple[np.ndarray, np.ndarray]:
    if len(features) < 2:
        raise InputError(f"{len(features)} labelled rows; a read-out needs two or more")
    scale = features.std(0, dtype=np.float64)
    return features.mean(0, dtype=np.float64), np.where(scale > 1e-12, scale, 1.0)
