"""Linear read-outs: what they compute, what they keep, what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from consilience.errors import InputError
from consilience.training.readouts import Readout, fit_logistic, fit_ridge, fitted


def rows(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 5, (count, 4)).astype(np.float32)
    return features, features @ np.array([1.0, -2.0, 0.0, 0.5]) + 7


def test_ridge_is_least_squares_on_standardised_features_with_the_best_left_out_penalty() -> None:
    features, scores = rows(20)
    scores = scores + np.random.default_rng(1).normal(0, 8, 20)
    z = (features - features.mean(0)) / features.std(0)

    def left_out(alpha: float) -> float:
        gaps = []
        for i in range(20):
            kept = np.arange(20) != i
            gaps.append(scores[i] - Ridge(alpha).fit(z[kept], scores[kept]).predict(z[i : i + 1])[0])
        return float(np.mean(np.square(gaps)))

    best = min((10.0**k for k in range(-3, 6)), key=left_out)
    expected = Ridge(best).fit(z, scores).predict(z)
    np.testing.assert_allclose(fit_ridge(features, scores).predict(features), expected, rtol=1e-4)


def test_ridge_finds_an_affine_law() -> None:
    features, scores = rows()
    np.testing.assert_allclose(fit_ridge(features, scores).predict(features), scores, atol=0.05)


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_agrees_with_scikit_learn(classes: int) -> None:
    features, scores = rows()
    names = np.array(["ant", "bee", "cat"])[np.argsort(np.argsort(scores)) * classes // len(scores)]
    z = (features - features.mean(0)) / features.std(0)
    model = LogisticRegression(max_iter=2000).fit(z, names)
    found = fit_logistic(features, names)
    assert found.predict(features).tolist() == model.predict(z).tolist()
    np.testing.assert_allclose(found.probabilities(features), model.predict_proba(z), atol=1e-4)


def test_a_constant_feature_does_no_harm() -> None:
    features, scores = rows()
    features[:, 2] = 4
    assert np.isfinite(fit_ridge(features, scores).predict(features)).all()


def test_saved_and_read_back(tmp_path: Path) -> None:
    features, scores = rows()
    names = np.where(scores > scores.mean(), "high", "low")
    for name, readout in (("linear", fit_ridge(features, scores)), ("kind", fit_logistic(features, names))):
        readout.save(tmp_path, name)
        again = Readout.load(tmp_path, name)
        assert (again.kind, again.classes) == (readout.kind, readout.classes)
        assert again.predict(features).tolist() == readout.predict(features).tolist()
    assert fitted(tmp_path) == ["kind", "linear"]


def test_what_is_refused(tmp_path: Path) -> None:
    features, scores = rows()
    readout = fit_ridge(features, scores)
    readout.save(tmp_path, "linear")
    with pytest.raises(InputError, match=r"no read-out 'other' .fitted: linear.*consilience evaluate"):
        Readout.load(tmp_path, "other")
    with pytest.raises(InputError, match="features of 3 numbers; the read-out was fitted on 4"):
        readout.predict(features[:, :3])
    with pytest.raises(InputError, match="probabilities are a logistic one's"):
        readout.probabilities(features)
    with pytest.raises(InputError, match="two or more classes"):
        fit_logistic(features, np.full(len(features), "one"))
    with pytest.raises(InputError, match="1 labelled rows"):
        fit_ridge(features[:1], scores[:1])
