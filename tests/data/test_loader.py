from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience.data.decode import DecodeConfig, decode_batch
from consilience.data.loader import Loader, read
from consilience.data.schema import Batch
from consilience.data.table import Row, Table
from consilience.errors import InputError

from .conftest import KINDS, make_rows

DECODE = DecodeConfig(image_size=8, n_points=16)


def make(table: Table, batch_size: int = 8, **options: object) -> Loader:
    arguments: dict[str, object] = {"seed": 3, "shuffle": True} | options
    return Loader(table, table.select(), DECODE, batch_size, **arguments)  # type: ignore[arg-type]


def assert_same(left: Iterable[Batch], right: Iterable[Batch]) -> None:
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.index, b.index)
        assert list(a.values) == list(b.values)
        for name in a.values:
            assert torch.equal(a.values[name], b.values[name])
            assert torch.equal(a.present[name], b.present[name])


def join(parts: list[Batch]) -> Batch:
    return Batch(
        torch.cat([part.index for part in parts]),
        {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values},
        {name: torch.cat([part.present[name] for part in parts]) for name in parts[0].values},
    )


def test_an_epoch_visits_every_row_once_with_its_own_contents(table: Table) -> None:
    loader = make(table)
    assert (loader.steps, len(loader)) == (5, 37)
    batches = list(loader.epoch(0))
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 5]
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == list(range(37))
    assert index.tolist() == loader.order(0).tolist()
    columns = ["id", "image", "origin_image", "points", "origin_points"]
    for batch in batches:
        values, present = decode_batch(table.take(batch.index.numpy(), columns), KINDS, DECODE)
        for name in KINDS:
            assert torch.equal(batch.values[name], values[name])
            assert torch.equal(batch.present[name], present[name])
    missing = join(batches)
    assert missing.index[~missing.present["points"]].tolist() == [5]
    assert missing.present["image"].all()


def test_order_is_a_function_of_seed_and_epoch(table: Table) -> None:
    loader = make(table)
    assert loader.order(1).tolist() == make(table, 4, rank=1, world=2).order(1).tolist()
    different = [loader.order(0), loader.order(1), make(table, seed=4).order(0), make(table, seed=4).order(1)]
    assert len({tuple(order) for order in different}) == 4
    assert make(table, shuffle=False).order(7).tolist() == list(range(37))
    # Pinned: a checkpoint of today must resume tomorrow.
    assert loader.order(0)[:8].tolist() == [25, 8, 30, 14, 10, 21, 35, 27]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("batch_size", [8, 9])
def test_ranks_split_the_same_global_batches(table: Table, world: int, batch_size: int) -> None:
    alone = make(table, batch_size)
    ranks = [make(table, batch_size, rank=rank, world=world) for rank in range(world)]
    steps = min(loader.steps for loader in ranks)
    assert steps >= alone.steps - 1
    parts = [list(loader.epoch(2)) for loader in ranks]
    assert_same((join(list(rows)) for rows in zip(*parts, strict=True)), list(alone.epoch(2))[:steps])
    assert all(len(batch) >= 2 for part in parts for batch in part)


def test_resuming_inside_an_epoch_is_exact(table: Table) -> None:
    whole = list(make(table).epoch(4))
    for step in range(6):
        assert_same(make(table).epoch(4, start_step=step), whole[step:])
    with pytest.raises(InputError, match="5 steps"):
        list(make(table).epoch(0, start_step=6))


def test_the_last_batch_rule(table: Table) -> None:
    assert [len(b) for b in make(table, 12).epoch(0)] == [12, 12, 12]
    assert [len(b) for b in make(table, 35).epoch(0)] == [35, 2]
    assert [len(b) for b in make(table, 34, world=2).epoch(0)] == [17]
    assert [len(b) for b in make(table, 16, drop_last=True).epoch(0)] == [16, 16]
    assert [len(b) for b in make(table, 64).epoch(0)] == [37]
    with pytest.raises(InputError, match="37 rows make no batch of 64"):
        make(table, 64, drop_last=True)


@given(
    n=st.integers(2, 37),
    batch=st.integers(2, 40),
    world=st.integers(1, 4),
    epoch=st.integers(0, 9),
    drop=st.booleans(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sizes_give_equal_steps_on_every_rank(
    table: Table, n: int, batch: int, world: int, epoch: int, drop: bool
) -> None:
    rest = n % batch
    steps = n // batch + (rest >= 2 * world and not drop)
    rows = table.select()[:n]

    def loader(rank: int) -> Loader:
        options = {"seed": 0, "shuffle": True, "rank": rank, "world": world, "drop_last": drop}
        return Loader(table, rows, DECODE, batch, **options)  # type: ignore[arg-type]

    if batch < 2 * world or not steps:
        with pytest.raises(InputError):
            loader(0)
        return
    indices = [[b.index for b in loader(rank).epoch(epoch)] for rank in range(world)]
    assert all(len(part) == steps for part in indices)
    seen = torch.cat([torch.cat(parts) for parts in zip(*indices, strict=True)])
    assert seen.tolist() == loader(0).order(epoch)[: len(seen)].tolist()
    assert len(seen) == min(n, steps * batch)
    assert all(len(b) >= 2 for part in indices for b in part)


def test_the_cache_is_exact_and_spares_the_decoding(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make(table, cache=False)
    cached = make(table, cache=True)
    calls: list[int] = []
    monkeypatch.setattr(
        "consilience.data.loader.decode_batch",
        lambda rows, *rest: calls.append(rows.num_rows) or decode_batch(rows, *rest),
    )
    list(cached.epoch(0, start_step=3))
    for epoch in range(3):
        assert_same(cached.epoch(epoch), plain.epoch(epoch))
    calls.clear()
    list(cached.epoch(9))
    assert calls == []
    batch = next(iter(cached.epoch(1)))
    batch.values["image"].zero_()
    assert_same(cached.epoch(1), plain.epoch(1))


def test_rows_are_addressed_by_their_position(table: Table) -> None:
    rows = table.select("split = 'test'")
    loader = Loader(table, rows, DECODE, 4, seed=0, shuffle=True)
    ids = table.column("id")
    for batch in loader.epoch(0):
        assert int(batch.index.max()) < 9
        again = next(read(table, rows[batch.index.numpy()], DECODE, 9))
        assert torch.equal(again.values["image"], batch.values["image"])
    assert ids[rows[0]] == "s3"


def test_read_goes_in_order_and_keeps_every_row(table: Table) -> None:
    rows = table.select()[::-1]
    batches = list(read(table, rows, DECODE, 10))
    assert [len(batch) for batch in batches] == [10, 10, 10, 7]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(37))
    whole = next(read(table, table.select(), DECODE, 64))
    assert torch.equal(join(batches).values["image"], whole.values["image"].flip(0))
    only = next(read(table, rows, DECODE, 2, modalities=("points",)))
    assert list(only.values) == list(only.present) == ["points"]
    with pytest.raises(InputError, match="batch_size"):
        next(read(table, rows, DECODE, 0))


def test_partners_replace_one_modality(table: Table) -> None:
    rows = table.select()
    partners = np.roll(rows, 1)
    mixed = list(make(table, shuffle=False, partners={"points": partners}).epoch(0))
    true = join(list(make(table, shuffle=False).epoch(0)))
    assert torch.equal(join(mixed).values["image"], true.values["image"])
    assert torch.equal(join(mixed).values["points"], true.values["points"].roll(1, 0))
    assert torch.equal(join(mixed).present["points"], true.present["points"].roll(1, 0))
    assert list(mixed[0].values) == ["image", "points"]
    same = next(read(table, rows, DECODE, 37, partners={"points": partners}))
    assert torch.equal(same.values["points"], join(mixed).values["points"])
    with pytest.raises(InputError, match="one for each of 37"):
        make(table, partners={"points": partners[:5]})
    with pytest.raises(InputError, match="did you mean 'points'"):
        make(table, partners={"point": partners})


def test_labels_are_never_read(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = Table.take

    def spy(self: Table, offsets: np.ndarray, columns: list[str]) -> object:
        asked.extend(columns)
        return original(self, offsets, columns)

    monkeypatch.setattr(Table, "take", spy)
    batches = list(make(table, cache=False).epoch(0))
    monkeypatch.undo()
    assert set(asked) == {"id", "image", "origin_image", "points", "origin_points"}
    rng = np.random.default_rng(0)
    lied = [Row(r.id, r.split, r.values, r.origins, str(rng.integers(99))) for r in make_rows(37, missing=(5,))]
    other = Table.create(tmp_path / "lied", lied, KINDS, "s")
    assert_same(make(other).epoch(0), batches)


def test_bad_requests(table: Table) -> None:
    for options, words in (
        ({"batch_size": 1}, "at least 2"),
        ({"batch_size": 3, "world": 2}, "at least 4"),
        ({"rank": 2, "world": 2}, "rank 2"),
        ({"seed": -1}, "seed -1"),
        ({"modalities": ("imgae",)}, "did you mean 'image'"),
    ):
        with pytest.raises(InputError, match=words):
            make(table, **options)  # type: ignore[arg-type]


def test_an_unreadable_sample_stops_with_its_name_and_no_thread_stays(tmp_path: Path) -> None:
    rows = list(make_rows(12))
    rows[7] = Row("torn", "train", {"image": b"\x89PNG\r\n\x1a\n", "points": None}, {"image": "torn.png"})
    table = Table.create(tmp_path / "t", rows, KINDS, "s")
    with pytest.raises(InputError, match=r"sample 'torn', image from torn\.png"):
        list(make(table, 4).epoch(0))
    with pytest.raises(InputError, match="torn"):
        list(read(table, table.select(), DECODE, 4))
    assert not [thread for thread in threading.enumerate() if thread.name == "consilience-loader"]


def test_leaving_an_epoch_early_stops_its_thread(table: Table) -> None:
    epoch = make(table, 4).epoch(0)
    next(epoch)
    epoch.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "consilience-loader"]


def test_worker_processes_give_the_same_batches(table: Table) -> None:
    alone = make(table, cache=False)
    workers = make(table, workers=2, cache=True)
    assert_same(workers.epoch(0, start_step=2), list(alone.epoch(0))[2:])
    early = workers.epoch(1)
    next(early)
    early.close()  # type: ignore[attr-defined]
    assert workers._cache is not None
    assert not workers._cache.holds([workers.order(0)])
    assert_same(workers.epoch(2), alone.epoch(2))
    assert workers._cache.holds([workers.order(0)])
    assert_same(workers.epoch(3), alone.epoch(3))
