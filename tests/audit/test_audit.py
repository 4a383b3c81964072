"""The audit as a whole, from Python: what is written, reused and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from consilience.audit.api import audit
from consilience.audit.learn import judge_of, train_judges, views_of
from consilience.data.importers import import_table
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.heads.matching import ScorerConfig
from consilience.methods.contrastive import ContrastiveConfig
from consilience.training.api import train
from consilience.training.config import TrainConfig
from consilience.training.loop import Trainer

CONFIG = ContrastiveConfig(scorer=ScorerConfig(width=8), epochs=1, batch_size=12)
OPTIONS = TrainConfig(validation=0.0, select="last", device="cpu", threads=1)


@pytest.fixture
def table(tiny_table: Table, tmp_path: Path) -> Table:
    return import_table(tiny_table.path, tmp_path / "table")


def call(table: Table, out: Path, **more: object) -> dict[str, object]:
    chosen = {
        "train": True,
        "method": "contrastive",
        "config": CONFIG,
        "options": OPTIONS,
        "folds": 2,
        "quiet": True,
    } | more
    return audit(table, out, **chosen)  # type: ignore[arg-type]


def test_folds_judge_what_they_have_not_learnt(table: Table, tmp_path: Path) -> None:
    judges = train_judges(
        table, tmp_path, method="contrastive", config=CONFIG, options=OPTIONS, folds=3, where=None, quiet=True
    )
    train_keys = set(table.indices()[table.select("split = 'train'")].tolist())
    learnt = [set(judge.learnt.tolist()) for judge in judges]
    assert [len(part) for part in learnt] == [32, 32, 32]
    assert all(sum(key in part for part in learnt) == 2 for key in train_keys)
    assert all(judge.run.method.samples == 32 for judge in judges)
    rows = table.select()
    views = views_of(judges, Table.open(table.path), rows)
    index = table.indices()[rows]
    assert sorted(np.concatenate([part.positions for part in views.judged]).tolist()) == list(range(len(rows)))
    assert [(len(part.positions), part.seen, part.sample) for part in views.judged] == [
        (12, False, "held out"), *[(16, False, "train")] * 3,
    ]  # fmt: skip
    for part in views.judged[1:]:
        keys = set(index[part.positions].tolist())
        (own,) = [k for k in range(3) if not keys & learnt[k]]
        assert all(keys <= learnt[k] for k in range(3) if k != own)
        assert part.graph.vectors["image"].shape[1] * 3 == views.graph.vectors["image"].shape[1]


def test_a_run_that_learnt_from_the_table_has_seen_its_pairs(table: Table, tmp_path: Path) -> None:
    run = train("contrastive", table, tmp_path / "run", config=CONFIG, train=OPTIONS, quiet=True)
    views = views_of([judge_of(run, table)], table, table.select())
    assert {(part.seen, part.sample, len(part.positions)) for part in views.judged} == {
        (True, "train", 48), (False, "held out", 12),
    }  # fmt: skip


def test_small_data_are_cut_into_five_folds(table: Table, tmp_path: Path) -> None:
    found = call(table, tmp_path / "out", folds=0)
    assert [Path(run).name for run in found["runs"]] == [f"run-{number}-of-5" for number in range(1, 6)]


def test_nothing_is_trained_twice_and_a_kill_changes_nothing(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = call(table, tmp_path / "whole", corrupt=0.4)
    trust = Table.open(tmp_path / "whole/table").column("pair_trust")

    steps, original = [], Trainer._epoch

    def dying(self: Trainer, *words: object) -> None:
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        original(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_epoch", dying)
    with pytest.raises(KeyboardInterrupt):
        call(table, tmp_path / "killed", corrupt=0.4)
    assert not (tmp_path / "killed/audit.json").exists()
    again = call(table, tmp_path / "killed", corrupt=0.4)
    assert len(steps) == 3  # one epoch of either fold, one of them tried twice
    np.testing.assert_array_equal(trust, Table.open(tmp_path / "killed/table").column("pair_trust"))
    assert again["auroc"] == whole["auroc"]
    call(table, tmp_path / "killed", corrupt=0.4)
    assert len(steps) == 3
    with pytest.raises(InputError, match="other planted faults"):
        call(table, tmp_path / "killed", corrupt=0.3)
    with pytest.raises(InputError, match="other options or data"):
        call(table, tmp_path / "killed", corrupt=0.4, config=ContrastiveConfig(epochs=2))


def test_only_the_rows_asked_for_get_values(table: Table, tmp_path: Path) -> None:
    found = call(table, tmp_path / "out", where="split = 'train' and index < 40", only=["pair_mismatch"])
    table = Table.open(table.path)
    assert found["rows"] == 40
    values = table.take(table.select(), ["pair_trust", "suspicion", "audit_learn_0"])
    assert values["pair_trust"].null_count == values["suspicion"].null_count == 20
    assert values["audit_learn_0"].to_pylist()[40:48] == [0.0] * 8
    assert set(table.provenance("pair_trust") or {}) == {"audit", "runs", "seed", "commit"}
    assert json.loads((tmp_path / "out/audit.json").read_text())["rows"] == 40
    again = train(
        "contrastive",
        import_table(table.path, tmp_path / "second"),
        tmp_path / "plain",
        config=CONFIG,
        train=OPTIONS,
        quiet=True,
    )
    assert again.method.samples == 48


def test_trust_can_be_trained_with(table: Table, tmp_path: Path) -> None:
    learnt = ContrastiveConfig(scorer=ScorerConfig(width=8), epochs=20, batch_size=24)
    call(table, tmp_path / "out", only=["pair_mismatch"], folds=1, config=learnt)
    options = TrainConfig(validation=0.0, select="last", device="cpu", threads=1, trust="pair_trust")
    run = train("contrastive", Table.open(table.path), tmp_path / "run", config=CONFIG, train=options, quiet=True)
    assert run.method.samples == 48
