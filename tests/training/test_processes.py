"""Real processes: two gloo ranks against one, kill -9, Ctrl-C."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from consilience.data.importers import import_table
from consilience.data.table import Table
from consilience.methods.base import Optimiser
from consilience.methods.romo import RoMo, RoMoConfig
from consilience.training.api import resume, train
from consilience.training.config import TrainConfig
from consilience.training.configure import merge, read_yaml
from consilience.training.run import plain_values

SGD = {"name": "sgd", "lr": 0.002, "schedule": "constant"}
TOLERANCE = 1e-3
"""Of bank rows (unit vectors) after 20 steps; weights: 1% of the way they went. Sums over ranks round otherwise, and
batch norm on a dozen samples and arg max pooling magnify it; one step agrees to 1e-5 (next test)."""


def recipe(path: Path, **over: object) -> Path:
    content = read_yaml("romo-tiny", "")
    content["method_config"].update({"annotate_optimiser": SGD, "robust_optimiser": SGD, **over})
    path.write_text(yaml.safe_dump(content))
    return path


def command(*words: object, ranks: int = 1) -> list[str]:
    start = [sys.executable, "-m"]
    if ranks > 1:
        port = random.Random(os.getpid()).randrange(20_000, 60_000)
        start += ["torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={port}", "-m"]
    return [*start, "consilience", *map(str, words)]


def finish(words: list[str], timeout: float = 240) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("targets", ["fused", "per-view"])
def test_two_ranks_give_the_bank_labels_and_weights_of_one(tiny_table: Table, tmp_path: Path, targets: str) -> None:
    """Batches of 12 over 44 rows: the last batch of an epoch has 8, so ranks see shares of 6 and of 4."""
    config = recipe(tmp_path / "recipe.yaml", targets=targets, robust_loss="ce")
    states = []
    for ranks in (1, 2):
        data = import_table(tiny_table.path, tmp_path / f"table-{ranks}").path
        out = tmp_path / f"run-{ranks}"
        finish(command("train", "romo", "--data", data, "-o", out, "--config", config, "--quiet", ranks=ranks))
        states.append(load_file(out / "model.safetensors"))
    one, two = states
    assert one.keys() == two.keys()
    assert torch.equal(one["pseudo.labels"], two["pseudo.labels"])
    torch.testing.assert_close(two["banks.image.rows"], one["banks.image.rows"], atol=TOLERANCE, rtol=0)
    torch.manual_seed(0)
    config = merge(RoMoConfig(), yaml.safe_load((tmp_path / "recipe.yaml").read_text())["method_config"])
    start = dict(RoMo(config, tiny_table.modalities, 44).named_parameters())
    travelled = sum(float((one[name] - value.detach()).square().sum()) for name, value in start.items()) ** 0.5
    apart = sum(float((one[name] - two[name]).square().sum()) for name in start) ** 0.5
    assert travelled > 0.5
    assert apart < 0.01 * travelled, (apart, travelled)


def test_two_ranks_import_a_source_once(tmp_path: Path) -> None:
    none = [f"--method.{phase}_epochs=0" for phase in ("warmup", "annotate", "robust")]
    out = tmp_path / "run"
    finish(command("train", "romo", "--data", "mnist3d", "-o", out, *none, "--quiet", ranks=2))
    assert len(Table.open(out / "table")) == 6000
    assert (out / "model.safetensors").exists()


def test_one_step_on_two_ranks_has_the_gradient_of_the_joined_batch() -> None:
    """Every phase, uneven shares, fused and per-view targets; batch norms, banks and losses included."""
    code = """
import torch, torch.distributed as dist
from consilience.data.schema import Batch, Kind
from consilience.distributed import rank, sum_over_ranks, world_size
from consilience.methods.base import Progress
from consilience.methods.romo import RoMo, RoMoConfig
kinds = {"image": Kind.GREY, "points": Kind.POINTS}
torch.manual_seed(3)
pixels, cloud = torch.randint(0, 255, (11, 1, 28, 28), dtype=torch.uint8), torch.randn(11, 32, 3)
labels = torch.randint(4, (2, 20))
def batch(rows):
    seen = torch.ones(len(rows), dtype=torch.bool)
    return Batch(rows + 5, {"image": pixels[rows], "points": cloud[rows]}, {"image": seen, "points": seen.clone()})
def gradients(targets, number, name, rows):
    torch.manual_seed(0)
    method = RoMo(RoMoConfig(clusters=4, width=8, targets=targets), kinds, 20)
    method.stage.fill_(number)
    method.pseudo.labels.copy_(labels)
    for bank in method.banks.values():
        bank.fill(torch.randn(20, 8))
    torch.stack(list(method.step(batch(rows), Progress(number, name, 0, 0.7, 0)).values())).sum().backward()
    found = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    return found, {n: b.rows for n, b in method.banks.items()}
cases = [(t, i, n) for t in ("fused", "per-view") for i, n in enumerate(("warmup", "annotate", "robust"))]
alone = [gradients(*case, torch.arange(11)) for case in cases]
dist.init_process_group("gloo")
mine = torch.arange(6) if rank() == 0 else torch.arange(6, 11)
for case, (expected, banks) in zip(cases, alone):
    found, own = gradients(*case, mine)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        joined = sum_over_ranks(value) / world_size()
        torch.testing.assert_close(joined, expected[name], atol=2e-5, rtol=1e-3, msg=lambda m: f"{case} {name}: {m}")
    for name in banks:
        torch.testing.assert_close(own[name], banks[name], atol=1e-5, rtol=0)
dist.destroy_process_group()
"""
    port = random.Random(os.getpid() + 2).randrange(20_000, 60_000)
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "--no-python"]
    finish([*run, sys.executable, "-c", code])


def test_ranks_share_the_gathered_rows_and_gradients() -> None:
    """The collectives' gradient convention: the mean over ranks of d(sum of losses) is the joint batch's gradient."""
    code = """
import torch, torch.distributed as dist
from consilience.distributed import gather_rows, rank, sum_over_ranks, world_size
dist.init_process_group("gloo")
torch.manual_seed(0)
x, w = torch.randn(5, 3), torch.randn(3, requires_grad=True)
mine = x[:3] if rank() == 0 else x[3:]
def loss(z):
    return (torch.softmax(z @ z.T, 1).diagonal().log()).sum() + z.square().mean() * 3
loss(gather_rows(mine * w)).backward()
joined = sum_over_ranks(w.grad) / world_size()
v = w.detach().clone().requires_grad_()
loss(x * v).backward()
torch.testing.assert_close(joined, v.grad)
assert torch.equal(gather_rows(mine), x)
mask = torch.tensor([True, False, True, True, False])
assert torch.equal(gather_rows(mask[:3] if rank() == 0 else mask[3:]), mask)
dist.destroy_process_group()
"""
    port = random.Random(os.getpid() + 1).randrange(20_000, 60_000)
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "--no-python"]
    finish([*run, sys.executable, "-c", code])


def whole(tiny_table: Table, tmp_path: Path) -> dict[str, torch.Tensor]:
    content = read_yaml("romo-tiny", "")
    table = import_table(tiny_table.path, tmp_path / "table-whole")
    config = merge(RoMoConfig(), {**content["method_config"], "robust_epochs": 6})
    options = merge(TrainConfig(), {**content["train"], "threads": 1})
    run = train("romo", table, tmp_path / "whole", config=config, train=options, quiet=True)
    return load_file(run.folder.model_file)


def start_killable(tiny_table: Table, tmp_path: Path) -> tuple[Path, list[str]]:
    content = read_yaml("romo-tiny", "")
    content["method_config"]["robust_epochs"] = 6
    content["train"]["threads"] = 1
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    data = import_table(tiny_table.path, tmp_path / "table-killed").path
    out = tmp_path / "killed"
    return out, command("train", "romo", "--data", data, "-o", out, "--config", tmp_path / "recipe.yaml", "--quiet")


def test_kill_9_at_random_moments_then_resume_gives_the_same_bits(tiny_table: Table, tmp_path: Path) -> None:
    expected = whole(tiny_table, tmp_path)
    out, words = start_killable(tiny_table, tmp_path)
    chance, kills = random.Random(0), 0
    for _ in range(4):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (out / "checkpoints").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 0.6))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        assert not list(out.glob("**/*.partial")), "something half-written is left"
        words = command("train", "--resume", out, "--quiet")
        if (out / "model.safetensors").exists():
            break
    assert kills > 0
    resume(out, quiet=True)
    found = load_file(out / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_ctrl_c_leaves_a_resumable_run(tiny_table: Table, tmp_path: Path) -> None:
    expected = whole(tiny_table, tmp_path)
    out, words = start_killable(tiny_table, tmp_path)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((out / "checkpoints").glob("step-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert f"consilience train --resume {out}" in said
    assert not (out / "model.safetensors").exists()
    resume(out, quiet=True)
    found = load_file(out / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_optimisers_follow_their_schedule() -> None:
    assert Optimiser(schedule="constant").factor(7, 10, 2) == 1
    cosine = [Optimiser(schedule="cosine").factor(step, 10, 2) for step in range(10)]
    assert cosine == [1.0] * 5 + [pytest.approx(0.5)] * 5
    one = [Optimiser().factor(step, 100, 2) for step in range(100)]
    assert max(one) == 1
    assert one[0] == pytest.approx(0.2)
    assert one[-1] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(one[5:]))


def test_recipes_ship_whole_configurations() -> None:
    paper = merge(RoMoConfig(), read_yaml("romo-paper", "")["method_config"])
    assert (paper.width, paper.robust_width, paper.encoders.neighbours, paper.robust_neighbours) == (1024, 256, 20, 40)
    assert paper.annotate_optimiser == Optimiser("sgd", 1e-3, 1e-5, 0.9, "cosine")
    assert paper.robust_optimiser == Optimiser("sgd", 2e-4, 1e-6, 0.9, "cosine")
    assert dataclasses.asdict(merge(RoMoConfig(), plain_values(paper))) == dataclasses.asdict(paper)
