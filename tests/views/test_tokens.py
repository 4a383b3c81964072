"""Views of captions and features against loops written from their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data.schema import Kind
from consilience.errors import InputError
from consilience.views.geometry import ViewConfig, view
from consilience.views.keyed import KeyedRandom
from consilience.views.tokens import regions_view, tokens_view, vector_view


def captions(lengths: list[int], width: int) -> torch.Tensor:
    out = torch.full((len(lengths), width), -1, dtype=torch.int64)
    for row, length in enumerate(lengths):
        out[row, :length] = torch.arange(length) + 10 * row
    return out


def slow_tokens(row: list[int], draws: list[float], share: float) -> list[int]:
    real = [token for token in row if token != -1]
    inner = list(range(1, len(real) - 1))
    best = max(inner, key=lambda i: draws[i], default=-1)
    kept = [token for i, token in enumerate(real) if i not in inner or draws[i] >= share or i == best]
    return kept + [-1] * (len(row) - len(kept))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.floats(0, 0.99), st.integers(0, 1000))
@settings(deadline=None)
def test_tokens_against_a_loop(lengths: list[int], share: float, seed: int) -> None:
    tokens, random = captions(lengths, 9), KeyedRandom.of(torch.arange(len(lengths)), seed)
    draws = random.uniform(40, 0, 1, 9).tolist()
    out = tokens_view(tokens, random, share)
    assert out.dtype == torch.int64
    assert out.tolist() == [slow_tokens(row, draw, share) for row, draw in zip(tokens.tolist(), draws, strict=True)]


@given(st.integers(0, 1000), st.floats(0, 0.99))
@settings(deadline=None)
def test_regions_and_vectors_against_a_loop(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    regions = torch.rand(4, 5, 3, generator=generator) + 0.1
    regions[1, 2:] = 0
    regions[2] = 0
    vectors = torch.rand(4, 6, generator=generator) + 0.1
    vectors[1, 1:] = 0
    vectors[3] = 0
    random = KeyedRandom.of(torch.arange(4), seed)
    out, flat = regions_view(regions, random, share), vector_view(vectors, random, share)
    for row in range(4):
        draws = random.uniform(41, 0, 1, 5)[row].tolist()
        real = [i for i in range(5) if regions[row, i].any()]
        best = max(real, key=lambda i: draws[i], default=None)
        for i in range(5):
            stays = i in real and (draws[i] >= share or i == best)
            assert torch.equal(out[row, i], regions[row, i] if stays else torch.zeros(3))
        draws = random.uniform(42, 0, 1, 6)[row].tolist()
        real = [i for i in range(6) if vectors[row, i]]
        best = max(real, key=lambda i: draws[i], default=None)
        assert flat[row].tolist() == [
            vectors[row, i].item() if i in real and (draws[i] >= share or i == best) else 0 for i in range(6)
        ]


def test_the_share_is_the_share() -> None:
    index = torch.arange(2000)
    config = ViewConfig(mask=0.3)
    tokens = captions([22] * 2000, 24)
    hidden = 22 - (view(tokens, Kind.TEXT, index, (0,), config) >= 0).sum(1).float()
    assert hidden.mean().item() == pytest.approx(0.3 * 20, abs=0.1)
    regions = view(torch.ones(2000, 20, 3), Kind.REGIONS, index, (0,), config)
    assert 1 - regions.mean().item() == pytest.approx(0.3, abs=0.01)
    vectors = view(torch.ones(2000, 20), Kind.VECTOR, index, (0,), config)
    assert 1 - vectors.mean().item() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.REGIONS, Kind.VECTOR])
def test_views_belong_to_the_sample_not_to_the_batch(kind: Kind) -> None:
    shapes = {Kind.REGIONS: (4, 9, 2), Kind.VECTOR: (4, 9)}
    value = captions([9, 4, 7, 9], 9) if kind is Kind.TEXT else torch.rand(shapes[kind])
    index, config = torch.tensor([5, 9, 2, 7]), ViewConfig(mask=0.5)
    together = view(value, kind, index, (1, 2), config)
    for place in range(4):
        alone = view(value[place : place + 1], kind, index[place : place + 1], (1, 2), config)
        assert torch.equal(alone, together[place : place + 1])
    assert not torch.equal(view(value, kind, index, (1, 3), config), together)


def test_absent_captions_stay_padding() -> None:
    absent = torch.full((2, 5), -1, dtype=torch.int64)
    assert torch.equal(view(absent, Kind.TEXT, torch.arange(2), (0,), ViewConfig(mask=0.9)), absent)


def test_a_share_out_of_range_names_the_option() -> None:
    with pytest.raises(InputError, match=r"views.mask=1"):
        ViewConfig(mask=1.0)
