"""Classes of pictures: by a read-out on frozen features, or by a fine-tuned classifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from consilience.data.pictures import Placement
from consilience.data.schema import Batch, single
from consilience.data.targets import class_names
from consilience.errors import InputError
from consilience.evaluation.few_labels import READOUT
from consilience.methods.finetune import Finetune
from consilience.prediction.base import Prediction, Predictor
from consilience.training.api import Run
from consilience.training.readouts import Readout

SHOWN = 3
"""Classes named in an answer, the likeliest first."""


def predictor(run: Run, readout: str | None) -> Predictor:
    """By the read-out that is named (default: ``label``, which ``evaluate`` leaves), or a fine-tuned run's own layer.

    InputError for read-outs that were not fitted, or give scores, and for a read-out of a fine-tuned run.
    """
    if isinstance(run.method, Finetune):
        if readout is not None:
            raise InputError(f"{run.path} is a classifier; drop --readout {readout}")
        return Classifier(run, run.method)
    fitted = Readout.load(run.path, readout or READOUT)
    if fitted.kind != "logistic":
        raise InputError(f"read-out {readout} of {run.path} gives scores, not classes; name another one")
    return ReadClass(run, fitted)


class ReadClass:
    """The likeliest class by logistic regression on the run's features."""

    column = "predicted_label"

    def __init__(self, run: Run, readout: Readout) -> None:
        self._method, self._readout = run.method, readout
        self._name, _ = single(run.method.modalities)

    def __call__(self, batch: Batch, originals: Sequence[np.ndarray], places: Sequence[Placement]) -> list[Prediction]:
        features = self._method.encode(batch, self._name).float().cpu().numpy()
        return answers(self._readout.probabilities(features), self._readout.classes)


class Classifier:
    """The likeliest class by a fine-tuned network."""

    column = "predicted_label"

    def __init__(self, run: Run, method: Finetune) -> None:
        self._method, self._names = method, tuple(class_names(run.table, "label"))
        if len(self._names) > method.config.classes:
            raise InputError(
                f"{run.table.path} has {len(self._names)} classes, {run.path} knows {method.config.classes}"
            )

    def __call__(self, batch: Batch, originals: Sequence[np.ndarray], places: Sequence[Placement]) -> list[Prediction]:
        return answers(self._method.classify(batch).cpu().numpy()[:, : len(self._names)], self._names)


def answers(probabilities: np.ndarray, names: Sequence[str]) -> list[Prediction]:
    """The likeliest class of every row [n, k] (the first of equal ones), with its probability and the next ones'."""
    out = []
    for row in probabilities:
        best = np.argsort(-row, kind="stable")[:SHOWN]
        likely = {names[k]: round(float(row[k]), 4) for k in best}
        out.append(Prediction(names[best[0]], {"probability": round(float(row[best[0]]), 4), "likely": likely}))
    return out
