"""Every check on rows made for it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from consilience.audit.api import suspicions
from consilience.audit.calibration import auroc
from consilience.audit.checks.base import Context, Judged, Views
from consilience.audit.checks.registry import checks, run_checks
from consilience.audit.copies import perceptual_hash
from consilience.audit.fix import fix
from consilience.audit.graph import Graph
from consilience.audit.thumbnails import thumbnail
from consilience.data.reading import npy_bytes, png_bytes
from consilience.data.schema import Kind
from consilience.data.table import Row, Table
from consilience.errors import InputError

N, DIM = 240, 24


def picture(i: int) -> np.ndarray:
    """uint8 [24, 24]: a smooth random pattern of its own."""
    coarse = np.random.default_rng(i).integers(0, 255, (6, 6)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((24, 24), Image.Resampling.BICUBIC))


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=90)
    return stream.getvalue()


def made(path: Path, changes: dict[int, dict[str, object]] | None = None, n: int = 40, labels: bool = True) -> Table:
    """Pictures with texts; the last quarter is split test; ``changes``: what is different in some rows."""

    def rows() -> list[Row]:
        out = []
        for i in range(n):
            entry: dict[str, object] = {
                "image": png_bytes(picture(i)),
                "text": f"caption {i}".encode(),
                "split": "test" if i >= n * 3 // 4 else "train",
                "label": "ab"[i % 2] if labels else None,
            } | (changes or {}).get(i, {})
            out.append(
                Row(
                    f"r{i}",
                    str(entry["split"]),
                    {name: entry[name] for name in ("image", "text")},  # type: ignore[misc]
                    {"image": f"{i}.png", "text": f"{i}.txt"},
                    entry["label"],  # type: ignore[arg-type]
                )
            )
        return out

    return Table.create(path, rows(), {"image": Kind.GREY, "text": Kind.TEXT}, "made for a test")


def space(n: int, wrong: np.ndarray, seed: int = 0, noise: float = 0.5) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Unit vectors whose pairs fit, but for the rows ``wrong``, whose second vectors go round among them."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(n, DIM, generator=generator)
    a, b = (centre + noise * torch.randn(n, DIM, generator=generator) for _ in range(2))
    home = np.arange(n)
    home[wrong] = np.roll(wrong, 1)
    return {"image": F.normalize(a, dim=1), "text": F.normalize(b[torch.from_numpy(home)], dim=1)}, home


def context_of(table: Table, vectors: dict[str, torch.Tensor] | None) -> Context:
    rows = table.select()
    context = Context(table, rows, table.modalities, [("image", "text")])
    if vectors is not None:
        present = {name: torch.ones(len(rows), dtype=torch.bool) for name in vectors}
        graph = Graph(vectors, present)
        context.views = Views(graph, [Judged(np.arange(len(rows)), graph, False, "train")], np.full(len(rows), np.nan))
    return context


def test_mismatched_pairs_are_found_and_their_partners_too(tmp_path: Path) -> None:
    wrong = np.random.default_rng(1).permutation(N)[: N * 3 // 10]
    vectors, home = space(N, wrong)
    context = context_of(made(tmp_path / "t", n=N), vectors)
    found = run_checks(context, ["pair_mismatch"])["pair_mismatch"]
    bad = np.isin(np.arange(N), wrong)
    assert auroc(found.score, bad) > 0.97
    assert found.info["image-text, train"]["noise_ratio"] == pytest.approx(0.3, abs=0.05)
    better = found.columns["better_text"]
    proposed = np.flatnonzero(better >= 0)
    assert len(proposed) > len(wrong) / 2
    assert (home[better[proposed]] == proposed).mean() > 0.95  # the row it names holds this row's own text
    assert bad[proposed].mean() > 0.95
    assert (found.columns["pair_rank"][~bad] < found.columns["pair_rank"][bad].mean()).mean() > 0.95

    done = fix(context, {"pair_mismatch": found}, tmp_path / "fixed")
    cleaned = Table.open(tmp_path / "fixed")
    moved = {f"r{row}": int(better[row]) for row in proposed if found.flagged[row]}
    assert done["re-pair"] == len(moved)
    assert done["drop"] == int(found.flagged.sum()) - len(moved)
    assert len(cleaned) == N - done["drop"] == done["rows"]
    for entry in cleaned.take(cleaned.select(), ["id", "text"]).to_pylist():
        origin = moved.get(entry["id"], int(entry["id"][1:]))
        assert entry["text"] == f"caption {origin}".encode()
    lines = (tmp_path / "fixed.csv").read_text().splitlines()
    assert lines[0] == "id,what,why,probability"
    assert len(lines) == 1 + int(found.flagged.sum())
    with pytest.raises(InputError, match="already exists"):
        fix(context, {}, tmp_path / "fixed")


def test_wrong_labels_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, N)
    wrong = rng.permutation(N)[: N // 10]
    given = truth.copy()
    given[wrong] = 1 - given[wrong]
    table = made(tmp_path / "t", {i: {"label": "ab"[given[i]]} for i in range(N)}, n=N)
    shift = torch.zeros(N, DIM)
    shift[:, 0] = torch.from_numpy(truth * 4.0 - 2)
    vectors = {name: F.normalize(v + shift, dim=1) for name, v in space(N, np.zeros(0, np.int64))[0].items()}
    context = context_of(table, vectors)
    found = run_checks(context, ["label_doubt"])["label_doubt"]
    bad = np.isin(np.arange(N), wrong)
    assert auroc(found.score, bad) > 0.97
    assert found.info["noise_ratio"] == pytest.approx(0.1, abs=0.05)
    fix(context, {"label_doubt": found}, tmp_path / "kept")
    assert Table.open(tmp_path / "kept").labels()[0].tolist() == given.tolist()
    done = fix(context, {"label_doubt": found}, tmp_path / "fixed", labels=True)
    assert done["relabel"] == int(found.flagged.sum())
    assert (Table.open(tmp_path / "fixed").labels()[0] == truth).mean() > (given == truth).mean()


def test_copies_and_leaks(tmp_path: Path) -> None:
    brighter = np.clip(picture(4) * 0.8 + 20, 0, 255).astype(np.uint8)
    table = made(
        tmp_path / "t",
        {
            3: {"image": png_bytes(picture(1)), "text": b"caption 1"},
            7: {"image": jpeg(brighter)},
            9: {"image": png_bytes(picture(2))},
            35: {"image": png_bytes(picture(11))},
            36: {"text": b"caption 5"},
        },
    )
    context = context_of(table, None)
    found = run_checks(context, ["near_duplicate", "leakage"])
    copies = found["near_duplicate"]
    assert np.flatnonzero(copies.flagged).tolist() == [3, 7, 9]
    assert copies.columns["duplicate_of"][[3, 7, 9]].tolist() == [1, 4, 2]
    assert copies.reasons[3] == "every modality to the byte as r1"
    assert copies.reasons[7] == "image to the eye as r4"
    assert copies.score[[3, 7, 9]].tolist() == [0, 0.25, 0]
    leaks = found["leakage"]
    assert {int(row): leaks.reasons[int(row)] for row in np.flatnonzero(leaks.flagged)} == {
        11: "image to the byte as r35 of split test"
    }
    done = fix(context, found, tmp_path / "fixed")
    kept = set(Table.open(tmp_path / "fixed").column("id"))
    assert {f"r{i}" for i in range(40)} - kept == {"r3", "r11"}
    assert done["drop"] == 2
    assert suspicions(found, 40)[[3, 11, 12]].tolist() == ["near-duplicate", "leak", ""]


def test_copies_in_vectors_need_every_modality(tmp_path: Path) -> None:
    vectors, _ = space(N, np.zeros(0, np.int64))
    for name in vectors:
        vectors[name][20] = F.normalize(vectors[name][10] + 1e-3, dim=0)
    vectors["image"][30] = vectors["image"][12]
    found = run_checks(context_of(made(tmp_path / "t", n=N), vectors), ["near_duplicate"])["near_duplicate"]
    assert np.flatnonzero(found.flagged).tolist() == [20]


def test_unreadable_and_outlying_rows(tmp_path: Path) -> None:
    table = made(tmp_path / "t", {2: {"image": b"\x89PNG\r\n\x1a\nno more"}, 5: {"image": None}}, n=N)
    generator = torch.Generator().manual_seed(0)
    tight = torch.randn(1, DIM, generator=generator) + 0.2 * torch.randn(N, DIM, generator=generator)
    tight[9] = -tight[9]
    vectors = {"image": F.normalize(tight, dim=1), "text": F.normalize(tight.roll(1, 1) ** 3 + tight, dim=1)}
    context = context_of(table, vectors)
    found = run_checks(context, ["unreadable", "outlier"])
    assert np.flatnonzero(found["unreadable"].flagged).tolist() == [2]
    assert "image" in found["unreadable"].reasons[2]
    assert 9 in np.flatnonzero(found["outlier"].flagged)
    assert found["outlier"].flagged.sum() < 5
    fix(context, found, tmp_path / "fixed")
    assert "r2" not in set(Table.open(tmp_path / "fixed").column("id"))


def test_preconditions_are_reasons_not_errors(tmp_path: Path) -> None:
    table = made(tmp_path / "t", {i: {"split": "train"} for i in range(40)}, labels=False)
    found = run_checks(context_of(table, None))
    skipped = {name: one.skipped for name, one in found.items() if one.skipped}
    assert set(skipped) == {"pair_mismatch", "label_doubt", "outlier", "leakage"}
    assert skipped["outlier"] == "needs a model; give --run RUN or --train"
    assert np.isnan(found["outlier"].score).all()
    few = run_checks(context_of(table, {name: v[:40] for name, v in space(40, np.zeros(0, np.int64))[0].items()}))
    assert few["label_doubt"].skipped == "needs labels; the table has none"
    assert list(found) == [name for name, info in checks().items() if not info.asked]
    with pytest.raises(InputError, match="did you mean 'outlier'"):
        run_checks(context_of(table, None), ["outliers"])


def test_hash_ignores_brightness_and_tells_pictures_apart() -> None:
    pictures = np.stack([picture(i) for i in range(50)]).astype(np.float32)
    bits = perceptual_hash(pictures)
    assert (bits == perceptual_hash(pictures * 0.7 + 9)).mean() > 0.999
    apart = (bits[:, None] != bits[None]).sum(2)[np.triu_indices(50, 1)]
    assert apart.min() > 3


@pytest.mark.parametrize("kind", list(Kind))
def test_thumbnails_of_every_kind(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    values = {
        Kind.RGB: png_bytes(np.zeros((9, 5, 3), np.uint8)),
        Kind.GREY: png_bytes(np.zeros((9, 5), np.uint8)),
        Kind.POINTS: npy_bytes(rng.normal(size=(50, 3))),
        Kind.TEXT: ("long " * 99).encode(),
        Kind.VECTOR: npy_bytes(rng.normal(size=30)),
        Kind.REGIONS: npy_bytes(rng.normal(size=(4, 8))),
        Kind.MESH: b"OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n",
    }
    found = thumbnail(values[kind], kind, "x.off" if kind is Kind.MESH else "")
    if kind is Kind.TEXT:
        assert isinstance(found, str)
        assert len(found) == 160
    elif kind is not Kind.REGIONS:
        assert isinstance(found, bytes)
        assert Image.open(io.BytesIO(found)).size == (72, 72)
    assert thumbnail(None, kind, "") == "(absent)"
    if kind is not Kind.TEXT:
        assert "unreadable" in str(thumbnail(b"nonsense", kind, ""))
