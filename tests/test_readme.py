"""The README runs: its ``bash`` and ``python`` blocks, in order, in one empty folder, as a user would.

Blocks marked ``sh`` are the make targets: they build an environment and run this very suite, so they are not run here;
it is only checked that the targets exist. Nothing is scaled down behind the reader's back: the Python block says by
itself that it trains for three epochs, and the folder ``pairs`` that stands for the reader's own data is made below
from 330 of the embedded digits, one of them damaged.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.M | re.S)
IMAGE_LIST, CLOUD_LIST = "mnist3d_RGBImgs_{}_list.txt", "mnist3d_PointCloud_{}_list.txt"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the reader's own files, in each of the forms that the README names."""
    from consilience.data.datasets import read_dataset
    from consilience.data.table import Row

    desk = tmp_path_factory.mktemp("readme")
    rows = [row for row in read_dataset("mnist3d").rows if isinstance(row, Row)]
    chosen = [row for row in rows if row.split == "train"][:270] + [row for row in rows if row.split == "test"][:60]
    lines, lists = ["id,split,label,image,points"], {}
    for row in chosen:
        files = {"image": f"pairs/{row.split}/image/{row.label}/{row.id}.png"}
        files["points"] = f"pairs/{row.split}/points/{row.label}/{row.id}.npy"
        for modality, name in files.items():
            (desk / name).parent.mkdir(parents=True, exist_ok=True)
            (desk / name).write_bytes(row.values[modality] or b"")
        lines.append(f"{row.id},{row.split},{row.label},{files['image']},{files['points']}")
    (desk / "pairs.csv").write_text("\n".join(lines) + "\n")
    (desk / "query.png").write_bytes(chosen[-1].values["image"] or b"")

    released = desk / "3dmnist_lists"
    for row in [*chosen[:12], *chosen[-6:]]:
        number = f"{row.id.split('-')[1]:0>6}"
        for pattern, kind, suffix, modality in (
            (IMAGE_LIST, "RGBImg", "png", "image"),
            (CLOUD_LIST, "PointCloud", "npy", "points"),
        ):
            name = f"files/{row.label}_{kind}_{row.split}_{number}.{suffix}"
            (released / name).parent.mkdir(parents=True, exist_ok=True)
            (released / name).write_bytes(row.values[modality] or b"")
            lists.setdefault(pattern.format(row.split), []).append(f"{name} {row.label}")
    for name, entries in lists.items():
        (released / name).write_text("\n".join(entries) + "\n")

    rng = np.random.default_rng(0)
    with h5py.File(desk / "full_dataset_vectors.h5", "w") as archive:
        for split in ("train", "test"):
            archive[f"X_{split}"] = rng.random((4, 4096)) * (rng.random((4, 4096)) < 0.1)
            archive[f"y_{split}"] = np.arange(4)

    damaged = desk / "pairs/train/image" / str(chosen[0].label) / f"{chosen[0].id}.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    return desk


def execute(language: str, code: str, place: Path) -> str:
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, cwd=place, env={**os.environ, "PATH": search}, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def block(language: str, position: int) -> str:
    return [code for name, code in BLOCKS if name == language][position]


@pytest.mark.slow
def test_the_library_block(desk: Path) -> None:
    lines = execute("python", block("python", 0), desk).splitlines()
    assert 0.2 < float(lines[0]) <= 1
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    assert (desk / "runs" / "taste" / "config.yaml").is_file()
    assert len([line for line in block("python", 0).splitlines() if line.strip()]) <= 10


@pytest.mark.slow
def test_the_commands_on_own_data(desk: Path) -> None:
    checked = execute("bash", block("bash", 0), desk)
    assert "330" in checked or "329" in checked
    assert (desk / "checked" / "audit.html").is_file()
    assert "1 more were set aside" in checked
    found = execute("bash", block("bash", 1), desk)
    assert re.search(r"mAP", found)
    assert len(re.findall(r"test-\d{5}|train-\d{5}", found)) >= 3
    quarantine = (desk / "runs/pairs/table/quarantine.jsonl").read_text().splitlines()
    assert len(quarantine) == 1
    assert (desk / "runs/pairs/report.html").is_file()


def test_every_block_is_run_or_is_a_make_target() -> None:
    counts = {language: sum(name == language for name, _ in BLOCKS) for language, _ in BLOCKS}
    assert counts.pop("python") == 1
    assert counts.pop("bash") == 2
    assert set(counts) <= {"sh", "text", "console"}  # console: minutes of training, tried by hand
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for language, code in BLOCKS:
        for line in code.splitlines() if language == "sh" else ():
            program, target = line.split("#")[0].split()
            assert program == "make"
            assert target in targets
    assert {"make demo", "make test"} <= set(re.findall(r"make \w+", README))
