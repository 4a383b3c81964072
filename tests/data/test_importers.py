from __future__ import annotations

import io
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import trimesh

from consilience.data.decode import DecodeConfig
from consilience.data.importers import import_table
from consilience.data.importers.kaggle3d import voxel_views
from consilience.data.loader import read
from consilience.data.mnist3d import digit_points
from consilience.data.schema import Kind
from consilience.data.table import Table
from consilience.errors import InputError

from .conftest import npy, png, write_manifest


def picture(i: int, colour: bool = False) -> bytes:
    shape = (6, 7, 3) if colour else (6, 7)
    return png(np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8))


def cloud(i: int) -> bytes:
    return npy(np.random.default_rng(i).normal(size=(12, 3)).astype(np.float32))


def write_pairs(root: Path, n: int, image: str = "image", points: str = "points") -> None:
    for name in (image, points):
        (root / name).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (root / image / f"{i:03d}.png").write_bytes(picture(i))
        (root / points / f"{i:03d}.npy").write_bytes(cloud(i))


def assert_pairs(table: Table, n: int, image: str = "image", points: str = "points") -> None:
    rows = table.take(table.select(), [image, points])
    assert rows[image].to_pylist() == [picture(i) for i in range(n)]
    assert rows[points].to_pylist() == [cloud(i) for i in range(n)]


# Manifests


def entries(n: int) -> list[dict[str, object]]:
    return [
        {
            "ID": f"{i:03d}",
            "Split": "test" if i % 3 == 2 else "train",
            "label": f"{i % 2:02d}",
            "image": f"image/{i:03d}.png",
            "points": f"points/{i:03d}.npy",
            "weight": i / 2,
            "index": i + 100,
            "note text": f"note {i}",
        }
        for i in range(n)
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_manifest_round_trips(tmp_path: Path, suffix: str) -> None:
    write_pairs(tmp_path, 7)
    path = write_manifest(tmp_path / f"list{suffix}", entries(7))
    table = import_table(path, tmp_path / "table")
    assert table.modalities == {"image": Kind.GREY, "points": Kind.POINTS}
    assert_pairs(table, 7)
    assert table.column("id").tolist() == [f"{i:03d}" for i in range(7)]
    assert table.column("split").tolist() == [entry["Split"] for entry in entries(7)]
    assert table.column("label").tolist() == [f"{i % 2:02d}" for i in range(7)]
    assert table.column("weight").tolist() == [i / 2 for i in range(7)]
    assert table.column("source_index").tolist() == list(range(100, 107))
    assert table.column("note_text")[3] == "note 3"
    assert table.column("origin_image")[2] == "image/002.png"


def test_a_folder_with_one_manifest_and_explicit_columns(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_pairs(source, 4)
    write_manifest(source / "list.csv", entries(4))
    table = import_table(source, tmp_path / "table", columns={"photo": "image"})
    assert table.modalities == {"photo": Kind.GREY}
    assert table.column("points")[1] == "points/001.npy"
    with pytest.raises(InputError, match="did you mean 'image'"):
        import_table(source, tmp_path / "other", columns={"photo": "imgae"})
    write_manifest(source / "second.csv", entries(4))
    with pytest.raises(InputError, match="2 manifests"):
        import_table(source, tmp_path / "other")


def test_a_manifest_without_id_and_split(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    rows = [{"image": entry["image"], "points": entry["points"]} for entry in entries(3)]
    rows[1]["points"] = ""
    table = import_table(write_manifest(tmp_path / "list.csv", rows), tmp_path / "table")
    assert table.column("id").tolist() == ["00000000", "00000001", "00000002"]
    assert set(table.column("split")) == {"train"}
    assert table.column("label").tolist() == [None] * 3
    assert table.select("points is null").tolist() == [1]


def test_parquet_with_the_bytes_inside(tmp_path: Path) -> None:
    rows = [
        {"photo": picture(i, colour=i == 2), "shape": {"bytes": cloud(i), "path": f"{i}.npy"}, "n": i} for i in range(4)
    ]
    path = write_manifest(tmp_path / "data.parquet", rows)
    table = import_table(path, tmp_path / "table")
    assert table.modalities == {"photo": Kind.RGB, "shape": Kind.POINTS}
    assert table.take(table.select(), ["shape"])["shape"].to_pylist() == [cloud(i) for i in range(4)]
    assert table.column("origin_shape")[1] == "1.npy"
    assert table.column("origin_photo")[1] == "data.parquet::photo[1]"
    assert table.column("n").tolist() == [0, 1, 2, 3]


def test_bad_manifests(tmp_path: Path) -> None:
    cases = {
        "empty.csv": ("", "csv"),
        "header.csv": ("image,points\n", "no rows"),
        "lost.csv": ("image\nnowhere.png\n", "no column"),
        "torn.jsonl": ('{"image": "a', "jsonl"),
        "torn.parquet": ("PAR1 nothing", "parquet"),
    }
    for name, (text, words) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=words):
            import_table(tmp_path / name, tmp_path / "table")
    assert not (tmp_path / "table").exists()


# Folders


@pytest.mark.parametrize("layout", ["plain", "split above", "split below", "class", "split and class"])
def test_folder_layouts(tmp_path: Path, layout: str) -> None:
    source = tmp_path / "source"
    for i in range(6):
        split, label = ("train", "test")[i % 2], ("cat", "dog")[i % 2]
        for modality, raw, suffix in (("image", picture(i), "png"), ("points", cloud(i), "npy")):
            folder = {
                "plain": Path(modality),
                "split above": Path(split, modality),
                "split below": Path(modality, split),
                "class": Path(modality, label),
                "split and class": Path(split, modality, label),
            }[layout]
            (source / folder).mkdir(parents=True, exist_ok=True)
            (source / folder / f"{i}.{suffix}").write_bytes(raw)
    (source / "README.txt").write_text("not a sample")
    table = import_table(source, tmp_path / "table")
    assert table.modalities == {"image": Kind.GREY, "points": Kind.POINTS}
    assert len(table) == 6
    stem = {name: int(Path(name).stem) for name in table.column("origin_image")}
    rows = table.take(table.select(), ["image", "points", "split", "label", "origin_image"]).to_pylist()
    for row in rows:
        i = stem[row["origin_image"]]
        assert (row["image"], row["points"]) == (picture(i), cloud(i))
        assert row["split"] == (("train", "test")[i % 2] if "split" in layout else "train")
        assert row["label"] == (("cat", "dog")[i % 2] if "class" in layout else None)


@pytest.mark.parametrize("split", [True, False])
def test_pictures_alone_in_class_folders_or_in_none(tmp_path: Path, split: bool) -> None:
    for i in range(6):
        place = tmp_path / "classes" / (("train", "test")[i % 2] if split else ".") / ("cat", "dog/wet")[i % 3 > 0]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.png").write_bytes(picture(i))
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / f"{i}.png").write_bytes(picture(i))
    table = import_table(tmp_path / "classes", tmp_path / "table")
    assert list(table.modalities) == ["image"]
    rows = table.take(table.select(), ["image", "label", "split"]).to_pylist()
    by_picture = {row["image"]: row for row in rows}
    for i in range(6):
        row = by_picture[picture(i)]
        assert row["label"] == ("cat", "dog/wet")[i % 3 > 0]
        assert row["split"] == (("train", "test")[i % 2] if split else "train")
    flat = import_table(tmp_path / "flat", tmp_path / "other")
    assert (list(flat.modalities), len(flat)) == (["image"], 6)
    assert flat.take(flat.select(), ["label"])["label"].null_count == 6


def test_folders_with_missing_partners_and_wrong_layouts(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_pairs(source, 4)
    (source / "points" / "002.npy").unlink()
    table = import_table(source, tmp_path / "table")
    assert table.column("id", "points is null").tolist() == ["002"]
    classes = tmp_path / "classes"
    for i, name in enumerate(("cat", "dog")):
        (classes / name).mkdir(parents=True)
        (classes / name / f"{i}.png").write_bytes(picture(i))
    (classes / "dog" / "2.npy").write_bytes(cloud(2))
    with pytest.raises(InputError, match="no stem occurs in two of cat, dog"):
        import_table(classes, tmp_path / "other")
    (source / "a.png").write_bytes(picture(0))
    with pytest.raises(InputError, match="in no modality's folder"):
        import_table(source, tmp_path / "other")
    (source / "a.png").unlink()
    (source / "image" / "000.jpg").write_bytes(picture(0))
    with pytest.raises(InputError, match="one stem"):
        import_table(source, tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures"):
        import_table(tmp_path / "empty", tmp_path / "other")


def test_kinds_are_inferred_and_overridden(tmp_path: Path) -> None:
    source = tmp_path / "source"
    box = trimesh.creation.box()
    for name in ("scan", "mesh", "photo"):
        (source / name).mkdir(parents=True)
    for i in range(3):
        (source / "scan" / f"{i}.ply").write_bytes(box.export(file_type="ply"))
        (source / "mesh" / f"{i}.stl").write_bytes(box.export(file_type="stl"))
        (source / "photo" / f"{i}.png").write_bytes(picture(i, colour=i == 1))
    table = import_table(source, tmp_path / "table")
    assert table.modalities == {"mesh": Kind.MESH, "photo": Kind.RGB, "scan": Kind.POINTS}
    table = import_table(source, tmp_path / "two", kinds={"scan": "mesh", "photo": "grey"})
    assert table.modalities == {"mesh": Kind.MESH, "photo": Kind.GREY, "scan": Kind.MESH}
    batch = next(read(table, table.select(), DecodeConfig(6, 8, 12), 3))
    assert tuple(batch.values["scan"].shape) == (3, 12, 18)
    with pytest.raises(InputError, match="did you mean 'photo'"):
        import_table(source, tmp_path / "no", kinds={"foto": "grey"})
    with pytest.raises(InputError, match="did you mean 'grey'"):
        import_table(source, tmp_path / "no", kinds={"photo": "gray"})


# Bad samples


def test_quarantine_holds_exactly_the_corrupt_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_pairs(source, 200)
    corrupt = {
        "image/007.png": b"",
        "image/055.png": picture(55)[:60],
        "image/120.png": b"GIF but not really",
        "points/003.npy": cloud(3)[:-4],
        "points/055.npy": b"\x93NUMPY",
        "points/199.npy": npy(np.full((12, 3), np.inf)),
    }
    for name, raw in corrupt.items():
        (source / name).write_bytes(raw)
    with pytest.raises(InputError, match=r"sample '003', points from points/003\.npy.*truncated.*quarantine"):
        import_table(source, tmp_path / "table")
    assert not (tmp_path / "table").exists()
    table = import_table(source, tmp_path / "table", on_bad_sample="quarantine")
    lines = [json.loads(line) for line in (table.path / "quarantine.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {"003", "007", "055", "120", "199"}
    assert all(line["origin"] in corrupt and line["reason"] and line["modality"] for line in lines)
    assert set(table.column("id")) == {f"{i:03d}" for i in range(200)} - {"003", "007", "055", "120", "199"}
    assert sum(len(batch) for batch in read(table, table.select(), DecodeConfig(), 64)) == 195


def test_missing_files_of_a_manifest_are_bad_samples(tmp_path: Path) -> None:
    write_pairs(tmp_path, 5)
    (tmp_path / "points" / "003.npy").unlink()
    path = write_manifest(tmp_path / "list.csv", entries(5))
    with pytest.raises(InputError, match=r"'003', points from points/003\.npy: No such file.*row 4 of list\.csv"):
        import_table(path, tmp_path / "table")
    table = import_table(path, tmp_path / "table", on_bad_sample="quarantine")
    assert len(table) == 4
    with pytest.raises(InputError, match="did you mean 'quarantine'"):
        import_table(path, tmp_path / "x", on_bad_sample="quarantin")  # type: ignore[arg-type]


# Archives


def test_voxel_grids(tmp_path: Path) -> None:
    grids = np.zeros((3, 16, 16, 16))
    rng = np.random.default_rng(0)
    grids[:, 6:9] = rng.random((3, 3, 16, 16)) * (rng.random((3, 3, 16, 16)) < 0.2)
    with h5py.File(tmp_path / "full_dataset_vectors.h5", "w") as file:
        file["X_train"], file["y_train"] = grids[:2].reshape(2, -1), np.array([4, 7])
        file["X_test"], file["y_test"] = grids[2:].reshape(1, -1), np.array([1])
    table = import_table(tmp_path, tmp_path / "table")
    assert table.column("id").tolist() == ["train-00000", "train-00001", "test-00000"]
    assert table.column("label").tolist() == ["4", "7", "1"]
    assert table.modalities == {"image": Kind.GREY, "points": Kind.POINTS}
    stored = np.load(io.BytesIO(table.take(np.array([2]), ["points"])["points"][0].as_py()))
    assert {tuple(point) for point in stored[:, [2, 0, 1]]} == {tuple(at) for at in np.argwhere(grids[2] > 0)}


def test_a_voxel_picture_shows_what_the_cloud_is() -> None:
    """One voxel far right and high up: the picture's pixel is in the top right corner."""
    grid = np.zeros((16, 16, 16))
    grid[3, 14, 15] = 0.25
    grid[9, 14, 15] = 0.5
    image, points = voxel_views(grid)
    assert np.argwhere(image).tolist() == [[0, 14]]
    assert image.max() == 255
    assert points.tolist() == [[14, 15, 3], [14, 15, 9]]


def test_point_cloud_archives(tmp_path: Path) -> None:
    digits = np.zeros((12, 28, 28), dtype=np.uint8)
    for i in range(12):
        digits[i, 4 : 8 + i, 5:9] = 100 + i
    for split, count in (("train", 12), ("test", 2)):
        with h5py.File(tmp_path / f"{split}_point_clouds.h5", "w") as file:
            for i in range(count):
                points, normals = digit_points(digits[i])
                group = file.create_group(str(i))
                group["img"], group["points"], group["normals"] = np.pad(digits[i] / 255, 1), points, normals
                group.attrs["label"] = i % 10
    table = import_table(tmp_path, tmp_path / "table")
    assert table.column("id").tolist()[:3] == ["train-00000", "train-00001", "train-00002"]
    assert table.column("id").tolist()[-2:] == ["test-00000", "test-00001"]
    assert table.column("label", "id = 'train-00011'").tolist() == ["1"]
    batch = next(read(table, table.select(), DecodeConfig(30, 64), 14))
    np.testing.assert_array_equal(batch.values["image"][3, 0].numpy(), np.pad(digits[3], 1))
    tall = np.ptp(batch.values["points"][11].numpy(), axis=0)
    assert tall[1] > tall[0] > 0
    assert tall[1] > 2 * tall[2]


def test_bad_archives(tmp_path: Path) -> None:
    (tmp_path / "train_point_clouds.h5").write_bytes(b"no hdf5")
    with pytest.raises(InputError, match="not a readable HDF5"):
        import_table(tmp_path, tmp_path / "table")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = np.zeros(3)
    with pytest.raises(InputError, match="expected X_train"):
        import_table(tmp_path / "other.h5", tmp_path / "table")
    np.savez(tmp_path / "kenney3d.npz", images=np.zeros(3))
    with pytest.raises(InputError, match="lacks an array"):
        import_table(tmp_path / "kenney3d.npz", tmp_path / "table")
    np.savez(tmp_path / "some.npz", images=np.zeros(3))
    with pytest.raises(InputError, match="none of kenney3d"):
        import_table(tmp_path / "some.npz", tmp_path / "table")


def test_kenney(shared: Path, tmp_path: Path) -> None:
    table = import_table(shared / "kenney3d", tmp_path / "table")
    assert table.modalities == {"image": Kind.RGB, "points": Kind.POINTS}
    assert (len(table.select("split = 'train'")), len(table.select("split = 'test'"))) == (182, 74)
    assert len(table.labels()[1]) == 21
    assert {"text", "name", "pack", "triangles"} <= set(table.columns)
    batch = next(read(table, table.select()[:8], DecodeConfig(64, 1024), 8))
    with np.load(shared / "kenney3d" / "kenney3d.npz") as archive:
        view, points = archive["images"][3, 0].astype(float), archive["points"][3].astype(np.float64)
    alpha = view[..., 3:] / 255
    expected = view[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(batch.values["image"][3].numpy().transpose(1, 2, 0) - expected).max() <= 1
    centred = points - points.mean(0)
    centred /= np.linalg.norm(centred, axis=1).max()
    np.testing.assert_allclose(batch.values["points"][3].numpy(), centred, atol=1e-5)


def test_the_shared_mnist_pairs_are_the_embedded_ones(shared: Path, tmp_path: Path, mnist3d: Table) -> None:
    table = import_table(shared / "mnist", tmp_path / "a")
    for column in ("id", "split", "label"):
        assert table.column(column).tolist() == mnist3d.column(column).tolist()
    rows = table.select()[::100]
    left, right = (next(read(t, rows, DecodeConfig(), 64)) for t in (table, mnist3d))
    for name in ("image", "points"):
        assert bool((left.values[name] == right.values[name]).all())


# The front door


def test_sources_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'mnist3d'"):
        import_table("mnist3", tmp_path / "t")
    with pytest.raises(InputError, match="does not exist"):
        import_table(tmp_path / "nowhere", tmp_path / "t")
    with pytest.raises(InputError, match="does not exist"):
        import_table("data/list.csv", tmp_path / "t")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"no importer for \.txt"):
        import_table(tmp_path / "notes.txt", tmp_path / "t")
    with pytest.raises(InputError, match="columns apply to manifests"):
        import_table("mnist3d", tmp_path / "t", columns={"image": "x"})


def test_a_table_is_copied_with_its_columns(table: Table, tmp_path: Path) -> None:
    table.write_columns(np.arange(37), {"x": np.arange(37.0)}, {"why": "test"})
    copy = import_table(table.path, tmp_path / "copy")
    assert copy.column("x").tolist() == list(range(37))
    assert copy.provenance("x") == {"why": "test"}
    assert copy.fingerprint() == table.fingerprint()
    with pytest.raises(InputError, match="already exists"):
        import_table(table.path, tmp_path / "copy")
    with pytest.raises(InputError, match="is a table already"):
        import_table(table.path, tmp_path / "third", kinds={"image": "rgb"})
