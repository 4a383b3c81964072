"""``evaluate`` on small trained runs: pairs, ensembles, folds, group relevance, data without labels, injected noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score

from consilience.benchmarks import matching as benchmark
from consilience.data.schema import Kind
from consilience.data.table import Row, Table
from consilience.encoders.build import EncoderConfig
from consilience.errors import InputError
from consilience.evaluation.evaluate import evaluate
from consilience.evaluation.matching import matching
from consilience.evaluation.scoring import Represented
from consilience.heads.matching import ScorerConfig
from consilience.methods.contrastive import ContrastiveConfig
from consilience.methods.ncr import NCRConfig
from consilience.training.api import Run, train
from consilience.training.config import TrainConfig
from consilience.training.passes import encode_rows

SIZES = {"vector_width": 4, "max_tokens": 8, "tokenizer": "bytes"}
KINDS = {"image": Kind.VECTOR, "text": Kind.TEXT}
ENCODERS = EncoderConfig(text="words", **SIZES)  # type: ignore[arg-type]


def row(i: int, split: str, text: str, group: int | None = None, label: str | None = None) -> Row:
    import io

    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(i if group is None else group).normal(size=4).astype(np.float32))
    values = {"image": stream.getvalue(), "text": text.encode()}
    scalars = {} if group is None else {"group": group}
    return Row(f"{split}-{i}", split, values, dict.fromkeys(values, "made"), label, scalars)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """40 training and 16 test pairs without labels; two test captions are the same."""
    rows = [row(i, "train", f"n{i}") for i in range(40)]
    rows += [row(i + 40, "test", "twice" if i < 2 else f"m{i}") for i in range(16)]
    return Table.create(tmp_path_factory.mktemp("plain") / "table", rows, KINDS, "made", sizes=SIZES)


@pytest.fixture(scope="module")
def runs(plain: Table, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    place = tmp_path_factory.mktemp("runs")
    config = ContrastiveConfig(scorer=ScorerConfig(width=8), encoders=ENCODERS, networks=1, epochs=1, batch_size=20)
    return [
        train("contrastive", plain, place / str(seed), config=config, train=TrainConfig(seed=seed), quiet=True)
        for seed in range(2)
    ]


def scores_of(run: Run, where: str = "split = 'test'") -> torch.Tensor:
    rows = run.table.select(where)
    seen = encode_rows(run.method, run.table, rows, torch.device("cpu"), represent=True).vectors
    return run.method.score(seen["image"], seen["text"], ("image", "text"))


def test_pairs_without_labels(runs: list[Run]) -> None:
    found = evaluate(runs[0])
    expected = matching(scores_of(runs[0]), torch.arange(16))
    assert set(found) == {"rows", "where", "pairs", "rsum"}
    assert found["rsum"] == found["pairs"]["rsum"] == pytest.approx(expected.rsum)
    for name, ranks in expected.recall.items():
        assert [found["pairs"][name][f"r{k}"] for k in (1, 5, 10)] == pytest.approx(list(ranks.values()))
    assert (found["pairs"]["images"], found["pairs"]["captions"]) == (16, 16)
    assert found["pairs"]["ceiling"] == pytest.approx({"r1": 100 * 15 / 16, "r5": 100, "r10": 100})
    low, high = found["pairs"]["ci95"]
    assert low < found["rsum"] < high


def test_group_relevance_folds_and_ties(runs: list[Run]) -> None:
    scores, copies = scores_of(runs[0]), torch.tensor([0, 0, *range(2, 16)])
    grouped = evaluate(runs[0], relevance="group")
    assert grouped["rsum"] == pytest.approx(matching(scores, torch.arange(16), copies=copies).rsum)
    assert "ceiling" not in grouped["pairs"]
    worst = evaluate(runs[0], ties="pessimistic")
    assert worst["rsum"] == pytest.approx(matching(scores, torch.arange(16), ties="pessimistic").rsum)
    quarters = [matching(scores[i : i + 4, i : i + 4].contiguous(), torch.arange(4)).rsum for i in range(0, 16, 4)]
    assert evaluate(runs[0], folds=4)["rsum"] == pytest.approx(np.mean(quarters))


def test_an_ensemble_averages_scores(runs: list[Run]) -> None:
    mean = (scores_of(runs[0]) + scores_of(runs[1])) / 2
    assert evaluate(runs)["rsum"] == pytest.approx(matching(mean, torch.arange(16)).rsum)
    assert evaluate([runs[0]])["rsum"] == evaluate(runs[0])["rsum"]


def test_an_ensemble_by_class_averages_cosines(tiny_table: Table, tmp_path: Path) -> None:
    config = ContrastiveConfig(scorer=ScorerConfig(width=8), networks=1, epochs=1, batch_size=24)
    runs = [
        train("contrastive", tiny_table, tmp_path / str(seed), config=config, train=TrainConfig(seed=seed), quiet=True)
        for seed in range(2)
    ]
    alone, both = evaluate(runs[0]), evaluate(runs)
    assert set(alone) >= {"directions", "mean_map", "pairs", "rsum", "pseudo_labels"}
    assert evaluate([runs[0], runs[0]])["mean_map"] == pytest.approx(alone["mean_map"])
    assert both["mean_map"] != alone["mean_map"]
    other = Table.create(tmp_path / "other", [row(0, "test", "x")], KINDS, "made", sizes=SIZES)
    with pytest.raises(InputError, match="learnt from different tables"):
        evaluate([runs[0], replace(runs[1], table=other)])


def test_five_captions_count_as_one_image(tmp_path: Path, runs: list[Run]) -> None:
    rows = [row(i, "test", f"t{i}", group=i // 5) for i in range(30)]
    table = Table.create(tmp_path / "five", rows, KINDS, "made", scalars={"group": pa.int64()}, sizes=SIZES)
    run = replace(runs[0], table=table)
    found = evaluate(run)["pairs"]
    assert (found["images"], found["captions"]) == (6, 30)
    expected = matching(scores_of(run)[::5].contiguous(), torch.arange(30) // 5)
    assert found["rsum"] == pytest.approx(expected.rsum)


def test_rows_that_lack_a_modality_are_no_pairs(tmp_path: Path, runs: list[Run]) -> None:
    rows = [row(i, "test", f"t{i}") for i in range(6)]
    rows += [replace(row(9, "test", "t"), values={"text": b"alone"})]
    table = Table.create(tmp_path / "lacking", rows, KINDS, "made", sizes=SIZES)
    assert evaluate(replace(runs[0], table=table))["pairs"]["images"] == 6
    with pytest.raises(InputError, match="nothing to judge"):
        evaluate(replace(runs[0], table=table), where="id = 'test-9'")
    with pytest.raises(InputError, match="name a split that exists"):
        evaluate(runs[0], where="split = 'tset'")


def test_beliefs_are_held_against_the_injected_noise(plain: Table, tmp_path: Path) -> None:
    table = Table.create(tmp_path / "copy", _again(plain), KINDS, "made", sizes=SIZES)
    config = NCRConfig(
        scorer=ScorerConfig(width=8), encoders=ENCODERS,
        warmup_epochs=1, clean_epochs=1, full_epochs=0, batch_size=20,
    )  # fmt: skip
    run = train("ncr", table, tmp_path / "run", config=config, train=TrainConfig(corrupt=0.5), quiet=True)
    found = evaluate(run)["noise"]
    rows = run.table.select("split = 'train'")
    wrong = np.load(run.path / "noise_index.npy") != np.arange(40)
    listed: Any = run.table.take(rows, ["clean_probability"])["clean_probability"].to_pylist()
    known = np.array([p is not None for p in listed])
    doubt = np.array([1 - p for p in listed if p is not None])
    assert found["pairs"] == known.sum() == 36
    assert found["auroc"] == pytest.approx(roc_auc_score(wrong[known], doubt))
    assert found["noise_ratio"] == pytest.approx(doubt.mean())
    assert found["share_below_half"] == pytest.approx((doubt > 0.5).mean())
    assert found["true_noise_ratio"] == pytest.approx(wrong[known].mean())
    keys = run.table.indices()[rows]
    run.table.write_columns(keys, {"clean_probability": 1.0 - wrong}, {"run": str(run.path.resolve())})
    perfect = evaluate(run)["noise"]
    assert (perfect["auroc"], perfect["average_precision"]) == (1, 1)
    assert perfect["noise_ratio"] == perfect["share_below_half"] == perfect["true_noise_ratio"]
    run.table.write_columns(keys, {"clean_probability": 1.0 - wrong}, {"run": "/another/run"})
    assert "noise" not in evaluate(run)


def _again(table: Table) -> list[Row]:
    listed = table.take(table.select(), ["id", "split", "image", "text"]).to_pylist()
    return [
        Row(x["id"], x["split"], {"image": x["image"], "text": x["text"]}, {"image": "made", "text": "made"})
        for x in listed
    ]


def test_a_slice_of_represented_rows_may_be_empty(runs: list[Run]) -> None:
    rows = runs[0].table.select("split = 'test'")
    side = Represented(runs[0].method, runs[0].table, rows, "text")
    assert side[3:5].shape == (2, 8)
    assert len(side[16:]) == 0


def test_the_benchmark_compares_equal_work() -> None:
    found = benchmark.run(repeats=1, embed=16, images=60)
    assert set(found["ratios"]) == {"ranks", "shards"}
    assert found["megabytes"]["loop"] > 2 * found["megabytes"]["ours"]
    with pytest.raises(InputError, match="at least 1"):
        benchmark.run(repeats=0)
