"""Who may lend a caption: against a loop written from the definition."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from consilience.noise.lending import nearest_trusted


@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 500), st.floats(-1, 0.9))
def test_equals_the_loop(n, count, seed, cut):
    random = torch.Generator().manual_seed(seed)
    vectors, trusted = torch.randn(n, 3, generator=random), torch.rand(n, generator=random) > 0.4
    index, similar = nearest_trusted(vectors, trusted, count, cut, block=5)
    for i in range(n):
        found = [
            (float(cosine_similarity(vectors[i], vectors[j], dim=0)), j) for j in range(n) if trusted[j] and j != i
        ]
        expected = [(value if value >= cut else 0.0) for value, _ in sorted(found, reverse=True)[:count]]
        expected += [0.0] * (count - len(expected))
        torch.testing.assert_close(similar[i], torch.tensor(expected), atol=1e-5, rtol=1e-4)
        kept = [int(j) for j, value in zip(index[i], similar[i]) if value != 0]
        assert i not in kept
        assert all(bool(trusted[j]) for j in kept)


def test_nobody_trusted_lends_nothing():
    index, similar = nearest_trusted(torch.randn(4, 2), torch.zeros(4, dtype=torch.bool), 3, 0.5)
    assert index.shape == (4, 3)
    assert not similar.any()
