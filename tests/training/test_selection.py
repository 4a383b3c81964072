"""Which rows a run learns from: noise files, held-out rows, trust, chosen modalities, other runs' weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from consilience.data.importers import import_table
from consilience.data.loader import Loader
from consilience.data.noise_index import read_noise_index, shuffle_groups, write_noise_index
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.methods.registry import find
from consilience.training.api import NOISE_INDEX, load, train
from consilience.training.config import TrainConfig
from consilience.training.configure import merge, read_yaml
from consilience.training.selection import chosen_modalities, select_rows


@pytest.fixture
def table(tiny_table: Table, tmp_path: Path) -> Table:
    return import_table(tiny_table.path, tmp_path / "table")


def selected(table: Table, **options: object):
    config = TrainConfig(**options)
    return select_rows(table, config, chosen_modalities(table, config), True)


def tiny(name: str):
    content = read_yaml(f"{name}-tiny", "")
    return merge(find(name).cls.Config(), content["method_config"])


def test_noise_is_the_drawn_index_and_reaches_rows_held_out(table):
    plain, noisy = selected(table), selected(table, corrupt=0.5)
    assert not plain.partners
    assert np.array_equal(plain.rows, noisy.rows)
    everything = np.sort(np.concatenate([noisy.rows, noisy.held_out]))
    assert np.array_equal(noisy.noise_index, shuffle_groups(np.arange(len(everything)), 0.5, 0))
    assert set(noisy.partners) == {"image"}
    wanted = dict(zip(everything.tolist(), everything[noisy.noise_index].tolist(), strict=True))
    found = dict(zip(noisy.rows.tolist(), noisy.partners["image"].tolist(), strict=True))
    found |= dict(zip(noisy.held_out.tolist(), noisy.held_out_partners["image"].tolist(), strict=True))
    assert found == wanted
    assert not np.array_equal(noisy.rows, noisy.partners["image"])


def test_a_noise_file_gives_the_same_pairs_as_the_draw_it_was_saved_from(table, tmp_path):
    drawn = selected(table, corrupt=0.4, seed=3)
    file = tmp_path / "tiny_0.4.npy"
    write_noise_index(file, drawn.noise_index)
    read = selected(table, noise_index=str(file), seed=3)
    assert np.array_equal(read.partners["image"], drawn.partners["image"])
    with pytest.raises(InputError, match="one of them"):
        TrainConfig(corrupt=0.1, noise_index=str(file))


def test_a_run_keeps_its_noise_in_the_published_format(table, tmp_path):
    run = train(
        "contrastive", table, tmp_path / "run", config=tiny("contrastive"), train=TrainConfig(corrupt=0.5), quiet=True
    )
    rows = len(table.select("split = 'train'"))
    index = read_noise_index(run.path / NOISE_INDEX, rows, rows, 1)
    assert np.array_equal(index, selected(table, corrupt=0.5).noise_index)


def test_trust_excludes_rows_or_samples_them(table, tmp_path):
    rows = table.select("split = 'train'")
    trust = np.linspace(0, 1, len(rows))
    table.write_columns(table.indices()[rows], {"pair_trust": trust}, {"by": "test"})
    table = Table.open(table.path)
    kept = selected(table, trust="pair_trust", trust_as="exclude", trust_threshold=0.75, validation=0.0)
    assert np.array_equal(kept.rows, rows[trust >= 0.75])
    assert kept.weights is None
    sampled = selected(table, trust="pair_trust", validation=0.0)
    np.testing.assert_allclose(sampled.weights, trust)
    with pytest.raises(InputError, match="lower it"):
        selected(table, trust="pair_trust", trust_as="exclude", trust_threshold=1.0)
    with pytest.raises(InputError, match="did you mean"):
        selected(table, trust="pair_trusts")
    table.write_columns(table.indices()[rows], {"wild": trust * 3}, {"by": "test"})
    with pytest.raises(InputError, match="from 0 to 1"):
        selected(Table.open(table.path), trust="wild")
    part = rows[:5]
    table.write_columns(table.indices()[part], {"some": trust[:5]}, {"by": "test"})
    with pytest.raises(InputError, match="empty in"):
        selected(Table.open(table.path), trust="some")


def test_weighted_epochs_visit_rows_by_their_weight(table):
    rows = table.select("split = 'train'")
    weights = np.full(len(rows), 0.5)
    weights[:6], weights[6:12] = 1.0, 0.0
    decode = find("contrastive").cls(tiny("contrastive"), table.modalities, 4).decode
    loader = Loader(table, rows, decode, 8, seed=0, shuffle=True, weights=weights)
    counts, size = np.zeros(len(rows)), int(weights.sum())
    for epoch in range(200):
        order = loader.order(epoch)
        assert len(order) == size
        assert len(np.unique(order)) == size
        counts[order] += 1
    assert (counts[:6] == 200).all()
    assert (counts[6:12] == 0).all()
    np.testing.assert_allclose(counts[12:] / 200, 0.5, atol=0.15)
    assert loader.steps == -(-size // 8) or loader.steps == size // 8
    seen = torch.cat([batch.index for batch in loader.epoch(3)])
    assert seen.tolist() == loader.order(3)[: len(seen)].tolist()


def test_trained_on_trust_a_run_ignores_rows_of_weight_0(table, tmp_path):
    rows = table.select("split = 'train'")
    trust = np.ones(len(rows))
    trust[::2] = 0
    table.write_columns(table.indices()[rows], {"pair_trust": trust}, {"by": "test"})
    config = TrainConfig(trust="pair_trust", validation=0.0)
    run = train(
        "contrastive", Table.open(table.path), tmp_path / "run", config=tiny("contrastive"), train=config, quiet=True
    )
    assert [r for r in run.folder.records() if "agreement" in r] == []
    assert run.folder.config()["train"]["trust"] == "pair_trust"


def test_a_filter_restricts_training_and_what_is_held_out(table):
    some = selected(table, where="index < 20", corrupt=0.5)
    used = np.concatenate([some.rows, some.held_out])
    assert sorted(table.indices()[used].tolist()) == list(range(20))
    assert len(some.noise_index) == 20
    with pytest.raises(InputError, match="index > 9000"):
        selected(table, where="index > 9000")
    with pytest.raises(InputError, match="does not fit"):
        selected(table, where="nonsense = 3")


def test_modalities_are_chosen_by_name(table):
    assert list(selected(table, modalities="points,image", corrupt=0.5).partners) == ["points"]
    for text, message in (("image,pionts", "points"), ("image,image", "twice")):
        with pytest.raises(InputError, match=message):
            selected(table, modalities=text)


def test_a_run_starts_from_another_ones_networks_and_memories(table, tmp_path):
    config = tiny("pc2")
    none = replace(config, clean_epochs=0, full_epochs=0)
    first = train("pc2", table, tmp_path / "warm", config=none, quiet=True)
    second = train(
        "pc2",
        table,
        tmp_path / "on",
        config=replace(config, warmup_epochs=0, clean_epochs=0, full_epochs=0),
        train=TrainConfig(start=str(first.path), seed=9),
        quiet=True,
    )
    wanted, found = first.method.state_dict(), second.method.state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert load(second.path).method.training is False
    with pytest.raises(InputError, match="is a run of pc2"):
        train(
            "contrastive",
            table,
            tmp_path / "x",
            config=tiny("contrastive"),
            train=TrainConfig(start=str(first.path)),
            quiet=True,
        )
    wide = replace(config, scorer=replace(config.scorer, width=9))
    with pytest.raises(InputError, match="does not fit"):
        train("pc2", table, tmp_path / "y", config=wide, train=TrainConfig(start=str(first.path)), quiet=True)
    assert not (tmp_path / "y" / "config.yaml").exists()
