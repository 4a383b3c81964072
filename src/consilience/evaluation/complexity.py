"""Judge scores of complexity: a probe on frozen features, a network's own scores, and what needs no training.

Judged are the rows that pass the filter and have a ``score``. A probe (ridge regression on frozen features) is fitted
on scored rows of split ``train`` that are not judged, where there are any; else by five folds within the judged rows.
With a column ``category`` everything is done within each category and figures are the plain mean over categories,
because scores of different categories need not be comparable (SAVOIAS); they are never pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from matplotlib.figure import Figure
from torch import Tensor

from consilience.data.loader import read
from consilience.data.schema import Batch, single
from consilience.errors import InputError
from consilience.evaluation.correlation import agreement, pcc, srcc
from consilience.evaluation.report import Report
from consilience.training.api import Run
from consilience.training.readouts import Readout, features_of, fit_ridge
from consilience.views.statistics import PRIORS, priors

SCORE, CATEGORY = "score", "category"
FOLDS, FEW, DRAWS = 5, 30, 10
ENOUGH = 2000
"""Training pictures that the label-free read-out is fitted on at most."""
COMMON = ("entropy", "edge_density", "png")
"""Statistics whose mean, each standardised over training pictures, the label-free read-out predicts."""
UNSUPERVISED = "unsupervised"
_BATCH = 256


@runtime_checkable
class Scorer(Protocol):
    """A method that gives scores by itself."""

    def judge(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores [b] and maps [b, 1, h, w] on the scale of the scores it was trained on."""


@runtime_checkable
class Activated(Protocol):
    """A method with a score of its own that nobody fitted."""

    def activation(self, batch: Batch) -> Tensor:
        """Summed activation [b]."""


@dataclass(frozen=True)
class Scored:
    """Judged rows (J) and rows to fit on (F), with their scores; groups are positions of a category in both."""

    judged: Int64[np.ndarray, " j"]
    fit: Int64[np.ndarray, " f"]
    truth: Float[np.ndarray, " j"]
    known: Float[np.ndarray, " f"]
    names: list[str]
    """Of the categories; one, empty, without any."""
    groups: list[tuple[np.ndarray, np.ndarray]]

    @cached_property
    def parts(self) -> list[np.ndarray]:
        return [judged for judged, _ in self.groups]

    @property
    def protocol(self) -> str:
        if len(self.fit):
            return f"ridge on frozen features of {len(self.fit)} training rows"
        return f"ridge on frozen features, {FOLDS} folds of the judged rows"


def scored_rows(run: Run, where: str) -> Scored:
    """The rows of a run's Table to judge and to fit on. InputError without scores."""
    table, (name, _) = run.table, single(run.method.modalities)
    if SCORE not in table.columns:
        raise InputError(f"{table.path} has no column {SCORE!r} to judge by; import scores with the pictures")
    there = f"{SCORE} is not null and origin_{name} is not null"
    judged = table.select(f"({where}) and {there}")
    if len(judged) < 3:
        raise InputError(f"{len(judged)} rows of {table.path} where {where} have a {SCORE}; three or more are needed")
    fit = np.setdiff1d(table.select(f"split = 'train' and {there}"), table.select(where))
    values = [table.take(rows, [SCORE])[SCORE].to_numpy().astype(np.float64) for rows in (judged, fit)]
    names, groups = [""], [(np.arange(len(judged)), np.arange(len(fit)))]
    if CATEGORY in table.columns:
        of = [np.array(table.take(rows, [CATEGORY])[CATEGORY].to_pylist(), dtype=object) for rows in (judged, fit)]
        names = sorted({str(one) for one in of[0]})
        groups = [(np.flatnonzero(of[0] == one), np.flatnonzero(of[1] == one)) for one in names]
    return Scored(judged, fit, values[0], values[1], names, groups)


def figures(run: Run, where: str) -> dict[str, Any]:
    """Correlations and errors of the run's scores with 95% intervals, by category too; from few labels; without any;
    and of the statistics and the untrained encoder beside them. Fits and keeps the run's read-outs ``score`` (or
    ``score-CATEGORY``) and ``unsupervised``."""
    rows = scored_rows(run, where)
    x = _both(run, rows)
    statistics = tuple(_statistics(run, one) for one in (rows.judged, rows.fit))
    columns = tuple(np.stack(list(one.values()), 1) for one in statistics)
    own = _scores(run, rows.judged)
    found: dict[str, Any] = {"scored": len(rows.judged), "protocol": rows.protocol}
    probe = _probe(x, rows)
    if own is None:
        found |= _of(probe, rows) | {"few": _few(x, rows)}
    else:
        found |= {"protocol": "the network's own scores"} | _of(own, rows) | {"probe": _of(probe, rows)}
    if rows.names != [""]:
        primary = probe if own is None else own
        found["categories"] = {
            name: agreement(primary[part], rows.truth[part]) | {"scored": len(part)}
            for name, part in zip(rows.names, rows.parts, strict=True)
        }
    found[UNSUPERVISED], of_priors = _label_free(run, rows, x[0], statistics[0])
    if isinstance(run.method, Activated):
        found["activation"] = _unfitted(_measured(run, rows.judged, run.method.activation), rows)
    joined = tuple(np.concatenate([a, b], 1) for a, b in zip(x, columns, strict=True))
    found["with_statistics"] = _of(_probe(joined, rows), rows) | {"few": _few(joined, rows)}
    baselines = {name: _statistic(name, statistics, rows) for name in PRIORS}
    baselines["statistics"] = _of(_probe(columns, rows), rows) | {"few": _few(columns, rows)}
    baselines["mean_of_statistics"] = of_priors
    random = _both(_untrained(run), rows)
    baselines["random"] = _of(_probe(random, rows), rows) | {"few": _few(random, rows)}
    found["baselines"] = baselines
    _keep(run, rows, x)
    return {"complexity": found}


def label_free(run: Run) -> tuple[Readout, dict[str, tuple[float, float]]]:
    """A read-out that needs no scores: ridge from frozen features of training pictures to the mean of their
    standardised :data:`COMMON` statistics. With the mean and deviation of each; kept as the run's ``unsupervised``."""
    name, _ = single(run.method.modalities)
    rows = run.table.select(f"split = 'train' and origin_{name} is not null")
    if not len(rows):
        raise InputError(f"{run.table.path} has no training pictures; the read-out without labels is fitted on them")
    rows = rows[:: -(-len(rows) // ENOUGH)]
    values = _statistics(run, rows, COMMON)
    moments = {one: (float(values[one].mean()), float(max(values[one].std(), 1e-12))) for one in COMMON}
    readout = fit_ridge(features_of(run, rows)[1], _standardised(values, moments))
    _save(readout, run, UNSUPERVISED)
    return readout, moments


def _standardised(values: Mapping[str, np.ndarray], moments: Mapping[str, tuple[float, float]]) -> np.ndarray:
    return np.asarray(np.mean([(values[one] - mean) / scale for one, (mean, scale) in moments.items()], 0))


def _label_free(
    run: Run, rows: Scored, features: np.ndarray, statistics: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of the label-free read-out, and of what it predicts."""
    readout, moments = label_free(run)
    return _unfitted(readout.predict(features), rows), _unfitted(_standardised(statistics, moments), rows)


def _both(run: Run, rows: Scored) -> tuple[np.ndarray, np.ndarray]:
    """Frozen features of the judged rows and of those to fit on."""
    judged = features_of(run, rows.judged)[1]
    return judged, features_of(run, rows.fit)[1] if len(rows.fit) else judged[:0]


def _measured(run: Run, rows: np.ndarray, measure: Any) -> np.ndarray:
    """What ``measure`` says of every row's batch, evaluation mode, float64."""
    name, device, parts = single(run.method.modalities)[0], next(run.method.parameters()).device, []
    run.method.eval()
    with torch.no_grad():
        for batch in read(run.table, rows, run.method.decode, _BATCH, modalities=(name,)):
            parts.append(measure(batch.to(device)).double().cpu().numpy())
    return np.concatenate(parts)


def _statistics(run: Run, rows: np.ndarray, names: Sequence[str] = tuple(PRIORS)) -> dict[str, np.ndarray]:
    """Statistics of the decoded pictures of the rows."""
    name, found = single(run.method.modalities)[0], []
    if not len(rows):
        return {one: np.zeros(0) for one in names}
    for batch in read(run.table, rows, run.method.decode, _BATCH, modalities=(name,)):
        found.append(priors(batch.values[name], names))
    return {one: np.concatenate([part[one] for part in found]) for one in names}


def _scores(run: Run, rows: np.ndarray) -> np.ndarray | None:
    method = run.method
    return _measured(run, rows, lambda batch: method.judge(batch)[0]) if isinstance(method, Scorer) else None


def _untrained(run: Run) -> Run:
    """The run's method from other random weights."""
    content = run.folder.config()
    names = {name: None for name in ("encoder_weights", "start") if hasattr(run.method.config, name)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(content["train"]["seed"] + 1_000)
        fresh = type(run.method)(replace(run.method.config, **names), run.method.modalities, run.method.samples)
    return replace(run, method=fresh.to(next(run.method.parameters()).device).eval())


def _probe(x: Sequence[np.ndarray], rows: Scored) -> np.ndarray:
    """Out-of-sample predictions of the judged rows."""
    out = np.zeros(len(rows.judged))
    for judged, fit in rows.groups:
        if len(fit) >= FOLDS:
            out[judged] = fit_ridge(x[1][fit], rows.known[fit]).predict(x[0][judged])
            continue
        order = np.random.default_rng(0).permutation(judged)
        folds = np.array_split(order, min(FOLDS, len(order)))
        for number, fold in enumerate(folds):
            rest = np.concatenate([other for place, other in enumerate(folds) if place != number])
            out[fold] = fit_ridge(x[0][rest], rows.truth[rest]).predict(x[0][fold])
    return out


def _few(x: Sequence[np.ndarray], rows: Scored) -> dict[str, Any] | None:
    """Mean over draws of correlations from :data:`FEW` labels a category, judged on the other rows; None where a
    category has too few."""
    found = []
    for draw in range(DRAWS):
        each = []
        for number, (judged, fit) in enumerate(rows.groups):
            held = len(fit) >= FOLDS
            pool, features, scores = (fit, x[1], rows.known) if held else (judged, x[0], rows.truth)
            if len(pool) < FEW + (0 if held else 3):
                return None
            chosen = np.random.default_rng((draw, number)).permutation(pool)[:FEW]
            others = judged if held else np.setdiff1d(judged, chosen)
            predicted = fit_ridge(features[chosen], scores[chosen]).predict(x[0][others])
            each.append([float(srcc(predicted, rows.truth[others])), float(pcc(predicted, rows.truth[others]))])
        found.append(np.mean(each, 0))
    mean, spread = np.mean(found, 0), np.std(found, 0, ddof=1)
    return {"protocol": f"{FEW} labels, mean of {DRAWS} draws", "srcc": float(mean[0]), "pcc": float(mean[1]),
            "deviation": f"{spread[0]:.3f}"}  # fmt: skip


def _of(predicted: np.ndarray, rows: Scored) -> dict[str, Any]:
    return dict(agreement(predicted, rows.truth, rows.parts))


def _unfitted(values: np.ndarray, rows: Scored) -> dict[str, Any]:
    """Correlations of values on a scale of their own."""
    return dict(agreement(values, rows.truth, rows.parts, names=("srcc", "pcc")))


def _statistic(name: str, statistics: Sequence[Mapping[str, np.ndarray]], rows: Scored) -> dict[str, Any]:
    """Correlations of a statistic as it is; errors of a line through it, fitted like the probe."""
    line = _of(_probe([one[name][:, None] for one in statistics], rows), rows)
    found = _unfitted(statistics[0][name], rows)
    for one in ("rmse", "rmae"):
        found[one] = line[one]
        found["ci95"][one] = line["ci95"][one]
    return found


def _keep(run: Run, rows: Scored, x: Sequence[np.ndarray]) -> None:
    for name, (judged, fit) in zip(rows.names, rows.groups, strict=True):
        held = len(fit) >= FOLDS
        features, scores = (x[1][fit], rows.known[fit]) if held else (x[0][judged], rows.truth[judged])
        _save(fit_ridge(features, scores), run, f"{SCORE}-{name.replace('/', '-')}" if name else SCORE)


def _save(readout: Readout, run: Run, name: str) -> None:
    with suppress(PermissionError):  # somebody else's run can be judged too
        readout.save(run.path, name)


_SHOWN = {"entropy": "entropy", "edge_density": "edge density", "jpeg": "JPEG size", "png": "PNG size",
          "regions": "regions", "statistics": "ridge on all five", "mean_of_statistics": "mean of entropy, edges, PNG",
          "random": "untrained encoder, ridge"}  # fmt: skip


def _entries(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What there is to show, in order: name and figures."""
    own = [("this run", found), ("its frozen features, ridge", found.get("probe"))]
    own += [("features and statistics, ridge", found["with_statistics"]), ("without labels", found[UNSUPERVISED])]
    own += [("activation (FAE)", found.get("activation"))]
    listed = own + [(_SHOWN[name], entry) for name, entry in found["baselines"].items()]
    return [(name, entry) for name, entry in listed if entry is not None]


def lines(found: Mapping[str, Any]) -> list[str]:
    """The figures as text: this run first, then what it is held against."""
    content = found["complexity"]
    out = [f"{content['scored']} rows with a score; {content['protocol']}"]
    for name, entry in _entries(content):
        low, high = entry["ci95"]["srcc"]
        few = (entry.get("few") or {}).get("srcc")
        errors = f"  RMSE {entry['rmse']:.3f}  RMAE {entry['rmae']:.3f}" if "rmse" in entry else ""
        less = "" if few is None else f"  from {FEW} labels {few:.3f}"
        out.append(f"{name:<31} SRCC {entry['srcc']:.3f} [{low:.3f}, {high:.3f}]  PCC {entry['pcc']:.3f}{errors}{less}")
    for name, entry in content.get("categories", {}).items():
        low, high = entry["ci95"]["srcc"]
        out.append(f"  {name:<29} SRCC {entry['srcc']:.3f} [{low:.3f}, {high:.3f}]  PCC {entry['pcc']:.3f}")
    return out


def report(page: Report, found: Mapping[str, Any], run: Run, where: str) -> None:
    """The table of figures, predicted against true scores, and pictures from plain to busy."""
    content = found["complexity"]
    page.text(f"{content['scored']} rows with a score; {content['protocol']}. Ridge is fitted out of sample.")
    shown = []
    for name, entry in [*_entries(content), *content.get("categories", {}).items()]:
        cells = [f"{entry[k]:.3f} [{entry['ci95'][k][0]:.3f}, {entry['ci95'][k][1]:.3f}]" if k in entry else "-"
                 for k in ("srcc", "pcc", "rmse", "rmae")]  # fmt: skip
        few = (entry.get("few") or {}).get("srcc", "-")
        shown.append((name, *cells, few))
    page.table(("scores from", "SRCC", "PCC", "RMSE", "RMAE", f"SRCC, {FEW} labels"), shown)
    rows = scored_rows(run, where)
    predicted = _scores(run, rows.judged)
    predicted = _probe(_both(run, rows), rows) if predicted is None else predicted
    page.figure(_scatter(predicted, rows), "Predicted against given scores, a dot a picture.")
    page.figure(_ladder(run, rows, predicted), "Pictures by predicted score, evenly from the plainest to the busiest.")


def _scatter(predicted: np.ndarray, rows: Scored) -> Figure:
    figure = Figure(figsize=(5, 4.4))
    axis = figure.subplots()
    for name, part in zip(rows.names, rows.parts, strict=True):
        axis.scatter(rows.truth[part], predicted[part], s=12, alpha=0.6, lw=0, label=name)
    axis.set(xlabel="given score", ylabel="predicted score")
    if rows.names != [""]:
        axis.legend(fontsize=7)
    return figure


def _ladder(run: Run, rows: Scored, predicted: np.ndarray, count: int = 10) -> Figure:
    order = np.argsort(predicted, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]
    name, _ = single(run.method.modalities)
    figure = Figure(figsize=(1.15 * len(chosen), 1.6))
    for place, position in enumerate(chosen):
        row = rows.judged[[position]]
        batch = next(iter(read(run.table, row, run.method.decode, 1, modalities=(name,))))
        axis = figure.add_subplot(1, len(chosen), place + 1)
        picture = np.moveaxis(batch.values[name][0].numpy(), 0, -1).squeeze()
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"{predicted[position]:.2f}\n({rows.truth[position]:.2f})", fontsize=7, pad=2)
        axis.set_axis_off()
    return figure
