"""``reproduce`` on a tiny table with a tiny plan: the keys, the pairing by seed, the verdict, and what is reused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import t as student

import consilience.evaluation.reproduce as experiment
from consilience.data.schema import Kind
from tests.cli.conftest import Cli

EPOCHS = {"warmup_epochs": 1, "annotate_epochs": 1, "robust_epochs": 1, "batch_size": 16, "width": 8}
NONE = {"warmup_epochs": 0, "annotate_epochs": 0, "robust_epochs": 0}
PLAN: dict[str, Any] = {
    "method": "romo",
    "clusters": "classes",
    "data": "mnist3d",
    "metric": "mean mAP",
    "claim": "training helps",
    "margin": {"of": "trained", "over": "untrained (no step)"},
    "entries": {
        "trained": {"selection": True, "method_config": EPOCHS},
        "untrained (no step)": {"method_config": {**EPOCHS, **NONE}},
    },
}


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "read_yaml", lambda name, folder: PLAN)
    monkeypatch.setattr(experiment, "_ENOUGH", 1)


@pytest.mark.usefixtures("plan")
def test_the_answer(cli: Cli, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    words = ("reproduce", "romo", "--data", table, "-o", out, "--quiet")
    one = cli(*words, "--seeds", "1", "--json")
    assert (one.code, one.err) == (0, "")
    assert one.json["margin"]["ci95"] == [None, None]
    assert one.json["holds"] is False
    assert one.json["seeds"] == [0]

    trained = []
    true_train = experiment.train

    def train(*words: Any, **options: Any) -> Any:
        trained.append(Path(words[2]).name)
        return true_train(*words, **options)

    monkeypatch.setattr(experiment, "train", train)
    found = cli(*words, "--seeds", "2", "--json").json
    assert trained == ["trained-1", "untrained-no-step-1"]
    keys = {"method", "data", "metric", "seeds", "results", "claim", "margin", "holds", "seconds"}
    assert keys <= set(found)
    assert {"over", "mean", "ci95"} <= set(found["margin"])
    assert (found["method"], found["data"], found["metric"]) == ("romo", str(table), "mean mAP")
    assert (found["claim"], found["margin"]["over"], found["seeds"]) == (
        "training helps",
        "untrained (no step)",
        [0, 1],
    )
    for entry in found["results"].values():
        assert set(entry) == {"mean", "ci95", "values"}
        assert len(entry["values"]) == 2
        assert entry["mean"] == pytest.approx(np.mean(entry["values"]))
    assert found["results"]["trained"]["values"][0] == one.json["results"]["trained"]["values"][0]
    for name in ("trained: image->points", "trained: pseudo-label accuracy image", "trained: selection, chosen"):
        assert name in found["results"]

    difference = np.subtract(*(found["results"][name]["values"] for name in ("trained", "untrained (no step)")))
    half = student.ppf(0.975, 1) * difference.std(ddof=1) / np.sqrt(2)
    low, high = difference.mean() - half, difference.mean() + half
    assert found["margin"]["mean"] == pytest.approx(difference.mean())
    assert found["margin"]["ci95"] == pytest.approx([low, high])
    assert found["holds"] is bool(low > 0)

    trained.clear()
    again = cli(*words, "--seeds", "2", "--json").json
    assert trained == []
    assert again["results"] == found["results"]
    assert json.loads((out / "result.json").read_text())["results"] == found["results"]
    report = (out / "report.html").read_text()
    assert "Claim: training helps." in report
    assert "trained minus untrained (no step)" in report
    text = cli(*words, "--seeds", "2").out
    verdict = "holds" if found["holds"] else "not shown"
    assert f"trained over untrained (no step): margin {found['margin']['mean']:+.3f}" in text
    assert f": {verdict}\n" in text
    assert f"report  {out / 'report.html'}" in text
    assert "--seeds 3 goes on from what is there" in cli(*words, "--seeds", "1").out


@pytest.mark.usefixtures("plan")
def test_every_entry_gets_the_same_options_and_clusters(cli: Cli, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = "encoders.image_size=20,tau=0.3,views.flip=true"
    answer = cli("reproduce", "romo", "--data", table, "-o", out, "--seeds", "1", "--set", options, "--quiet", "--json")
    assert answer.code == 0, answer.err
    for run in ("trained-0", "untrained-no-step-0"):
        config = yaml.safe_load((out / "runs" / run / "config.yaml").read_text())["method_config"]
        assert config["clusters"] == 3
        assert (config["encoders"]["image_size"], config["tau"], config["views"]["flip"]) == (20, 0.3, True)


@pytest.mark.usefixtures("plan")
def test_small_data_gets_more_epochs_everywhere(
    cli: Cli, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "_ENOUGH", 90)
    answer = cli("reproduce", "romo", "--data", table, "-o", tmp_path / "out", "--seeds", "1", "--quiet", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["epochs_factor"] == 2
    config = yaml.safe_load((tmp_path / "out/runs/trained-0/config.yaml").read_text())["method_config"]
    assert (config["warmup_epochs"], config["robust_epochs"]) == (2, 2)


def test_it_needs_labels_and_a_test_split(cli: Cli, tmp_path: Path, plan: None) -> None:
    from tests.cli import tiny

    unlabelled = tiny.romo_lists(tmp_path / "lists", labels=False, rows=10)
    answer = cli("reproduce", "romo", "--data", unlabelled, "-o", tmp_path / "a", "--seeds", "1")
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert "has no labels" in answer.err
    path = tiny.manifest(tmp_path / "data", "csv", 8)
    path.write_text(path.read_text().replace("test", "train"))
    answer = cli("reproduce", "romo", "--data", path, "-o", tmp_path / "b", "--seeds", "1")
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert "pass \"split = 'test'\"; name a split that exists" in answer.err


SETTINGS: dict[str, Any] = {
    "method": "pc2",
    "data": "mnist3d",
    "metric": "rsum",
    "figure": "rsum",
    "claim": "believing less helps",
    "enough": 1,
    "settings": {"none": None, "half": {"train": {"corrupt": 0.5}}},
    "margins": [
        {"of": "robust", "over": "plain", "at": ["half"]},
        {"of": "robust", "over": "plain"},
    ],
    "with_data": {"pairs": {"train": {"modalities": "image,points"}}},
    "entries": {
        "robust": {"method_config": {"warmup_epochs": 1, "clean_epochs": 1, "full_epochs": 1, "batch_size": 16}},
        "plain": {"method": "contrastive", "method_config": {"epochs": 3, "batch_size": 16}},
    },
}


def test_settings_margins_and_other_methods(
    cli: Cli, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ratios of noise, two methods, one seed; the options of a data set reach every entry."""
    monkeypatch.setattr(experiment, "read_yaml", lambda name, folder: json.loads(json.dumps(SETTINGS)))
    data = table.rename(table.with_name("pairs"))
    answer = cli("reproduce", "pc2", "--data", data, "-o", tmp_path / "out", "--seeds", "1", "--quiet", "--json")
    assert (answer.code, answer.err) == (0, "")
    found = answer.json
    assert found["entries"] == ["robust at none", "plain at none", "robust at half", "plain at half"]
    pairs = [(margin["of"], margin["over"]) for margin in found["margins"]]
    assert pairs == [
        ("robust at none", "plain at none"),
        ("robust at half", "plain at half"),
        ("robust at half", "plain at half"),
    ]
    assert found["margin"] == found["margins"][0]
    assert found["holds"] is False
    runs = tmp_path / "out" / "runs"
    for name, method, ratio in (("robust-at-none", "pc2", 0.0), ("plain-at-half", "contrastive", 0.5)):
        config = yaml.safe_load((runs / f"{name}-0" / "config.yaml").read_text())
        assert (config["method"], config["train"]["corrupt"]) == (method, ratio)
        assert config["train"]["modalities"] == "image,points"
    assert (runs / "robust-at-half-0" / "noise_index.npy").exists()
    assert not (runs / "robust-at-none-0" / "noise_index.npy").exists()
    assert 0 <= found["results"]["robust at half: noise, auroc"]["mean"] <= 1
    assert found["results"]["robust at half"]["values"] != found["results"]["robust at none"]["values"]


def test_entries_that_are_read_elsewhere_and_less_that_is_better(
    cli: Cli, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {"method_config": {"warmup_epochs": 0, "clean_epochs": 0, "full_epochs": 1, "batch_size": 16}}
    plan: dict[str, Any] = {
        "method": "pc2", "data": "mnist3d", "metric": "median rank", "enough": 1, "lower": True,
        "figure": "pairs.image->points.median_rank", "claim": "ranks are low",
        "margin": {"of": "trained", "over": "mean rank"},
        "entries": {"trained": one, "mean rank": {**one, "figure": "pairs.image->points.mean_rank"}},
    }  # fmt: skip
    monkeypatch.setattr(experiment, "read_yaml", lambda name, folder: json.loads(json.dumps(plan)))
    judged = []
    true_evaluate = experiment.evaluate

    def evaluate(*words: Any, **options: Any) -> Any:
        judged.append(words)
        return true_evaluate(*words, **options)

    monkeypatch.setattr(experiment, "evaluate", evaluate)
    words = ("reproduce", "pc2", "--data", table, "-o", tmp_path / "out", "--seeds", "2", "--quiet", "--json")
    found = cli(*words).json
    assert len(judged) == 2, "one training and one evaluation a seed serve both entries"
    ranks, means = (found["results"][name]["values"] for name in ("trained", "mean rank"))
    for seed in range(2):
        figures = json.loads((tmp_path / "out" / "runs" / f"trained-{seed}" / "figures.json").read_text())
        way = figures["pairs"]["image->points"]
        assert (ranks[seed], means[seed]) == (way["median_rank"], way["mean_rank"])
    assert found["margin"]["mean"] == pytest.approx(np.mean(np.subtract(means, ranks)))
    assert found["margin"]["difference"] == "mean rank minus trained"
    assert not any(name.startswith("mean rank:") for name in found["results"])
    plan["entries"]["mean rank"]["figure"] = "pairs.nowhere"
    answer = cli(*words[:5], tmp_path / "other", *words[6:])
    assert (answer.code, "evaluate gives no figure 'pairs.nowhere'" in answer.err) == (2, True)


def test_the_shipped_plan_compares_entries_that_exist() -> None:
    from consilience.methods.registry import find
    from consilience.training.config import TrainConfig
    from consilience.training.configure import merge, read_yaml

    shipped = read_yaml("romo", "experiments")
    assert {shipped["margin"]["of"], shipped["margin"]["over"]} <= set(shipped["entries"])
    budgets: dict[str, int] = {}
    for name, entry in shipped["entries"].items():
        config = merge(find("romo").cls.Config(), (entry or {}).get("method_config", {}))
        merge(TrainConfig(), (entry or {}).get("train", {}))
        budgets[name] = config.warmup_epochs + config.annotate_epochs + config.robust_epochs
    assert budgets.pop("untrained") == 0
    assert len(set(budgets.values())) == 1
    shipped = read_yaml("pc2", "experiments")
    for margin in shipped["margins"]:
        assert {margin["of"], margin["over"]} <= set(shipped["entries"])
        assert set(margin["at"]) <= set(shipped["settings"])
    budgets = {}
    for name, entry in shipped["entries"].items():
        config = merge(find(entry.get("method", "pc2")).cls.Config(), entry["method_config"])
        budgets[name] = sum(value for key, value in vars(config).items() if key.endswith("epochs"))
        method: Any = find(entry.get("method", "pc2")).cls(config, {"a": Kind.VECTOR, "b": Kind.VECTOR}, 4)
        assert len(method.peers) == 2
    assert set(budgets.values()) == {12}


def test_codes_of_one_training_at_several_lengths(
    cli: Cli, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries that differ in the codes only share one training; settings of an entry go over those of all."""
    plan: dict[str, Any] = {
        "method": "contrastive",
        "data": "mnist3d",
        "metric": "mean Hamming mAP",
        "figure": "hamming.mean_map",
        "claim": "made to test",
        "settings": {"8 bits": {"codes": {"bits": 8}}, "16 bits": {"codes": {"bits": 16}}},
        "method_config": {"networks": 1, "scorer": {"width": 16}, "epochs": 1, "batch_size": 12},
        "margins": [{"of": "itq", "over": "own width"}],
        "entries": {
            "itq": {"codes": {"by": "itq"}},
            "random": {"codes": {"by": "lsh"}},
            "own width": {"codes": {"by": "sign"}, "settings": {"8 bits": {"method_config": {"scorer": {"width": 8}}}}},
        },
    }
    monkeypatch.setattr(experiment, "read_yaml", lambda name, folder: plan)
    monkeypatch.setattr(experiment, "_ENOUGH", 1)
    out = tmp_path / "out"
    found = cli("reproduce", "contrastive", "--data", table, "-o", out, "--seeds", "1", "--quiet", "--json").json
    assert len(found["margins"]) == 2
    assert {name for name in found["results"] if ":" not in name} == {
        f"{entry} at {bits} bits" for entry in plan["entries"] for bits in (8, 16)
    }
    trained = sorted(file.parent.name for file in (out / "runs").glob("*/model.safetensors"))
    assert trained == ["itq-at-8-bits-0", "own-width-at-8-bits-0"]
    for entry, bits in (("itq", 8), ("itq", 16), ("own width", 8), ("own width", 16)):
        figures = json.loads(
            (out / "runs" / f"{entry.replace(' ', '-')}-at-{bits}-bits-0" / "figures.json").read_text()
        )
        assert figures["hamming"]["bits"] == bits
        assert found["results"][f"{entry} at {bits} bits"]["values"] == [figures["hamming"]["mean_map"]]


PLANS = sorted(path.stem for path in (Path(experiment.__file__).parents[1] / "recipes" / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("name", PLANS)
def test_every_shipped_plan_names_what_exists(name: str) -> None:
    from consilience.methods.registry import find
    from consilience.training.config import TrainConfig
    from consilience.training.configure import merge, read_yaml

    plan = read_yaml(name, "experiments")
    for margin in plan.get("margins") or [plan["margin"]]:
        assert {margin["of"], margin["over"]} <= set(plan["entries"])
    for entry in plan["entries"].values():
        of = find((entry or {}).get("method", plan["method"])).cls.Config()
        known = {key: value for key, value in plan.get("method_config", {}).items() if key in vars(of)}
        merge(merge(of, known), (entry or {}).get("method_config", {}))
        merge(TrainConfig(), {**plan.get("train", {}), **(entry or {}).get("train", {})})
