"""Decisions about suspicious pairs: durable line by line, undone in order, and columns that training reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from consilience.data.importers import import_table
from consilience.data.review import JOURNAL, Review
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.training.config import TrainConfig
from consilience.training.selection import select_rows


@pytest.fixture
def audited(tiny_table: Table, tmp_path: Path) -> Table:
    """A copy of the tiny table with five suspects of different trust."""
    table = import_table(tiny_table.path, tmp_path / "table")
    keys = np.arange(60, dtype=np.int64)
    suspicion = ["" if key not in (3, 5, 8, 13, 21) else "mismatched pair" for key in keys]
    trust = np.linspace(0.9, 0.95, 60)
    trust[[3, 5, 8, 13]] = (0.4, 0.1, 0.3, 0.2)
    better = np.full(60, -1)
    better[[5, 13]] = (13, 5)
    table.write_columns(
        keys,
        {
            "suspicion": pa.array(suspicion),
            "pair_trust": pa.array(trust.tolist(), mask=keys == 21),
            "better_points": better,
        },
        {"audit": ["made by hand"]},
    )
    return Table.open(table.path)


def test_least_trusted_first_and_unjudged_last(audited: Table) -> None:
    queue = Review.open(audited).queue()
    assert [suspect.index for suspect in queue] == [5, 13, 8, 3, 21]
    assert [suspect.better for suspect in queue] == [13, 5, None, None, None]
    assert queue[-1].trust is None
    assert [suspect.index for suspect in Review.open(audited).queue(2, 1)] == [13, 8]


def test_decisions_survive_and_are_undone_in_order(audited: Table) -> None:
    review = Review.open(audited)
    review.decide(5, "re-pair")
    review.decide(8, "drop")
    review.decide(8, "keep")
    again = Review.open(audited)
    assert {s.index: s.decision for s in again.queue()} == {5: "re-pair", 13: None, 8: "keep", 3: None, 21: None}
    undone = again.undo()
    assert undone is not None
    assert (undone.index, undone.decision) == (8, "drop")
    undone = again.undo()
    assert undone is not None
    assert (undone.index, undone.decision) == (8, None)
    assert again.counts() == {"keep": 0, "drop": 0, "re-pair": 1, "suspects": 5, "open": 4}
    again.undo()
    assert again.undo() is None
    assert [s.decision for s in Review.open(audited).queue()] == [None] * 5


def test_columns_hold_what_stands(audited: Table) -> None:
    review = Review.open(audited)
    review.decide(5, "re-pair")
    review.decide(3, "drop")
    review.decide(13, "keep")
    review.undo()
    review.settle()
    table = Table.open(audited.path)
    rows = table.take(table.select("review is not null"), ["index", "review", "review_partner"]).to_pylist()
    assert rows == [
        {"index": 3, "review": "drop", "review_partner": None},
        {"index": 5, "review": "re-pair", "review_partner": 13},
    ]
    version = table.version
    Review.open(table).settle()
    assert Table.open(audited.path).version == version
    review.undo()
    review.settle()
    assert Table.open(audited.path).select("review = 'drop'").size == 0


def test_a_torn_line_is_left_out_and_written_over(audited: Table) -> None:
    Review.open(audited).decide(5, "drop")
    journal = audited.path / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"index": 8, "deci')
    review = Review.open(audited)
    assert review.counts()["drop"] == 1
    review.decide(13, "keep")
    assert Review.open(audited).counts() == {"keep": 1, "drop": 1, "re-pair": 0, "suspects": 5, "open": 3}


def test_acknowledged_decisions_survive_kill(audited: Table, tmp_path: Path) -> None:
    code = """
import sys
from consilience.data.review import Review
from consilience.data.table import Table
review = Review.open(Table.open(sys.argv[1]))
while True:
    for index in range(48):
        review.decide(index, "drop")
        print(index, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(audited.path)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    heard = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    heard += [int(line) for line in process.stdout.read().split("\n") if line]
    process.wait()
    assert set(heard) <= set(Review.open(audited)._made)


@pytest.mark.parametrize(
    ("index", "decision", "partner", "words"),
    [
        (5, "dorp", None, "did you mean 'drop'"),
        (999, "drop", None, "no row with index 999"),
        (8, "re-pair", None, "no better partner"),
        (8, "re-pair", 8, "its own"),
        (8, "re-pair", 999, "no row with index 999"),
        (8, "keep", 5, "takes no partner"),
    ],
)
def test_refusals_write_nothing(audited: Table, index: int, decision: str, partner: int | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Review.open(audited).decide(index, decision, partner)
    assert not (audited.path / JOURNAL).exists()


def test_a_foreign_journal_is_named(audited: Table) -> None:
    (audited.path / JOURNAL).write_text('{"index": 5, "decision": "drop", "partner": null}\n{"index": 5}\n')
    with pytest.raises(InputError, match="line 2 is no decision"):
        Review.open(audited)


def test_training_reads_the_columns(audited: Table) -> None:
    review = Review.open(audited)
    review.decide(5, "re-pair")
    review.decide(3, "drop")
    review.decide(8, "keep")
    review.settle()
    table = Table.open(audited.path)
    config = TrainConfig(review=True, validation=0.0, trust="pair_trust", trust_as="exclude", where="index != 21")
    found = select_rows(table, config, table.modalities, True)
    keys = table.indices()[found.rows]
    # 3 was dropped, 5 has a new partner and 8 is kept whatever the audit thinks; 13 is distrusted and undecided.
    assert keys.tolist() == [key for key in range(48) if key not in (3, 13, 21)]
    mates = table.indices()[found.partners["points"]]
    assert mates.tolist() == [13 if key == 5 else key for key in keys]
    plain = select_rows(table, TrainConfig(validation=0.0), table.modalities, True)
    assert len(plain.rows) == 48
    assert not plain.partners


def test_training_wants_decisions_and_partners_that_exist(audited: Table, tiny_table: Table) -> None:
    with pytest.raises(InputError, match="no column review"):
        select_rows(tiny_table, TrainConfig(review=True), tiny_table.modalities, True)
    with pytest.raises(InputError, match=r"--train\.corrupt"):
        TrainConfig(review=True, corrupt=0.2)
