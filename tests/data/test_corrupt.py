from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.data.corrupt import shuffle_pairs, shuffle_partners_within_class
from consilience.errors import InputError


@given(st.integers(0, 60), st.floats(0, 1), st.integers(0, 2**31))
def test_exactly_the_asked_share_is_mismatched(n: int, ratio: float, seed: int) -> None:
    index = np.random.default_rng(n).permutation(1000)[:n]
    partners, true = shuffle_pairs(index, ratio, seed)
    wanted = round(ratio * n)
    assert (~true).sum() == (wanted if wanted > 1 else 0)
    assert sorted(partners) == sorted(index)
    assert (true == (partners == index)).all()
    again, _ = shuffle_pairs(index, ratio, seed)
    assert (again == partners).all()


@given(st.integers(1, 60), st.integers(1, 5), st.floats(0, 1), st.integers(0, 2**31))
def test_partners_stay_within_their_class(n: int, classes: int, ratio: float, seed: int) -> None:
    rng = np.random.default_rng(n)
    index, labels = rng.permutation(1000)[:n], rng.integers(0, classes, n)
    partners, true = shuffle_partners_within_class(index, labels, seed, ratio)
    label_of = dict(zip(index.tolist(), labels.tolist(), strict=True))
    assert [label_of[partner] for partner in partners.tolist()] == labels.tolist()
    assert sorted(partners) == sorted(index)
    most = sum(round(ratio * int((labels == code).sum())) for code in range(classes))
    assert (~true).sum() <= most


def test_seeds_differ_and_a_full_class_shuffle_leaves_few_pairs() -> None:
    """A random permutation has one fixed point on average, so 10 classes keep about 10 of 1000 pairs."""
    index, labels = np.arange(1000), np.arange(1000) % 10
    kept = [int(shuffle_partners_within_class(index, labels, seed)[1].sum()) for seed in range(20)]
    assert 5 < np.mean(kept) < 15
    assert (shuffle_pairs(index, 0.5, 0)[0] != shuffle_pairs(index, 0.5, 1)[0]).any()


def test_bad_ratios_and_lengths() -> None:
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="ratio"):
            shuffle_pairs(np.arange(4), ratio, 0)
    with pytest.raises(InputError, match="one for each"):
        shuffle_partners_within_class(np.arange(4), np.arange(3), 0)
