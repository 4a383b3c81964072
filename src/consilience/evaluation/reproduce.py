"""``reproduce``: a paper's claimed effect as an experiment on equal terms, paired by seed, with an honest verdict.

An experiment is a YAML file in ``recipes/experiments``: entries that differ in the method or its configuration only
(same data, encoders, epochs and seeds), settings under which all of them are run (ratios of noise, say), the claim, and
which entries it compares. ``holds`` is true only if the 95% interval of every paired difference lies above 0. With
``lower: true`` less is better (errors), and the difference is taken the other way round. An entry with a ``figure`` of
its own is read off that place of ``evaluate``'s answer: a baseline that needs no training shares another entry's run.
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
from consilience.errors import InputError, unknown
from consilience.evaluation.coding import CodeOptions
from consilience.evaluation.evaluate import chosen_rows, evaluate, labelled_rows, mean_map
from consilience.evaluation.figures import bars
from consilience.evaluation.report import Report
from consilience.evaluation.stats import paired_difference, t_interval
from consilience.files import write_json
from consilience.methods.base import Method
from consilience.methods.registry import find
from consilience.training.api import load, resume, settled, table_of, train
from consilience.training.config import TrainConfig
from consilience.training.configure import build, merge, more_epochs, read_yaml
from consilience.training.loop import Watch
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
    ``method_config`` and ``train_config`` go under every entry alike (input sizes, say). Where a plan says
    ``clusters: classes``, K is the number of classes of the data: it is given, as in RoMo's paper. Raises InputError
    for unknown methods or data.
    """
    find(method)
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: expected at least 1 (3 or more for an interval)")
    experiment = read_yaml(plan or method, "experiments")
    data = data or experiment["data"]
    known = ("method", "data", "metric", "figure", "claim", "settings", "enough", "method_config", "train", "clusters",
             "with_data", "codes", "margin", "margins", "entries", "lower")  # fmt: skip
    for key in experiment:
        if key not in known:
            raise unknown(f"key of the experiment {plan or method}", str(key), known)
    for key, values in (experiment.get("with_data", {}).get(Path(data).name) or {}).items():
        experiment[key] = _over(experiment.get(key) or {}, values) if isinstance(values, Mapping) else values
    began = time.monotonic()
    table = table_of(data, out)
    chosen_rows(table, "split = 'test'")  # nothing to be judged by is found out before anything is trained
    rows = table.select("split = 'train'")
    common = _over({**_given(table, experiment), **experiment.get("method_config", {})}, method_config or {})
    factor = max(1, math.ceil(experiment.get("enough", _ENOUGH) / max(1, len(rows))))
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        for setting, options in _settings(experiment).items():
            for name, entry in experiment["entries"].items():
                entry = entry or {}
                of = entry.get("method", method)
                special = (entry.get("settings") or {}).get(setting.removeprefix(" at "), {})
                known_to_it = vars(find(of).cls.Config())
                own: dict[str, Any] = {}
                for source in (common, options.get("method_config", {})):
                    own = _over(own, {key: value for key, value in source.items() if key in known_to_it})
                for source in (entry.get("method_config", {}), special.get("method_config", {})):
                    own = _over(own, source)
                config = more_epochs(merge(find(of).cls.Config(), own), factor)
                loop = {
                    **experiment.get("train", {}),
                    **(train_config or {}),
                    **options.get("train", {}),
                    **entry.get("train", {}),
                    "seed": seed,
                }
                label = f"{name}{setting}"
                codes = _codes(*(source.get("codes", {}) for source in (experiment, options, entry, special)))
                runs.setdefault(label, []).append(_run(out, table, of, label, entry, config, loop, codes, quiet))
    result = _summary(experiment, method, data, seeds, runs)
    result["seconds"] = round(time.monotonic() - began, 1)
    result["epochs_factor"] = factor
    result["data_version"], result["commit"] = table.fingerprint(), commit()
    write_json(out / "result.json", result)
    _report(out, result)
    result["report"] = str(out / "report.html")
    return result


def _settings(experiment: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Suffix of an entry's name to the options under which all entries are run; one empty setting by default."""
    found = experiment.get("settings") or {}
    return {f" at {name}": options or {} for name, options in found.items()} or {"": {}}


def _codes(*sources: Mapping[str, Any]) -> CodeOptions | None:
    """How an entry's vectors are hashed, where the plan says so; later sources win."""
    joined: dict[str, Any] = {}
    for source in sources:
        joined |= source
    return build(CodeOptions, joined) if joined else None


def _given(table: Table, experiment: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan takes from the labels: their number, where it says so (``clusters: classes``)."""
    return {"clusters": len(table.labels()[1])} if experiment.get("clusters") == "classes" else {}


def _over(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested plain values with others put over them."""
    out = dict(base)
    for key, value in values.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _over(out[key], value) if both else value
    return out


def _run(
    out: Path,
    table: Table,
    method: str,
    name: str,
    entry: Mapping[str, Any],
    config: Any,
    options: dict[str, Any],
    codes: CodeOptions | None,
    quiet: bool,
) -> dict[str, Any]:
    """One entry with one seed: train (or resume, or reuse), evaluate on the test split."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    place = out / "runs" / f"{slug}-{options['seed']}"
    done = place / "figures.json"
    train_options, config = merge(TrainConfig(), options), settled(config, table)
    wanted = (method, plain_values(config), plain_values(train_options), str(table.path.resolve()))
    if (place / "config.yaml").exists() and _identity(place) != wanted:
        raise InputError(f"{place} was run with other options or data; choose another -o")
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    spy: Watch | None = None
    if entry.get("selection"):
        rows, labels = labelled_rows(table, "split = 'test'")

        def watch(model: Method, phase: str, epoch: int) -> dict[str, float]:
            return {"test_map": mean_map(model, table, rows, labels)}

        spy = watch
    twin = None if spy else _finished(out / "runs", wanted)
    if twin is not None and "figure" in entry and (twin / done.name).exists():  # only read elsewhere in its answer
        found = json.loads((twin / done.name).read_text())
        write_json(done, found)
        return found
    if twin is not None:  # another entry that differs in what is done with the vectors only
        run = load(twin)
    elif (place / "config.yaml").exists():
        run = resume(place, watch=spy, quiet=quiet)
    else:
        run = train(method, table, place, config=config, train=train_options, watch=spy, quiet=quiet)
    figures = evaluate(run, codes=codes)
    if spy is not None:
        figures["selection"] = _selection(list(run.folder.records()))
    write_json(done, figures)
    return figures


def _identity(place: Path) -> tuple[Any, ...]:
    """What decides a run's weights, as plain values."""
    kept = RunFolder.open(place).config()
    return kept["method"], kept["method_config"], kept["train"], kept["data"]


def _finished(runs: Path, wanted: tuple[Any, ...]) -> Path | None:
    """A finished run of this identity, if there is one."""
    for file in sorted(runs.glob("*/model.safetensors")):
        if _identity(file.parent) == wanted:
            return file.parent
    return None


def _selection(records: list[dict[str, Any]]) -> dict[str, float]:
    """How well the label-free criterion picks among the epochs of the last phase (labels are read only here)."""
    epochs = [r for r in records if "agreement" in r and "test_map" in r]
    last = [r for r in epochs if r["phase"] == epochs[-1]["phase"]]
    agreement, truth = [r["agreement"] for r in last], [r["test_map"] for r in last]
    chosen = truth[int(np.argmax(agreement))]
    correlation = float(spearmanr(agreement, truth).statistic) if len(last) > 2 else math.nan
    return {"chosen": chosen, "best": max(truth), "last": truth[-1], "rank_correlation": correlation}


def _summary(
    plan: Mapping[str, Any], method: str, data: str, seeds: int, runs: Mapping[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    results: dict[str, Any] = {}

    def put(name: str, values: list[float]) -> None:
        interval = t_interval(values)
        bounds = [None if math.isnan(x) else x for x in (interval.low, interval.high)]
        results[name] = {"mean": interval.mean, "ci95": bounds, "values": values}

    borrowed = set()
    for setting in _settings(plan):
        for of, entry in plan["entries"].items():
            figure = (entry or {}).get("figure", plan.get("figure", "mean_map"))
            values = [_at(run, tuple(figure.split("."))) for run in runs[of + setting]]
            if all(math.isnan(value) for value in values):
                raise InputError(f"entry {of} of the experiment: evaluate gives no figure {figure!r} of its runs")
            put(of + setting, values)
            if "figure" in (entry or {}):
                borrowed.add(of + setting)
    for name, found in runs.items():
        if name in borrowed:
            continue
        for path in _paths(found[0]):
            values = [_at(run, path) for run in found]
            if not any(math.isnan(value) for value in values):
                put(f"{name}: {_words(path)}", values)
    margins = []
    for setting in _settings(plan):
        for pair in plan.get("margins") or [plan["margin"]]:
            if "at" in pair and setting.removeprefix(" at ") not in pair["at"]:
                continue
            of, over = f"{pair['of']}{setting}", f"{pair['over']}{setting}"
            more, less = (over, of) if plan.get("lower") else (of, over)
            found_margin = paired_difference(results[more]["values"], results[less]["values"]).interval
            low, high = found_margin.low, found_margin.high
            margins.append(
                {
                    "of": of,
                    "over": over,
                    "difference": f"{more} minus {less}",
                    "mean": found_margin.mean,
                    "ci95": [None if math.isnan(x) else x for x in (low, high)],
                    "holds": bool(low > 0),
                }
            )
    return {
        "method": method,
        "data": str(data),
        "metric": plan["metric"],
        "seeds": list(range(seeds)),
        "results": results,
        "claim": plan["claim"],
        "margin": margins[0],
        "margins": margins,
        "holds": all(margin["holds"] for margin in margins),
        "entries": list(runs),
    }


_SKIPPED = (
    "rows",
    "curve",
    "precision_within",
    "skipped",
    "bits",
    "database_rows",
    "where",
    "ci95",
    "map_at_r",
    "map_at_k",
    "precision_at_k",
    "recall_at_k",
    "partner_recall_at_k",
    "baselines",
)


def _paths(figures: Mapping[str, Any], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where single figures lie in the nested answer of ``evaluate``, those of the headline's kind."""
    found = []
    for key, value in figures.items():
        if key in _SKIPPED:
            continue
        if isinstance(value, Mapping):
            found += _paths(value, (*before, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((*before, key))
    return found


def _at(figures: Mapping[str, Any], path: tuple[str, ...]) -> float:
    """The figure at ``path``, NaN where there is none."""
    value: Any = figures
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return math.nan if value is None else float(value)


def _words(path: tuple[str, ...]) -> str:
    """A figure's name in the results."""
    if path[0] == "directions":
        return path[1]
    if path[0] == "pseudo_labels":
        return "pseudo-label agreement" if len(path) == 2 else f"pseudo-label {path[2]} {path[1]}"
    return ", ".join(path)


def _report(out: Path, result: Mapping[str, Any]) -> None:
    page = Report(f"{result['method']} on {result['data']}")
    page.text(f"Claim: {result['claim']}.")
    for margin in result["margins"]:
        bounds = (
            "no interval from one seed"
            if margin["ci95"][0] is None
            else "95% interval {:.3f} to {:.3f}".format(*margin["ci95"])
        )
        verdict = "Shown" if margin["holds"] else "Not shown"
        page.text(
            f"{verdict}: {margin['difference']} is {margin['mean']:+.3f} ({bounds}, paired over "
            f"{len(result['seeds'])} seeds).",
            "" if margin["holds"] else "warning",
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
