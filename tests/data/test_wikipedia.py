from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from consilience.data.decode import DecodeConfig
from consilience.data.importers.wikipedia import WIKIPEDIA, read_wikipedia
from consilience.data.loader import read
from consilience.data.reading import write_reading
from consilience.data.schema import Kind
from consilience.errors import InputError


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    out: dict[str, np.ndarray] = {"categories": np.array(["art", "biology"])}
    for split, n in (("train", 3), ("test", 2)):
        out[f"img_{split}"] = rng.random((n, 4), dtype=np.float32)
        out[f"txt_{split}"] = rng.random((n, 2), dtype=np.float32)
        out[f"y_{split}"] = np.arange(n, dtype=np.uint8) % 2
    return out


def test_a_small_archive(tmp_path: Path) -> None:
    given = arrays()
    np.savez(tmp_path / WIKIPEDIA, **given)
    table = write_reading(read_wikipedia(tmp_path / WIKIPEDIA), tmp_path / "t", None, "stop")
    assert table.modalities == {"image": Kind.VECTOR, "text": Kind.VECTOR}
    assert table.sizes == {"vector_width": 4}
    assert table.column("label").tolist() == ["art", "biology", "art", "art", "biology"]
    assert table.column("split").tolist() == ["train"] * 3 + ["test"] * 2
    batch = next(read(table, table.select("split = 'test'"), DecodeConfig(**table.sizes), 2))
    np.testing.assert_array_equal(batch.values["image"].numpy(), given["img_test"])
    np.testing.assert_array_equal(batch.values["text"].numpy()[:, :2], given["txt_test"])
    assert (batch.values["text"][:, 2:] == 0).all()
    assert read_wikipedia(tmp_path).source.endswith(WIKIPEDIA)


def test_archives_that_are_not_like_that(tmp_path: Path) -> None:
    path = tmp_path / WIKIPEDIA
    with pytest.raises(InputError, match="not a readable npz"):
        read_wikipedia(path)
    path.write_bytes(b"torn")
    with pytest.raises(InputError, match="not a readable npz"):
        read_wikipedia(path)
    given = arrays()
    changes: list[tuple[dict[str, np.ndarray], str]] = [
        ({"y_train": given["y_train"][:2]}, "train arrays are"),
        ({"img_test": given["img_test"][0]}, "test arrays are"),
        ({"y_test": np.array([0, 2])}, "y_test has a class outside 0..1"),
    ]
    for change, what in changes:
        np.savez(path, **(given | change))
        with pytest.raises(InputError, match=what):
            read_wikipedia(path)
    del given["txt_test"]
    np.savez(path, **given)
    with pytest.raises(InputError, match=r"lacks an array .*txt_test"):
        read_wikipedia(path)


def test_the_shared_archive(shared: Path, tmp_path: Path) -> None:
    """The sheet's counts, and row i of image and text is a true pair of one class."""
    table = write_reading(read_wikipedia(shared / "wikipedia_features"), tmp_path / "t", None, "stop")
    assert [len(table.select(f"split = '{split}'")) for split in ("train", "test")] == [2173, 693]
    assert table.sizes == {"vector_width": 128}
    codes, names = table.labels("split = 'test'")
    assert len(names) == 10
    with np.load(shared / "wikipedia_features" / WIKIPEDIA) as archive:
        assert [names[code] for code in codes] == [str(archive["categories"][code]) for code in archive["y_test"]]
        batch = next(read(table, table.select("split = 'test'"), DecodeConfig(**table.sizes), 693))
        np.testing.assert_array_equal(batch.values["image"].numpy(), archive["img_test"])
        np.testing.assert_array_equal(batch.values["text"].numpy()[:, :10], archive["txt_test"])
