"""What others would say, on the same vectors: written from the published definitions, for comparison only.

Self-confidence and the confident joint: C. Northcutt, L. Jiang, I. Chuang, "Confident Learning: Estimating Uncertainty
in Dataset Labels", JAIR 2021. Scores of a pair by cosine: J. Hessel et al., "CLIPScore", EMNLP 2021.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64

from consilience.audit.checks.base import Views


def pair_cosine(views: Views, a: str, b: str, n: int) -> Float[np.ndarray, " n"]:
    """Cosine of every pair, by the networks that judge it."""
    found = np.full(n, np.nan)
    for part in views.judged:
        found[part.positions] = part.graph.across(a, b).own
    return found


def pair_self_confidence(views: Views, a: str, b: str, n: int) -> Float[np.ndarray, " n"]:
    """Self-confidence with every partner as a class: its softmax probability at the graph's temperature, mean of both
    directions."""
    found = np.full(n, np.nan)
    for part in views.judged:
        forth, back = part.graph.across(a, b), part.graph.across(b, a)
        logit = forth.own / part.graph.temperature
        found[part.positions] = (np.exp(logit - forth.log_sum) + np.exp(logit - back.log_sum)) / 2
    return found


def self_confidence(probabilities: Float[np.ndarray, "n k"], codes: Int64[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Out-of-sample probability of the given label."""
    return np.asarray(probabilities[np.arange(len(codes)), codes])


def confident_joint(
    probabilities: Float[np.ndarray, "n k"], codes: Int64[np.ndarray, " n"]
) -> Float[np.ndarray, "k k"]:
    """Joint of given and true label [given, true], summing to 1: rows counted where a class reaches the mean
    self-confidence of its own label, the likeliest such class, calibrated to the counts of the given labels."""
    classes = probabilities.shape[1]
    own = self_confidence(probabilities, codes)
    counts = np.bincount(codes, minlength=classes)
    cut = np.bincount(codes, own, minlength=classes) / np.maximum(counts, 1)
    cut[counts == 0] = np.inf
    above = np.where(probabilities >= cut, probabilities, -1.0)
    some = above.max(1) >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (codes[some], above.argmax(1)[some]), 1)
    total = joint.sum(1, keepdims=True)
    joint = np.where(total > 0, joint / np.maximum(total, 1), np.eye(classes)) * counts[:, None]
    return np.asarray(joint / joint.sum())


def label_disagreement(
    vectors: Float[np.ndarray, "n d"], codes: Int64[np.ndarray, " n"], k: int = 10
) -> Float[np.ndarray, " n"]:
    """Share of the k nearest labelled rows (Euclidean) that carry the same label."""
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=min(k, len(codes) - 1)).fit(vectors).kneighbors(return_distance=False)
    return np.asarray((codes[near] == codes[:, None]).mean(1))
