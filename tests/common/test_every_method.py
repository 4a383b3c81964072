"""The common suite: what any method must do on two modalities, whatever its paper."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from consilience.data.loader import read
from consilience.data.table import Table
from consilience.methods.base import Batch, Method, Progress
from consilience.methods.registry import find
from consilience.training.api import load, resume, train
from consilience.training.configure import build
from consilience.training.loop import Trainer


def fit(tiny: Any, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    run = train(
        tiny.name,
        tiny.table,
        out,
        config=tiny.config,
        train=dataclasses.replace(tiny.train, **options),
        quiet=True,
    )
    return load_file(run.folder.model_file)


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def first_batch(tiny: Any) -> tuple[Any, Batch]:
    torch.manual_seed(0)
    rows = tiny.table.select("split = 'train'")
    method = find(tiny.name).cls(tiny.config, tiny.modalities, len(rows))
    names = tuple(method.modalities)
    batch = next(read(tiny.table, rows, method.decode, 12, modalities=names, targets=method.targets))
    return method, batch


def test_losses_are_named_finite_and_reach_what_the_phase_trains(tiny):
    method, batch = first_batch(tiny)
    for number, phase in enumerate(method.phases()):
        method.zero_grad()
        losses = method.step(batch, Progress(number, phase.name, 0, 0.5, 0))
        assert losses
        assert all(value.shape == () and torch.isfinite(value) for value in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        reached = [p.grad is not None for module in method.trained(phase.name) for p in module.parameters()]
        assert all(reached)


def test_batches_carry_no_labels_but_declared_targets(tiny):
    assert {field.name for field in dataclasses.fields(Batch)} == {"index", "values", "present", "targets"}
    method, batch = first_batch(tiny)
    assert set(batch.targets) == set(method.targets)
    assert tiny.name == "finetune" or "label" not in batch.targets  # the one classifier


def test_same_seed_same_bits_other_seed_other_bits(tiny, tmp_path):
    first = fit(tiny, tmp_path / "a")
    assert same_bits(first, fit(tiny, tmp_path / "b"))
    assert not same_bits(first, fit(tiny, tmp_path / "c", seed=1))


def test_permuting_all_training_labels_changes_nothing(tiny, tmp_path):
    """Bit for bit: no label can reach the weights, the choice of the epoch or the pseudo-labels."""
    told = find(tiny.name).cls.targets
    if "label" in told:
        pytest.skip("a classifier learns from labels")
    first = fit(tiny, tmp_path / "a")
    beliefs = [name for name in tiny.table.columns if name not in ("id", "index", "split", "label", *told)]
    before = {name: tiny.table.column(name) for name in beliefs}
    other = tmp_path / "permuted"
    shutil.copytree(tiny.path, other)
    data = lance.dataset(str(other / "samples.lance"))
    rows = data.to_table(columns=["index", "label"])
    shuffled = np.random.default_rng(0).permutation(rows["label"].to_pylist())
    changed = pa.table({"index": rows["index"], "label": pa.array(shuffled)})
    data.merge_insert("index").when_matched_update_all().execute(changed)
    tiny.path = other
    assert tiny.table.labels()[0].tolist() != Table.open(tmp_path / "table").labels()[0].tolist()
    assert same_bits(first, fit(tiny, tmp_path / "b"))
    for name, values in before.items():
        np.testing.assert_array_equal(values, tiny.table.column(name))


class Killed(BaseException):
    """Stands for a kill: nothing is saved when it is raised."""


def steps_to_die_at(tiny: Any) -> list[tuple[str, int]]:
    method, _ = first_batch(tiny)
    per_epoch = 4  # 44 rows (48 less a tenth) in batches of 12
    total, places = 0, []
    for phase in method.phases():
        for offset in {1, per_epoch - 1, phase.epochs * per_epoch - 1}:
            if 0 < offset < phase.epochs * per_epoch:
                places.append((phase.name, total + offset))
        total += phase.epochs * per_epoch
    return places


def test_killed_anywhere_and_resumed_gives_the_same_bits(tiny, tmp_path, monkeypatch):
    """A kill in the middle of every phase, before and after checkpoints, and between finish and checkpoint."""
    expected = fit(tiny, tmp_path / "whole")
    log = (tmp_path / "whole" / "log.jsonl").read_text()
    original = Trainer._report
    for name, step in steps_to_die_at(tiny):
        out = tmp_path / f"killed-{step}"

        def report(self: Trainer, *rest: Any, at: int = step) -> None:
            if self.position.step == at:
                raise Killed
            original(self, *rest)

        monkeypatch.setattr(Trainer, "_report", report)
        with pytest.raises(Killed):
            fit(tiny, out)
        assert not (out / "model.safetensors").exists(), name
        monkeypatch.setattr(Trainer, "_report", original)
        resume(out, quiet=True)
        assert same_bits(expected, load_file(out / "model.safetensors")), f"{name}, step {step}"
        assert (out / "log.jsonl").read_text() == log
    if find(tiny.name).cls.finish is Method.finish:  # it believes nothing of its samples
        return
    write = Trainer._write_beliefs

    def write_and_die(self: Trainer, *rest: Any) -> None:
        write(self, *rest)
        raise Killed

    monkeypatch.setattr(Trainer, "_write_beliefs", write_and_die)
    out = tmp_path / "killed-after-beliefs"
    with pytest.raises(Killed):
        fit(tiny, out)
    monkeypatch.setattr(Trainer, "_write_beliefs", write)
    resume(out, quiet=True)
    assert same_bits(expected, load_file(out / "model.safetensors"))


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"accumulate": 2, "clip_norm": 0.5}, {"select": "last"}])
def test_options_run_and_stay_finite(tiny, tmp_path, options):
    state = fit(tiny, tmp_path / "a", **options)
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())


def test_bf16_is_close_to_fp32_but_not_equal(tiny):
    method, batch = first_batch(tiny)
    progress = Progress(0, method.phases()[0].name, 0, 0.0, 0)
    exact = torch.stack(list(method.step(batch, progress).values())).sum().item()
    with torch.autocast("cpu", torch.bfloat16):
        rough = torch.stack(list(method.step(batch, progress).values())).sum().item()
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.05)


def test_vectors_do_not_depend_on_the_batch(tiny):
    method, batch = first_batch(tiny)
    method.eval()
    for name in method.modalities:
        whole = method.encode(batch, name)
        part = Batch(batch.index[:3], {name: batch.values[name][:3]}, {name: batch.present[name][:3]})
        torch.testing.assert_close(method.encode(part, name), whole[:3], atol=1e-5, rtol=1e-4)


def test_configuration_survives_yaml_and_load_gives_the_trained_method(tiny, tmp_path):
    state = fit(tiny, tmp_path / "a")
    run = load(tmp_path / "a")
    assert build(type(tiny.config), run.folder.config()["method_config"]) == tiny.config
    assert same_bits(state, dict(run.method.state_dict()))
    assert not run.method.training


def test_accumulated_gradients_are_those_of_the_sum(tiny, tmp_path):
    """Two batches accumulated differ from two steps (the option does something)."""
    assert not same_bits(fit(tiny, tmp_path / "a"), fit(tiny, tmp_path / "b", accumulate=2))
