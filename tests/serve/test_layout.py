"""The 2-D map: deterministic, near where vectors are near, the same plane for all modalities, kept as columns."""

from __future__ import annotations

import numpy as np
import pytest

from consilience.data.table import Table
from consilience.embedding.layout import layout, map_columns, missing_maps
from consilience.errors import InputError
from tests.serve.conftest import Served


def clustered(n: int, clusters: int = 4, d: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around far centres, and their clusters."""
    rng = np.random.default_rng(seed)
    which = np.arange(n) % clusters
    vectors = rng.normal(size=(clusters, d))[which] * 4 + rng.normal(size=(n, d)) * 0.3
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), which


def purity(places: np.ndarray, which: np.ndarray) -> float:
    """Share of points whose nearest other point is of their cluster."""
    away = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(away, np.inf)
    return float((which[away.argmin(1)] == which).mean())


@pytest.mark.parametrize("options", [{}, {"sample": 60}, {"largest": 50}], ids=["all", "sample", "principal"])
def test_near_vectors_have_near_places(options: dict[str, int]) -> None:
    vectors, which = clustered(240)
    places = layout(vectors, **options)
    assert (places.shape, places.dtype) == ((240, 2), np.float32)
    assert np.abs(places).max() == pytest.approx(1)
    assert purity(places, which) > 0.95
    np.testing.assert_array_equal(places, layout(vectors, **options))


def test_a_vector_outside_the_sample_goes_to_its_twin() -> None:
    vectors, _ = clustered(200)
    doubled = np.concatenate([vectors, vectors])
    places = layout(doubled, sample=200)
    twins = np.linalg.norm(places[:200] - places[200:], axis=1)
    assert np.median(twins) < 0.1


@pytest.mark.parametrize("n", [0, 1, 2, 4, 5, 7])
def test_few_vectors(n: int) -> None:
    places = layout(clustered(n)[0] if n else np.zeros((0, 16), np.float32))
    assert places.shape == (n, 2)
    assert np.isfinite(places).all()


def test_equal_vectors_and_narrow_ones() -> None:
    assert np.isfinite(layout(np.ones((30, 8), np.float32) / np.sqrt(8))).all()
    assert layout(np.ones((3, 1), np.float32)).shape == (3, 2)
    with pytest.raises(InputError, match="NaN"):
        layout(np.full((9, 4), np.nan, np.float32))


def test_columns(copied: Served) -> None:
    assert missing_maps(Table.open(copied.path)) == ["image", "points"]
    assert map_columns(Table.open(copied.path)) == {"image": "map_image", "points": "map_points"}
    table = Table.open(copied.path)
    assert missing_maps(table) == []
    both = np.concatenate([table.column("map_image"), table.column("map_points")])
    assert both.shape == (120, 2)
    assert np.ptp(both, axis=0).max() == pytest.approx(2)  # one plane: it is their union that fills the box
    assert (table.provenance("map_image") or {})["fingerprint"] == copied.searcher().fingerprint
    with pytest.raises(InputError, match="did you mean 'points'"):
        map_columns(table, modalities=["pionts"])


def test_the_map_of_other_vectors_is_made_anew(copied: Served) -> None:
    table = Table.open(copied.path)
    map_columns(table)
    table = Table.open(copied.path)
    index = table.indices()
    table.write_columns(index, {"vector_points": clustered(60)[0]}, {"run": "x", "fingerprint": "other", "method": "x"})
    assert missing_maps(Table.open(copied.path)) == ["points"]


def test_a_table_without_vectors_has_no_map(tiny_table: Table) -> None:
    with pytest.raises(InputError, match="holds no vectors"):
        map_columns(tiny_table)
