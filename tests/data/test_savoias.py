"""SAVOIAS and IC9600 in their published layouts, made small; generated scenes."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consilience.data.datasets import DATASETS, read_dataset
from consilience.data.importers import import_table
from consilience.data.importers.savoias import CATEGORIES, sheet
from consilience.data.scenes import scene, scene_rows
from consilience.data.table import Row
from consilience.errors import InputError

SPACE = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def picture(path: Path, level: int, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)
    return path


def xlsx(path: Path, rows: list[list[str | float]], head: str = "") -> Path:
    """A spreadsheet as libraries write it: texts in a table of shared strings, numbers in place."""
    words: list[str] = []
    lines = []
    for number, row in enumerate(rows, 1):
        cells = []
        for column, value in zip("ABC", row, strict=False):
            if isinstance(value, str):
                words.append(value)
                cells.append(f'<c r="{column}{number}" t="s"><v>{len(words) - 1}</v></c>')
            else:
                cells.append(f'<c r="{column}{number}"><v>{value}</v></c>')
        lines.append(f'<row r="{number}">{"".join(cells)}</row>')
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        body = f'<worksheet xmlns="{SPACE}"><sheetData>{"".join(lines)}</sheetData></worksheet>'
        archive.writestr("xl/worksheets/sheet1.xml", f'<?xml version="1.0"?>{head}{body}')
        shared = "".join(f"<si><t>{word}</t></si>" for word in words)
        archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="{SPACE}">{shared}</sst>')
    return path


@pytest.fixture
def savoias(tmp_path: Path) -> Path:
    """Two categories: twelve pictures whose endings differ, as published, and four."""
    root = tmp_path / "savoias"
    for number in range(12):
        picture(root / "Images" / "Scenes" / f"{number}.{'jpg' if number % 3 else 'png'}", 20 * number)
    for number in range(4):
        picture(root / "Images" / "Interior Design" / f"{number}.png", 60 * number)
    xlsx(root / "Ground truth" / "xlsx" / "global_ranking_scenes.xlsx", [["gt"], *([8 * n] for n in range(12))])
    xlsx(root / "Ground truth" / "xlsx" / "global_ranking_interior_design.xlsx", [["gt"], [97], [0], [3.5], [100]])
    (root / "Ground truth" / "npy").mkdir()
    np.save(root / "Ground truth" / "npy" / "global_ranking_scenes.npy", np.array({0: ["0.png", 5]}, dtype=object))
    return root


def test_savoias_matches_pictures_and_scores_by_number(savoias: Path, tmp_path: Path) -> None:
    table = import_table(savoias, tmp_path / "table")
    rows = table.take(table.select(), ["id", "score", "category", "file", "origin_image", "split"]).to_pylist()
    assert len(rows) == 16
    found = {row["id"]: row for row in rows}
    assert found["scenes-010"]["score"] == 80, "10 comes after 9, not after 1"
    assert found["scenes-010"]["origin_image"] == "Images/Scenes/10.jpg"
    assert found["interior_design-002"]["score"] == 3.5
    assert found["interior_design-002"]["category"] == "Interior Design"
    assert {row["split"] for row in rows} == {"train"}
    assert table.modalities == {"image": "rgb"}
    assert len(CATEGORIES) == 7


def test_savoias_reads_csv_too_by_place_or_by_name(savoias: Path, tmp_path: Path) -> None:
    truth = savoias / "Ground truth"
    (truth / "global_ranking_scenes.csv").write_text("gt\n" + "".join(f"{100 - n}\n" for n in range(12)))
    (truth / "csv").mkdir()
    lines = "".join(f"{n}.png,{n + 0.5}\n" for n in (3, 1, 0, 2))
    (truth / "csv" / "global_ranking_interior_design.csv").write_text("image,score\n" + lines)
    table = import_table(savoias, tmp_path / "table")
    rows = table.take(table.select(), ["id", "score"]).to_pylist()
    scores = {row["id"]: row["score"] for row in rows}
    assert scores["scenes-011"] == 89
    assert scores["interior_design-003"] == 3.5


def test_savoias_refuses_what_is_missing_or_broken(savoias: Path, tmp_path: Path) -> None:
    picture(savoias / "Images" / "Scenes" / "99.jpg", 1)
    with pytest.raises(InputError, match=r"99.jpg has no score"):
        import_table(savoias, tmp_path / "a")
    (savoias / "Images" / "Scenes" / "99.jpg").unlink()
    picture(savoias / "Images" / "Scenes" / "1.png", 1)
    with pytest.raises(InputError, match="two pictures 1;"):
        import_table(savoias, tmp_path / "b")
    (savoias / "Images" / "Scenes" / "1.png").unlink()
    file = savoias / "Ground truth" / "xlsx" / "global_ranking_scenes.xlsx"
    file.write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"not a readable \.xlsx"):
        import_table(savoias, tmp_path / "c")
    xlsx(file, [["gt"], ["plain"]])
    with pytest.raises(InputError, match="holds no scores"):
        import_table(savoias, tmp_path / "d")
    file.unlink()
    with pytest.raises(InputError, match="are pickles and are not read"):
        import_table(savoias, tmp_path / "e")
    assert not any((tmp_path / name).exists() for name in "abcde")


def test_sheets_with_entities_or_without_end_are_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]>'
    with pytest.raises(InputError, match="declares XML entities"):
        sheet(xlsx(tmp_path / "a.xlsx", [[1.0]], bomb))
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as archive:
        archive.writestr("xl/worksheets/sheet1.xml", "<worksheet><sheetData>")
    with pytest.raises(InputError, match=r"broken \.xlsx"):
        sheet(tmp_path / "b.xlsx")
    with zipfile.ZipFile(tmp_path / "c.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", b" " * (1 << 25))
    with pytest.raises(InputError, match="no small spreadsheet"):
        sheet(tmp_path / "c.xlsx")


@pytest.fixture
def ic9600(tmp_path: Path) -> Path:
    root = tmp_path / "IC9600"
    names = ["architecture_01.jpg", "person 7.jpg", "12345.jpg", "abstract3.jpg"]
    for level, name in enumerate(names):
        picture(root / "images" / name, 50 * level)
    (root / "train.txt").write_text("architecture_01.jpg  0.25\nperson 7.jpg  1\n\n")
    (root / "test.txt").write_text("12345.jpg  0.0\nabstract3.jpg  0.625\n")
    return root


def test_ic9600_splits_lines_on_two_spaces(ic9600: Path, tmp_path: Path) -> None:
    table = import_table(ic9600, tmp_path / "table")
    rows = table.take(table.select(), ["id", "split", "score", "theme"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("architecture_01.jpg", "train", 0.25, "architecture"),
        ("person 7.jpg", "train", 1.0, "person"),
        ("12345.jpg", "test", 0.0, None),
        ("abstract3.jpg", "test", 0.625, "abstract"),
    ]
    assert "category" not in table.columns


def test_ic9600_refuses_other_lines_and_sets_missing_pictures_aside(ic9600: Path, tmp_path: Path) -> None:
    (ic9600 / "images" / "12345.jpg").unlink()
    with pytest.raises(InputError, match=r"12345.jpg.*test.txt"):
        import_table(ic9600, tmp_path / "a")
    table = import_table(ic9600, tmp_path / "b", on_bad_sample="quarantine")
    assert len(table) == 3
    for line, words in (
        ("abstract3.jpg 0.5", "two spaces"),
        ("abstract3.jpg  1.5", "from 0 to 1"),
        ("abstract3.jpg  x", "from 0 to 1"),
        ("person 7.jpg  0.5", "listed twice"),
    ):
        (ic9600 / "test.txt").write_text(line + "\n")
        with pytest.raises(InputError, match=words):
            import_table(ic9600, tmp_path / "c")


def test_scenes_depend_on_their_number_alone_and_cover_the_range() -> None:
    first, shapes = scene(5)
    again = next(row for row in scene_rows(1, "x", start=5))
    assert np.array_equal(first, np.asarray(Image.open(io.BytesIO(again.values["image"] or b""))))
    assert again.scalars["shapes"] == shapes
    assert again.scalars["score"] == pytest.approx(np.log1p(shapes) / np.log(31))
    assert not np.array_equal(first, scene(5, seed=1)[0])
    counts = np.array([scene(number)[1] for number in range(400)])
    assert counts.min() == 0
    assert 28 <= counts.max() <= 30
    scores = np.log1p(counts) / np.log(31)
    assert np.histogram(scores, 4, (0, 1))[0].min() > 40, "evenly by logarithm"


def test_the_embedded_scenes_are_what_the_list_says() -> None:
    info, reading = DATASETS["scenes"], read_dataset("scenes")
    rows = [row for row in reading.rows if isinstance(row, Row)]
    counted = {split: sum(row.split == split for row in rows) for split in info.rows}
    assert counted == info.rows == {"train": 1024, "test": 400}
    assert len({row.id for row in rows}) == 1424
    assert all(row.label is None for row in rows)
    assert set(reading.scalars) == {"score", "shapes"}


def test_the_real_suprematist_paintings_have_scores(shared: Path, tmp_path: Path) -> None:
    table = import_table(shared / "savoias_suprematism", tmp_path / "table")
    assert len(table) == 98
    scores = table.column("score")
    assert scores.min() >= 0
    assert scores.max() == 100
    assert table.modalities == {"image": "rgb"}
    assert np.unique(table.take(table.select(), ["split"])["split"].to_pylist(), return_counts=True)[1].tolist() == [
        26,
        72,
    ]
