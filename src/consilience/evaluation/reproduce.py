"""``reproduce``: a paper's claimed effect as an experiment on equal terms, paired by seed, with an honest verdict.

An experiment is a YAML file in ``recipes/experiments``: entries that differ in the method's configuration only (same
data, encoders, epochs and seeds), the claim, and which two entries it compares. ``holds`` is true only if the 95%
interval of the paired difference lies above 0.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from consilience.data.table import Table
from consilience.errors import InputError
from consilience.evaluation.evaluate import evaluate, labelled_rows, mean_map
from consilience.evaluation.figures import bars
from consilience.evaluation.report import Report
from consilience.evaluation.stats import paired_difference, t_interval
from consilience.files import write_json
from consilience.methods.base import Method
from consilience.methods.registry import find
from consilience.training.api import resume, table_of, train
from consilience.training.config import TrainConfig
from consilience.training.configure import merge, read_yaml
from consilience.training.run import RunFolder, commit, plain_values

_ENOUGH = 2000  # training samples below which epochs are multiplied, for every entry alike


def reproduce(
    method: str,
    out: Path,
    *,
    data: str | None = None,
    seeds: int = 3,
    plan: str | None = None,
    method_config: Mapping[str, Any] | None = None,
    train_config: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run every entry for every seed (finished ones are reused) and compare; writes ``out/report.html``.

    ``plan``: the experiment, a YAML file or the name of one that ships; default the method's own.
    ``method_config`` and ``train_config`` go under every entry alike (input sizes, say). K, the number of clusters, is
    the number of classes of the data: it is given, as in the paper. Raises InputError for unknown methods or data.
    """
    find(method)
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: expected at least 1 (3 or more for an interval)")
    experiment = read_yaml(plan or method, "experiments")
    data = data or experiment["data"]
    began = time.monotonic()
    table = table_of(data, out)
    _, names = table.labels()
    rows, _ = labelled_rows(table, "split = 'train'")
    common = {"clusters": len(names), **(method_config or {})}
    factor = max(1, math.ceil(_ENOUGH / len(rows)))
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in experiment["entries"]}
    for seed in range(seeds):
        for name, entry in experiment["entries"].items():
            config = merge(find(method).cls.Config(), common)
            config = _more_epochs(merge(config, (entry or {}).get("method_config", {})), factor)
            entries[name].append(
                _run(out, table, method, name, entry or {}, config, dict(train_config or {}), seed, quiet)
            )
    result = _summary(experiment, method, data, seeds, entries)
    result["seconds"] = round(time.monotonic() - began, 1)
    result["epochs_factor"] = factor
    result["data_version"], result["commit"] = table.fingerprint(), commit()
    write_json(out / "result.json", result)
    _report(out, result)
    result["report"] = str(out / "report.html")
    return result


def _more_epochs(config: Any, factor: int) -> Any:
    epochs = {name: value * factor for name, value in vars(config).items() if name.endswith("_epochs")}
    return merge(config, epochs)


def _run(
    out: Path,
    table: Table,
    method: str,
    name: str,
    entry: Mapping[str, Any],
    config: Any,
    options: dict[str, Any],
    seed: int,
    quiet: bool,
) -> dict[str, Any]:
    """One entry with one seed: train (or resume, or reuse), evaluate on the test split."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    place = out / "runs" / f"{slug}-{seed}"
    done = place / "figures.json"
    train_options = merge(TrainConfig(seed=seed), {**options, **entry.get("train", {}), "seed": seed})
    if (place / "config.yaml").exists():
        kept = RunFolder.open(place).config()
        wanted = (plain_values(config), plain_values(train_options), str(table.path.resolve()))
        if (kept["method_config"], kept["train"], kept["data"]) != wanted:
            raise InputError(f"{place} was run with other options or data; choose another -o")
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    rows, labels = labelled_rows(table, "split = 'test'")

    def watch(model: Method, phase: str, epoch: int) -> dict[str, float]:
        return {"test_map": mean_map(model, table, rows, labels)}

    spy = watch if entry.get("selection") else None
    if (place / "config.yaml").exists():
        run = resume(place, watch=spy, quiet=quiet)
    else:
        run = train(method, table, place, config=config, train=train_options, watch=spy, quiet=quiet)
    figures = evaluate(run)
    if spy is not None:
        figures["selection"] = _selection(list(run.folder.records()))
    write_json(done, figures)
    return figures


def _selection(records: list[dict[str, Any]]) -> dict[str, float]:
    """How well the label-free criterion picks among the epochs of the last phase (labels are read only here)."""
    epochs = [r for r in records if "agreement" in r and "test_map" in r]
    last = [r for r in epochs if r["phase"] == epochs[-1]["phase"]]
    agreement, truth = [r["agreement"] for r in last], [r["test_map"] for r in last]
    chosen = truth[int(np.argmax(agreement))]
    correlation = float(spearmanr(agreement, truth).statistic) if len(last) > 2 else math.nan
    return {"chosen": chosen, "best": max(truth), "last": truth[-1], "rank_correlation": correlation}


def _summary(
    plan: Mapping[str, Any], method: str, data: str, seeds: int, entries: Mapping[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    results: dict[str, Any] = {}

    def put(name: str, values: list[float]) -> None:
        interval = t_interval(values)
        bounds = [None if math.isnan(x) else x for x in (interval.low, interval.high)]
        results[name] = {"mean": interval.mean, "ci95": bounds, "values": values}

    for name, runs in entries.items():
        put(name, [run["mean_map"] for run in runs])
    for name, runs in entries.items():
        for direction in runs[0]["directions"]:
            put(f"{name}: {direction}", [run["directions"][direction]["map"] for run in runs])
        for modality, figures in runs[0]["pseudo_labels"].items():
            if modality == "agreement":
                put(f"{name}: pseudo-label agreement", [run["pseudo_labels"][modality] for run in runs])
            elif isinstance(figures, dict):
                for figure in ("accuracy", "nmi"):
                    values = [run["pseudo_labels"][modality][figure] for run in runs]
                    put(f"{name}: pseudo-label {figure} {modality}", values)
        if "selection" in runs[0]:
            for figure in runs[0]["selection"]:
                values = [run["selection"][figure] for run in runs]
                if not any(math.isnan(v) for v in values):
                    put(f"{name}: selection, {figure}", values)
    of, over = plan["margin"]["of"], plan["margin"]["over"]
    difference = paired_difference(results[of]["values"], results[over]["values"]).interval
    low, high = difference.low, difference.high
    return {
        "method": method,
        "data": str(data),
        "metric": plan["metric"],
        "seeds": list(range(seeds)),
        "results": results,
        "claim": plan["claim"],
        "margin": {
            "of": of,
            "over": over,
            "mean": difference.mean,
            "ci95": [None if math.isnan(x) else x for x in (low, high)],
        },
        "holds": bool(low > 0),
        "entries": list(entries),
    }


def _report(out: Path, result: Mapping[str, Any]) -> None:
    page = Report(f"{result['method']} on {result['data']}")
    page.text(f"Claim: {result['claim']}.")
    margin = result["margin"]
    bounds = (
        "no interval from one seed"
        if margin["ci95"][0] is None
        else "95% interval {:.3f} to {:.3f}".format(*margin["ci95"])
    )
    verdict = "holds" if result["holds"] else "is not shown"
    page.text(
        f"It {verdict}: {margin['of']} minus {margin['over']} is {margin['mean']:+.3f} ({bounds}, paired over "
        f"{len(result['seeds'])} seeds).",
        "" if result["holds"] else "warning",
    )
    page.figure(
        bars({name: result["results"][name]["values"] for name in result["entries"]}, result["metric"]),
        "Mean over seeds; a dot is one seed. Entries named WARNING or supervised use labels.",
    )
    page.heading("All figures")
    shown = [
        (
            name,
            entry["mean"],
            *("-" if b is None else b for b in entry["ci95"]),
            ", ".join(f"{v:.3f}" for v in entry["values"]),
        )
        for name, entry in result["results"].items()
    ]
    page.table(("entry", "mean", "95% low", "high", "seeds"), shown)
    page.text(
        f"Data version {result['data_version']}, commit {result['commit']}, {result['seconds']} s. Epochs of every "
        f"entry multiplied by {result['epochs_factor']}.",
        "soft",
    )
    page.save(out / "report.html")
