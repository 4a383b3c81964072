"""How well cluster ids agree with classes or with each other (stage-1 metrics of RoMo, IEEE TIP 2024).

All functions take two id vectors [n] (int64 tensors or NumPy integer arrays) and return a float.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from jaxtyping import Int64
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from consilience.errors import InputError

Ids = Int64[Tensor, " n"] | npt.NDArray[np.integer]
"""Cluster or class ids [n]: any whole numbers, gaps allowed."""


def clustering_accuracy(predicted: Ids, truth: Ids) -> float:
    """Share of samples whose cluster is matched to their class by the best one-to-one matching (Hungarian).

    Clusters beyond the number of classes stay unmatched and count as wrong. Raises :class:`InputError` for
    empty, unequal or non-integer input.
    """
    a, b = _pair("predicted", predicted, "truth", truth)
    _, rows = np.unique(a, return_inverse=True)
    _, columns = np.unique(b, return_inverse=True)
    shape = (int(rows.max()) + 1, int(columns.max()) + 1)
    counts = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)
    matched = linear_sum_assignment(counts, maximize=True)
    return float(counts[matched].sum() / len(a))


def nmi(predicted: Ids, truth: Ids) -> float:
    """Normalised mutual information in [0, 1]: mutual information over the mean of the two entropies.

    Raises :class:`InputError` for empty, unequal or non-integer input.
    """
    a, b = _pair("predicted", predicted, "truth", truth)
    return float(normalized_mutual_info_score(b, a))


def ari(predicted: Ids, truth: Ids) -> float:
    """Adjusted Rand index: 1 = same partition, 0 = as expected by chance; may be negative.

    Raises :class:`InputError` for empty, unequal or non-integer input.
    """
    a, b = _pair("predicted", predicted, "truth", truth)
    return float(adjusted_rand_score(b, a))


def view_agreement(a: Ids, b: Ids) -> float:
    """Share of samples with the same id in two views; ids must mean the same cluster in both.

    Raises :class:`InputError` for empty, unequal or non-integer input.
    """
    first, second = _pair("a", a, "b", b)
    return float((first == second).mean())


def used_clusters(predicted: Ids) -> float:
    """Number of distinct ids (1 = collapsed). Raises :class:`InputError` for empty or non-integer input."""
    return float(len(np.unique(_ids("predicted", predicted))))


def _ids(name: str, values: Ids) -> npt.NDArray[np.int64]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or len(array) == 0 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} is {array.dtype} {list(array.shape)}: expected whole numbers [n], one or more")
    return array.astype(np.int64)


def _pair(
    first_name: str, first: Ids, second_name: str, second: Ids
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    a, b = _ids(first_name, first), _ids(second_name, second)
    if len(a) != len(b):
        raise InputError(
            f"{first_name} has {len(a)} samples, {second_name} {len(b)}: expected one id per sample in both"
        )
    return a, b
