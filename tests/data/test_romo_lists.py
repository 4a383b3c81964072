from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from consilience.data.importers import import_table
from consilience.data.importers.romo_lists import read_pseudo_labels, string_order, write_pseudo_labels
from consilience.data.schema import Kind
from consilience.errors import InputError

from .conftest import npy, png

LISTS = {"RGBImgs": ("rgb_imgs", "RGBImg", "png"), "PointCloud": ("point_cloud", "PointCloud", "npy")}


def write_lists(root: Path, n: int = 6, order: tuple[int, ...] = (), labels: bool = True) -> dict[str, list[str]]:
    """RoMo's folders and lists; the point-cloud lines come in ``order``."""
    written: dict[str, list[str]] = {}
    for name, (folder, tag, suffix) in LISTS.items():
        for split in ("train", "test"):
            lines = []
            for i in order if order and name == "PointCloud" else range(n):
                path = Path("dataset/3dmnist", split, folder, f"{i % 3}_{tag}_{split}_{i:06d}.{suffix}")
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                rng = np.random.default_rng(i)
                raw = npy(rng.normal(size=(9, 3))) if suffix == "npy" else png(np.full((4, 4, 3), i, np.uint8))
                (root / path).write_bytes(raw)
                lines.append(f"{path.as_posix()} {i % 3}" if labels else path.as_posix())
            written[f"mnist3d_{name}_{split}_list.txt"] = lines
    for name, lines in written.items():
        (root / "dataset" / name).write_text("\n".join(lines) + "\n")
    return written


def test_pairs_are_made_by_id_not_by_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lists(tmp_path, order=(3, 1, 5, 0, 4, 2))
    with caplog.at_level(logging.WARNING):
        table = import_table(tmp_path / "dataset", tmp_path / "table")
    assert sum("disagree in 4 of 6 lines" in message for message in caplog.messages) == 2
    assert table.modalities == {"rgb": Kind.RGB, "points": Kind.POINTS}
    ids = [f"{split}-{i:06d}" for split in ("train", "test") for i in range(6)]
    assert table.column("id").tolist() == ids
    rows = table.take(table.select("split = 'train'"), ["rgb", "points", "label"]).to_pylist()
    for i, row in enumerate(rows):
        assert row["rgb"] == png(np.full((4, 4, 3), i, np.uint8))
        assert row["points"] == npy(np.random.default_rng(i).normal(size=(9, 3)))
        assert row["label"] == str(i % 3)


def test_equal_order_is_silent_and_labels_are_optional(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lists(tmp_path, labels=False)
    path = tmp_path / "dataset" / "mnist3d_RGBImgs_train_list.txt"
    with caplog.at_level(logging.WARNING):
        table = import_table(path, tmp_path / "table")
    assert not caplog.messages
    assert table.column("label").tolist() == [None] * 12


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            replaced("000002.npy 2", "000009.npy 2"),
            r"RGBImgs_train_list\.txt line 3: id 000002 is not in the points list",
        ),
        (
            lambda text: "\n".join(text.splitlines()[:-1]),
            r"RGBImgs_train_list\.txt line 6: id 000005 is not in the",
        ),
        (replaced("000004.npy 1", "000004.npy 2"), r"line 5.*line 5: one id, labels 2 and 1"),
        (replaced("000001.npy", "000000.npy"), r"id 000000 in lines 1 and 2"),
        (replaced("_000003.npy", "_3.npy"), r"line 4: .* has no six-digit id"),
    ],
)
def test_lists_that_do_not_pair_are_refused(tmp_path: Path, change: Callable[[str], str], words: str) -> None:
    write_lists(tmp_path)
    path = tmp_path / "dataset" / "mnist3d_PointCloud_train_list.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=words):
        import_table(tmp_path / "dataset", tmp_path / "table")


def test_missing_lists_and_files_are_named(tmp_path: Path) -> None:
    lists = write_lists(tmp_path)
    lost = tmp_path / lists["mnist3d_RGBImgs_test_list.txt"][3].split()[0]
    lost.unlink()
    with pytest.raises(InputError, match=r"test-000003.*No such file.*line 4"):
        import_table(tmp_path / "dataset", tmp_path / "table")
    assert len(import_table(tmp_path / "dataset", tmp_path / "table", on_bad_sample="quarantine")) == 11
    (tmp_path / "dataset" / "mnist3d_RGBImgs_test_list.txt").unlink()
    with pytest.raises(InputError, match="test list of rgb is missing"):
        import_table(tmp_path / "dataset", tmp_path / "other")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "dataset" / "mnist3d_PointCloud_train_list.txt").rename(moved / "mnist3d_PointCloud_train_list.txt")
    (tmp_path / "dataset" / "3dmnist").rename(tmp_path / "gone")
    with pytest.raises(InputError, match="put the files beside"):
        import_table(moved, tmp_path / "other")


def test_pseudo_labels_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "mnist3d_RGBImgs_train_list_pseudo_labelling.txt"
    paths = ["dataset/a b.png", "dataset/c.png"]
    write_pseudo_labels(path, paths, np.array([3, 0]), np.array([1, 9]))
    assert path.read_text() == "dataset/a b.png 3 1\ndataset/c.png 0 9\n"
    again = read_pseudo_labels(path)
    assert (list(again.paths), again.pseudo.tolist(), again.true.tolist()) == (paths, [3, 0], [1, 9])
    write_pseudo_labels(path, paths, np.array([3, 0]))
    assert read_pseudo_labels(path).true.tolist() == [-1, -1]
    with pytest.raises(InputError, match="equally many"):
        write_pseudo_labels(path, paths, np.array([3]))
    path.write_text("a.png 1 2\nb.png one 2\n")
    with pytest.raises(InputError, match="line 2"):
        read_pseudo_labels(path)


def test_string_order() -> None:
    assert string_order(12).tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    order = string_order(5000)
    assert sorted(order.tolist()) == list(range(5000))
    assert order[:5].tolist() == [0, 1, 10, 100, 1000]


def test_string_order_maps_the_released_class_counts_to_mnist(shared: Path) -> None:
    """Sheet, section 1: class counts of the training list, and the pseudo-labels that follow the text
    order."""
    with np.load(shared / "reference_noise" / "romo_3dmnist_pseudo_labels.npz") as archive:
        true = {"train": archive["true_train"], "test": archive["true_test"]}
        pseudo = archive["romo_pseudo_rgb"]
    with np.load(shared / "mnist" / "mnist_points128.npz") as archive:
        mnist = {split: archive[f"{split}_labels"] for split in ("train", "test")}
    counts = [479, 563, 488, 493, 535, 434, 501, 550, 462, 495]
    for split, labels in true.items():
        order = string_order(len(labels))
        released = labels[order]
        assert (released == mnist[split][order]).all()
        assert (released == mnist[split]).mean() < 0.2, "without the map the labels must look unrelated"
    assert np.bincount(true["train"]).tolist() == counts
    sizes = np.bincount(pseudo, minlength=10)
    assert (sizes.sum(), len(sizes)) == (5000, 10)


def test_reference_pseudo_labels_round_trip_in_text_order(shared: Path, tmp_path: Path) -> None:
    with np.load(shared / "reference_noise" / "romo_3dmnist_pseudo_labels.npz") as archive:
        pseudo, true = archive["romo_pseudo_pointcloud"], archive["true_train"]
    order = string_order(5000)
    names = [f"{true[row]}_PointCloud_train_{i:06d}.npy" for i, row in enumerate(order)]
    write_pseudo_labels(tmp_path / "p.txt", names, pseudo[order], true[order])
    again = read_pseudo_labels(tmp_path / "p.txt")
    back = np.empty(5000, dtype=np.int64)
    back[order] = again.pseudo
    assert (back == pseudo).all()
    assert [int(name[0]) for name in again.paths] == again.true.tolist()
