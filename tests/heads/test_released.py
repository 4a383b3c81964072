"""The authors' checkpoints: their module trees, rebuilt here with their names and computed slowly, score as ours do."""

from __future__ import annotations

import argparse
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from consilience.data.schema import Batch, Kind
from consilience.data.table import Row, Table
from consilience.encoders.build import EncoderConfig
from consilience.errors import InputError
from consilience.heads.matching import ScorerConfig
from consilience.heads.released import predictions_beside, read_predictions, read_released
from consilience.methods.contrastive import Contrastive, ContrastiveConfig
from consilience.methods.ncr import NCR, NCRConfig
from consilience.methods.pairs import PairMethod
from consilience.methods.pc2 import PC2, PC2Config
from consilience.methods.romo import RoMo
from consilience.training.api import train
from consilience.training.config import TrainConfig
from tests.data.conftest import npy
from tests.heads.sgraf_reference import l2

E, S, R, D, K, STEPS, VOCABULARY = 12, 6, 5, 7, 4, 2, 260
KINDS = {"image": Kind.REGIONS, "text": Kind.TEXT}
LENGTHS = (6, 3, 9, 3, 4)


class Attend(nn.Module):
    def __init__(self, places: int | None) -> None:
        super().__init__()

        def branch(norm: int | None) -> nn.Sequential:
            layers = [nn.Linear(E, E), *([nn.BatchNorm1d(norm)] if norm else []), nn.Tanh(), nn.Dropout(0.4)]
            return nn.Sequential(*layers)

        self.embedding_local, self.embedding_global = branch(places), branch(places and E)
        self.embedding_common = nn.Sequential(nn.Linear(E, 1))

    def forward(self, parts: Tensor) -> Tensor:
        agreement = self.embedding_local(parts) * self.embedding_global(parts.mean(1))[:, None]
        return l2((self.embedding_common(agreement).softmax(1) * parts).sum(1))


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.graph_query_w, self.graph_key_w, self.sim_graph_w = nn.Linear(S, S), nn.Linear(S, S), nn.Linear(S, S)

    def forward(self, x: Tensor) -> Tensor:
        edges = (self.graph_query_w(x) @ self.graph_key_w(x).transpose(1, 2)).softmax(2)
        return torch.relu(self.sim_graph_w(edges @ x))


class Filter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn_sim_w, self.bn = nn.Linear(S, 1), nn.BatchNorm1d(1)

    def forward(self, x: Tensor) -> Tensor:
        trust = self.bn(self.attn_sim_w(x).transpose(1, 2)).sigmoid()
        return l2((trust / (trust.sum(2, keepdim=True) + 1e-8) @ x)[:, 0])


class Scores(nn.Module):
    def __init__(self, scorer: str) -> None:
        super().__init__()
        self.v_global_w, self.t_global_w = Attend(R), Attend(None)
        self.sim_tranloc_w, self.sim_tranglo_w, self.sim_eval_w = nn.Linear(E, S), nn.Linear(E, S), nn.Linear(S, 1)
        if scorer == "sgr":
            self.SGR_module = nn.ModuleList(Graph() for _ in range(STEPS))
        else:
            self.SAF_module = Filter()

    def forward(self, regions: Tensor, words: Tensor) -> Tensor:
        """Of all images with one caption [1, l, E]."""
        raw = regions @ words[0].t()
        weights = (9 * l2(torch.where(raw > 0, raw, raw / 10), 2)).softmax(1)
        context = l2(weights.transpose(1, 2) @ regions)
        local = l2(self.sim_tranloc_w((context - words) ** 2))
        whole = l2(self.sim_tranglo_w((self.v_global_w(regions) - self.t_global_w(words)) ** 2))
        x = torch.cat([whole[:, None], local], 1)
        if hasattr(self, "SAF_module"):
            return self.sim_eval_w(self.SAF_module(x)).sigmoid()
        for step in self.SGR_module:
            x = step(x)
        return self.sim_eval_w(x[:, 0]).sigmoid()


class Theirs:
    """One network of the authors: three modules, and PC2's fourth."""

    def __init__(self, scorer: str, head: bool) -> None:
        self.image, self.text, self.scores = nn.Module(), nn.Module(), Scores(scorer)
        self.image.fc = nn.Linear(D, E)
        self.text.embed = nn.Embedding(VOCABULARY, 300)
        self.text.cap_rnn = nn.GRU(300, E, 1, batch_first=True, bidirectional=True)
        self.modules: list[nn.Module] = [self.image, self.text, self.scores]
        if head:
            self.head = nn.Module()
            self.head.first_hidden_layer = nn.Module()
            self.head.first_hidden_layer.fc = nn.Linear(R * E, 256)
            self.head.output_layer = nn.Linear(256, K)
            self.modules.append(self.head)
        for module in self.modules:
            for part in module.modules():
                if isinstance(part, nn.BatchNorm1d):
                    for tensor in (part.weight.data, part.running_var):
                        tensor.uniform_(0.5, 1.5)
                    for tensor in (part.bias.data, part.running_mean):
                        tensor.normal_(std=0.2)
            module.eval()

    def states(self, prefix: str = "") -> list[dict[str, Tensor]]:
        return [{prefix + name: x for name, x in module.state_dict().items()} for module in self.modules]

    def optimiser(self) -> dict[str, Any]:
        parameters = [p for module in self.modules for p in module.parameters()]
        adam = torch.optim.Adam(parameters, lr=2e-4)
        torch.stack([p.sum() for p in parameters]).sum().backward()
        adam.step()
        return adam.state_dict()

    def regions(self, x: Tensor) -> Tensor:
        return l2(self.image.fc(x))

    def words(self, ids: Tensor) -> Tensor:
        """[1, l, E] of one caption."""
        one, other = self.text.cap_rnn(self.text.embed(ids)[None])[0].chunk(2, 2)
        return l2((one + other) / 2)

    def classes(self, slots: Tensor) -> Tensor:
        hidden = torch.relu(self.head.first_hidden_layer.fc(slots.flatten(1)))
        return self.head.output_layer(hidden)


def batch(n: int = len(LENGTHS)) -> Batch:
    random = torch.Generator().manual_seed(3)
    ids = torch.full((n, 11), -1)
    for i in range(n):
        length = LENGTHS[i % len(LENGTHS)]
        ids[i, :length] = torch.randint(0, VOCABULARY, (length,), generator=random)
    values = {"image": torch.randn(n, R, D, generator=random), "text": ids}
    seen = torch.ones(n, dtype=torch.bool)
    return Batch(torch.arange(n), values, {"image": seen, "text": seen.clone()})


def save(path: Path, nets: list[Theirs], prefix: str = "", **options: Any) -> Path:
    opt = argparse.Namespace(**({"no_imgnorm": False, "no_txtnorm": False, "gpu": None, "data_name": "x"} | options))
    content: dict[str, Any] = {"epoch": 3, "best_rsum": 12.5, "opt": opt}
    for name, net in zip(("model",) if len(nets) == 1 else ("model_A", "model_B"), nets, strict=True):
        content |= {name: net.states(prefix), name.replace("model", "optimizer"): net.optimiser()}
    torch.save(content, path)
    return path


def ours(system: str, module: str = "sgr", samples: int = 5, **changes: Any) -> PairMethod:
    scorers = ScorerConfig(name=module, sim=S, steps=STEPS, slots=R)  # type: ignore[arg-type]
    encoders = EncoderConfig(text="gru", embed=E, regions=R, region_width=D, max_tokens=11)
    both = {"scorer": replace(scorers, **changes.pop("scorer", {})), "encoders": encoders}
    both["encoders"] = replace(encoders, **changes.pop("encoders", {}))
    if system == "ncr":
        return NCR(NCRConfig(**both, **changes), KINDS, samples)
    if system == "sgraf":
        return Contrastive(ContrastiveConfig(**both, networks=1, objective="triplet-hard", **changes), KINDS, samples)
    paper = {"ranking": "triplet", "captions": "batch", "head": "released", "stability": "oscillation", "classes": K}
    return PC2(PC2Config(**both, **(paper | changes)), KINDS, samples)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("scorer", ["sgr", "saf"])
@pytest.mark.parametrize("system", ["sgraf", "ncr", "pc2"])
def test_scores_are_theirs(system: str, scorer: str, prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets = [Theirs(scorer, system == "pc2") for _ in range(1 if system == "sgraf" else 2)]
    with torch.enable_grad():
        path = save(tmp_path / "model_best.pth.tar", nets, prefix)
    data, method = batch(), ours(system, scorer).eval()
    before = method.peers.score(method.represent(data, "image"), method.represent(data, "text"), ("image", "text"))
    method.load_released(path)
    after = method.peers.score(method.represent(data, "image"), method.represent(data, "text"), ("image", "text"))
    wanted, captions = [], [row[row >= 0] for row in data.values["text"]]
    for k, net in enumerate(nets):
        regions, words = net.regions(data.values["image"]), [net.words(ids) for ids in captions]
        wanted.append(torch.cat([net.scores(regions, x) for x in words], 1))
        if system == "pc2":
            image, text = method.peers.pair(k, data)
            torch.testing.assert_close(method._logits(k, image), net.classes(regions), atol=1e-5, rtol=0)
            fitting = [i for i, x in enumerate(words) if x.shape[1] <= R]  # longer ones: see heads/pseudo_class
            alone = [nn.functional.pad(words[i], (0, 0, (R - words[i].shape[1]) // 2, 0)) for i in fitting]
            full = torch.cat([nn.functional.pad(x, (0, 0, 0, R - x.shape[1])) for x in alone])
            torch.testing.assert_close(method._logits(k, text)[fitting], net.classes(full), atol=1e-5, rtol=0)
    torch.testing.assert_close(after, torch.stack(wanted).mean(0), atol=1e-5, rtol=0)
    assert float(after.std()) > 1e-4  # a constant would agree with anything
    assert float((before - after).abs().max()) > 1e-3
    assert read_released(path).epoch == 3
    assert read_released(path).options["data_name"] == "x"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorer": {"name": "saf"}}, "--method.scorer.name sgr"),
        ({"scorer": {"name": "sgraf"}}, "--method.scorer.name sgr"),
        ({"scorer": {"name": "cosine"}}, "--method.scorer.name sgr"),
        ({"scorer": {"steps": 3}}, "--method.scorer.steps 2"),
        ({"scorer": {"sim": 7}}, "made for 6, this configuration for 7; set --method.scorer.sim"),
        ({"scorer": {"slots": 6}}, "made for 5, this configuration for 6; set --method.scorer.slots"),
        ({"scorer": {"batch_norm": False}}, "--method.scorer.batch_norm true"),
        ({"encoders": {"embed": 13}}, "made for 12, this configuration for 13; set --method.encoders.embed"),
        ({"encoders": {"region_width": 8}}, "--method.encoders.region_width"),
        ({"encoders": {"text": "transformer"}}, "--method.encoders.text gru"),
        ({"classes": 5}, "made for 4, this configuration for 5; set --method.classes"),
    ],
)
def test_what_does_not_fit_is_named_by_its_flag(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoint_best_validation.pth.tar", [Theirs("sgr", True) for _ in range(2)])
    with pytest.raises(InputError, match=message):
        ours("pc2", **changes).load_released(path)


def test_other_networks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = [Theirs("sgr", False) for _ in range(2)]
    path = save(tmp_path / "a.pth.tar", two)
    with pytest.raises(InputError, match=r"--method\.head balanced"):
        ours("pc2").load_released(path)
    ours("pc2", head="balanced").load_released(path)
    with pytest.raises(InputError, match="holds 2 of the 1 networks"):
        ours("sgraf").load_released(path)
    with pytest.raises(InputError, match="trained with --no_imgnorm"):
        ours("ncr").load_released(save(tmp_path / "b.pth.tar", two, no_imgnorm=True))
    two[1].text.cap_rnn = nn.GRU(300, E, 2, batch_first=True, bidirectional=True)
    with pytest.raises(InputError, match=r"cap_rnn\.\w+_l1"):
        ours("ncr").load_released(save(tmp_path / "c.pth.tar", two))
    two[1].text.embed = nn.Embedding(99, 300)
    with pytest.raises(InputError, match=r"made for 99, this configuration for 260.*--method.encoders.tokenizer"):
        ours("ncr").load_released(save(tmp_path / "d.pth.tar", two))
    with pytest.raises(InputError, match="RoMo has no released checkpoints to read; give a run folder"):
        RoMo.load_released(RoMo.__new__(RoMo), path)


class Rogue:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_else_is_read_or_run(tmp_path: Path) -> None:
    trap, path = tmp_path / "trap", tmp_path / "a.pth.tar"
    with pytest.raises(InputError, match="does not exist; expected a checkpoint"):
        read_released(path)
    whole = save(path, [Theirs("sgr", False) for _ in range(2)]).read_bytes()
    contents = {
        "torn": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"model_A",
        "pickle": pickle.dumps({"model_A": Rogue(trap)}, 2),
    }
    for name, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.pth\.tar cannot be read .*expected a checkpoint"):
            read_released(path)
        assert not trap.exists(), name
    torch.save({"model_A": [], "model_B": Rogue(trap), "epoch": 0}, path)
    with pytest.raises(InputError, match=r"it asks for \w+\.mkdir"):
        read_released(path)
    for odd in (
        [1],
        {"epoch": 1},
        {"model_A": [{}], "model_B": [{}], "epoch": 1},
        {"model": [{"a": 1}] * 3, "epoch": 1},
    ):
        torch.save(odd, path)
        with pytest.raises(InputError, match="does not hold model_A"):
            read_released(path)
    bank = tmp_path / "distri_bank_A.pkl"
    for content in (pickle.dumps({0: Rogue(trap)}), b"", pickle.dumps({0: np.zeros(K)})[:-9]):
        bank.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            read_predictions(bank, 1, K)
    assert not trap.exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_predictions(tmp_path: Path, protocol: int) -> None:
    rows = torch.rand(6, K).softmax(1)
    bank = {i: rows[i].numpy() for i in (4, 2, 0, 1, 3, 5)}
    path = tmp_path / "distri_bank_A.pkl"

    def write(content: Any) -> Path:
        path.write_bytes(pickle.dumps(content, protocol))
        return path

    assert torch.equal(read_predictions(write(bank), 6, K), rows)
    path.write_bytes(pickle.dumps(bank, protocol).replace(b"numpy._core.", b"numpy.core.") if protocol == 3 else b"x")
    if protocol == 3:  # as numpy 1 wrote them; names have no length there
        assert torch.equal(read_predictions(path, 6, K), rows)
    for content, samples, message in [
        (bank, 5, "pair 5 is not among the 5 training pairs"),
        (bank, 7, "pair 6 is missing of the 7 training pairs.*--train.validation 0"),
        (bank | {2: np.zeros(3, np.float32)}, 6, r"3 classes \(pair 2\), not 4; set --method.classes"),
        (bank | {2: "0.25"}, 6, "prediction of pair 2 is no row"),
        (bank | {2: np.full(K, np.nan)}, 6, "finite"),
        (bank | {"x": np.zeros(K)}, 6, "no dictionary from pair numbers"),
        ([1, 2], 2, "no dictionary from pair numbers"),
    ]:
        with pytest.raises(InputError, match=message):
            read_predictions(write(content), samples, K)


def test_saved_predictions_fill_the_memory(tmp_path: Path) -> None:
    path = save(tmp_path / "warmup_model_4.pth.tar", [Theirs("sgr", True) for _ in range(2)])
    method = ours("pc2", samples=5)
    method.load_released(path)
    assert not bool(method.banked)
    rows = torch.rand(2, 2, 5, K).softmax(3)
    for prefix, late in (("", 1), ("warmup_", 0)):
        for k, net in enumerate("AB"):
            bank = {i: rows[late, k, i].numpy() for i in range(5)}
            (tmp_path / f"{prefix}distri_bank_{net}.pkl").write_bytes(pickle.dumps(bank))
        method = ours("pc2", samples=5)
        method.load_released(path)
        assert bool(method.banked)
        assert torch.equal(method.bank, rows[late])
    balanced = ours("pc2", samples=5, head="balanced")
    balanced.load_released(path)
    assert not bool(balanced.banked)
    (tmp_path / "warmup_distri_bank_B.pkl").unlink()
    found = predictions_beside(path, 5, K)
    assert found is not None
    assert torch.equal(torch.stack(found), rows[1])


def test_a_run_starts_from_a_checkpoint(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        Row(f"r{i}", "train", {"image": npy(random.normal(size=(R, D))), "text": b"a caption" + bytes([97 + i])}, {})
        for i in range(8)
    ]
    table = Table.create(tmp_path / "table", rows, KINDS, "made up")
    path = save(tmp_path / "checkpoint_3.pth.tar", [Theirs("sgr", False) for _ in range(2)])
    config = replace(ours("ncr").config, warmup_epochs=0, clean_epochs=0, full_epochs=0)
    run = train("ncr", table, tmp_path / "run", config=config, train=TrainConfig(start=str(path)), quiet=True)
    wanted, found = ours("ncr"), run.method.peers.state_dict()
    wanted.load_released(path)
    assert all(torch.equal(x, found[name]) for name, x in wanted.peers.state_dict().items())
    with pytest.raises(InputError, match="is not a run folder"):
        train("ncr", table, tmp_path / "x", config=config, train=TrainConfig(start=str(tmp_path / "no")), quiet=True)
