"""What vectors say about labels: out-of-sample class probabilities and a model of how labels went wrong."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

FOLDS = 5


def out_of_sample(
    x: Float[np.ndarray, "n d"],
    codes: Int64[np.ndarray, " n"],
    classes: int,
    seed: int,
    learn: Bool[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, "n k"]:
    """Logits of a logistic regression that never saw the row: five seeded folds; classes absent from a fold get -30.

    ``learn``: rows that may be learnt from (all by default); every row is predicted.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    fold = np.empty(len(x), dtype=np.int64)
    fold[np.random.default_rng(seed).permutation(len(x))] = np.arange(len(x)) % FOLDS
    usable = np.ones(len(x), dtype=bool) if learn is None else learn
    centred = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    logits = np.full((len(x), classes), -30.0)
    for number in range(FOLDS):
        mine, rest = fold == number, (fold != number) & usable
        there = np.unique(codes[rest])
        if len(there) < 2:
            logits[mine[:, None] & (np.arange(classes) == (there[0] if len(there) else 0))] = 0.0
            continue
        with warnings.catch_warnings(), threadpool_limits(limits=1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=0.1, max_iter=200).fit(centred[rest], codes[rest])
            found = model.decision_function(centred[mine])
        if found.ndim == 1:  # two classes: one number
            found = np.stack([np.zeros_like(found), found], 1)
        logits[np.ix_(mine, there)] = found - found.max(1, keepdims=True)
    return logits


def softmax(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Rows as probabilities."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))


def label_posterior(
    logits: Float[np.ndarray, "n k"], codes: Int64[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], float]:
    """Probability that each given label is right, and the share of wrong ones.

    Labels are taken to go wrong at one rate r, to any other class alike: P(given y | x) = sum over k of T_ky p_k(x)
    with T = 1 - r on the diagonal and r / (K - 1) beside it. r and the temperature of the logits are those of highest
    likelihood of the given labels; the posterior follows by Bayes.
    """
    classes = logits.shape[1]
    rows = np.arange(len(codes))

    def parts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rate, temperature = 1 / (1 + np.exp(-values[0])), np.exp(values[1])
        own = softmax(logits / temperature)[rows, codes]
        return (1 - rate) * own, rate / (classes - 1) * (1 - own)

    def loss(values: np.ndarray) -> float:
        right, wrong = parts(values)
        return -float(np.log(right + wrong + 1e-12).mean())

    best = min(
        (minimize(loss, start, method="Nelder-Mead") for start in ((-3.0, 0.0), (-1.0, -0.7), (0.0, 0.0))),
        key=lambda result: float(result.fun),
    )
    right, wrong = parts(best.x)
    posterior = right / (right + wrong + 1e-12)
    return posterior, float(1 / (1 + np.exp(-best.x[0])))
