"""Which pairs are probably right: two-component mixtures on one number a pair, as in co-dividing.

A network that has not yet memorised the noise has small losses on right pairs and large ones on wrong pairs; the
posterior of the low component is the belief that a pair is right (DivideMix; NCR section 3.2; PC2).
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

Mixture = Literal["gmm", "bmm"]


def low_posterior(values: Float[Tensor, " n"], kind: Mixture = "gmm", seed: int = 0) -> Float[Tensor, " n"]:
    """Posterior of the low component of a two-component mixture on ``values``, scaled to [0, 1] first; float32.

    gmm: Gaussians, at most 10 rounds of EM, tolerance 1e-2, variance floor 5e-4 (the setting of NCR and PC2; seeded
    here). bmm: betas, 10 rounds of EM with weighted moments (Arazo et al. 2019, "Unsupervised label noise modeling").
    Equal values say nothing: all posteriors are 1. Values that are not finite count as the largest.
    """
    x = values.detach().double().cpu().numpy()
    finite = np.isfinite(x)
    if not finite.any():
        return torch.ones_like(values, dtype=torch.float32)
    x = np.where(finite, x, x[finite].max())
    low, high = float(x.min()), float(x.max())
    if high - low < 1e-12:
        return torch.ones_like(values, dtype=torch.float32)
    x = (x - low) / (high - low)
    posterior = _gaussian(x, seed) if kind == "gmm" else _beta(x)
    return torch.from_numpy(posterior.astype(np.float32)).to(values.device)


def _gaussian(x: np.ndarray, seed: int) -> np.ndarray:
    model = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
    with threadpool_limits(limits=1), warnings.catch_warnings():  # one thread, as k-means: equal bits after a resume
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten rounds are what the papers grant it
        posterior = model.fit(x[:, None]).predict_proba(x[:, None])
    found: np.ndarray = posterior[:, int(model.means_.argmin())]
    return found


def _beta(x: np.ndarray, rounds: int = 10) -> np.ndarray:
    """EM with weighted moments from (1, 2) and (2, 1); beyond its mode the low component never gains again, so that
    the posterior cannot rise with the loss."""
    x = np.clip(x, 1e-4, 1 - 1e-4)
    a, b, weight = np.array([1.0, 2.0]), np.array([2.0, 1.0]), np.array([0.5, 0.5])
    logs = np.stack([np.log(x), np.log1p(-x)])
    for _ in range(rounds):
        joint = _beta_joint(logs, a, b, weight)
        share = joint / joint.sum(0)
        total = share.sum(1) + 1e-12
        mean = (share * x).sum(1) / total
        variance = (share * (x - mean[:, None]) ** 2).sum(1) / total + 1e-8
        common = np.clip(mean * (1 - mean) / variance - 1, 1e-3, 1e4)
        a, b = mean * common, (1 - mean) * common
        weight = total / total.sum()
    low = int((a / (a + b)).argmin())
    joint = _beta_joint(logs, a, b, weight)
    posterior = joint[low] / joint.sum(0)
    order = np.argsort(x, kind="stable")
    posterior[order] = np.minimum.accumulate(posterior[order])
    found: np.ndarray = posterior
    return found


def _beta_joint(logs: np.ndarray, a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    from scipy.special import betaln

    log = (a - 1)[:, None] * logs[0] + (b - 1)[:, None] * logs[1] - betaln(a, b)[:, None]
    joint: np.ndarray = weight[:, None] * np.exp(log - log.max(0)) + 1e-300
    return joint


def split(posterior: Float[Tensor, " n"], threshold: float = 0.5) -> Bool[Tensor, " n"]:
    """Which pairs count as right: posterior above ``threshold``. When all do, the lowest hundredth (at least one) is
    called wrong all the same, so that the second half of training has something to work on (NCR, PC2); among equals
    the first."""
    right = posterior > threshold
    if bool(right.all()):
        right[posterior.argsort(stable=True)[: posterior.shape[0] // 100 + 1]] = False
    return right
