"""Balanced rows: shares of classes, visits spread over an epoch, and who may ask for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data.decode import DecodeConfig
from consilience.data.importers import import_table
from consilience.data.loader import Loader
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.training.api import train
from consilience.training.config import TrainConfig
from consilience.training.selection import balanced


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.integers(0, 99))
def test_the_commonest_takes_half_the_others_share_the_rest(classes: list[str], seed: int) -> None:
    trust = np.random.default_rng(seed).uniform(0.1, 1, len(classes))
    for given_trust in (None, trust):
        weights = balanced(classes, given_trust)
        total = float(len(classes)) if given_trust is None else float(trust.sum())
        assert weights.sum() == pytest.approx(total)
        names = np.array(classes)
        shares = {name: weights[names == name].sum() / total for name in set(classes)}
        if len(shares) > 1:
            top = max(set(classes), key=lambda name: (classes.count(name), -ord(name)))
            for name, share in shares.items():
                assert share == pytest.approx(0.5 if name == top else 0.5 / (len(shares) - 1))


def test_rows_without_a_class_are_one_more() -> None:
    weights = balanced(["a", "a", "a", None, None, "b"])
    np.testing.assert_allclose(weights, [1, 1, 1, 0.75, 0.75, 1.5])


@settings(max_examples=15, deadline=None)
@given(weights=st.lists(st.floats(0, 6), min_size=48, max_size=48), seed=st.integers(0, 99))
def test_a_row_comes_as_often_as_its_weight_says(tiny_table: Table, weights: list[float], seed: int) -> None:
    values = np.array(weights) + 0.2
    values *= round(values.sum()) / values.sum()
    loader = Loader(tiny_table, np.arange(48), DecodeConfig(), 4, seed=seed, shuffle=True, weights=values)
    for epoch in range(2):
        order = loader.order(epoch)
        assert len(order) == round(values.sum())
        times = np.bincount(order, minlength=48)
        assert (np.abs(times - values) < 1 + 1e-6).all()


def test_visits_of_a_row_are_spread_over_the_epoch(tiny_table: Table) -> None:
    """A row that makes up a tenth of an epoch comes once in about every ten visits; shuffled it would come twice in a
    row somewhere in most epochs."""
    weights = np.ones(48)
    weights[7] = 5.0
    loader = Loader(tiny_table, np.arange(48), DecodeConfig(), 4, seed=0, shuffle=True, weights=weights)
    orders = [loader.order(epoch) for epoch in range(50)]
    gaps = [np.diff(np.flatnonzero(order == 7)) for order in orders]
    assert all(len(gap) == 4 for gap in gaps)
    assert min(gap.min() for gap in gaps) >= 3
    assert np.mean(np.concatenate(gaps)) == pytest.approx(10.4, abs=0.5)
    assert not np.array_equal(orders[0], orders[1])


def test_only_what_a_method_is_told_balances_it(tiny_table: Table, tmp_path: Path) -> None:
    table = import_table(tiny_table.path, tmp_path / "table")
    with pytest.raises(InputError, match="romo learns from no columns"):
        train("romo", table, tmp_path / "run", train=TrainConfig(balance="label"), quiet=True)
