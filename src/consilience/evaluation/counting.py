"""Judge a run that counts: errors of the counts by weather, what its features know of the weather, a baseline.

The count of a picture is the sum of its density map over the cells that the picture covers; the truth is the number of
its points. MAE = mean |c' - c|, RMSE = sqrt(mean (c' - c)^2). Intervals: 95% bootstrap over pictures (over groups of
rows that show the same picture, where the Table says so).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from consilience.data.density import covered
from consilience.data.loader import read
from consilience.data.pictures import decode_whole, placement
from consilience.data.schema import Batch, single
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.evaluation.report import Report
from consilience.evaluation.stats import bootstrap_ratios, percentile
from consilience.methods.base import Method
from consilience.training.api import Run

BATCH = 32
NEIGHBOURS = 5
"""Of the classifier that reads the weather off pooled features."""
NORMAL = "normal"
_SHOWN = 8


@dataclass(frozen=True)
class Counted:
    """Rows as a run sees them; row i of everything is the i-th row that was asked for."""

    estimate: np.ndarray
    """float64 [n]: sums of the density maps."""
    truth: np.ndarray
    """float64 [n]: numbers of points."""
    embeddings: Mapping[str, np.ndarray]
    """What the method's ``embeddings`` says, float32 [n, d] each; empty for a method without."""


@torch.no_grad()
def count_rows(run: Run, rows: np.ndarray) -> Counted:
    """Counts of the rows at offsets ``rows``, without augmentation. InputError for rows without places."""
    method, table = run.method, run.table
    name, _ = single(method.modalities)
    device = next(method.parameters()).device
    method.eval()
    estimates, found = [], cast(dict[str, list[np.ndarray]], {})
    start = 0
    for batch in read(table, rows, method.decode, BATCH, modalities=(name,)):
        density = masked_density(method, batch.to(device), _files(table, rows[start : start + len(batch)], name))
        estimates.append(density.sum((1, 2, 3)).double().cpu().numpy())
        if hasattr(method, "embeddings"):
            for key, value in cast(Any, method).embeddings(batch.to(device)).items():
                found.setdefault(key, []).append(value.float().cpu().numpy())
        start += len(batch)
    truth = _truth(table, rows)
    return Counted(np.concatenate(estimates), truth, {key: np.concatenate(v) for key, v in found.items()})


def masked_density(method: Method, batch: Batch, files: Sequence[bytes]) -> torch.Tensor:
    """Density maps float32 [b, 1, h, w] of a batch, 0 where a square does not show its picture."""
    density = cast(Any, method).density(batch)
    size, fit = method.decode.image_size, method.decode.image_fit
    mask = covered([placement(data, size, fit) for data in files], size, *density.shape[2:])
    return cast(torch.Tensor, density * mask.to(density.device))


def errors(error: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """MAE and RMSE of count errors float64 [n] with intervals over groups int64 [n] of rows."""
    _, code = np.unique(group, return_inverse=True)
    size = np.bincount(code).astype(np.float64)
    sums = np.stack([np.bincount(code, np.abs(error)), np.bincount(code, error**2)], 1)
    drawn = bootstrap_ratios(sums.astype(np.float64), np.stack([size, size], 1)) if len(size) > 1 else None
    mae, mse = float(np.abs(error).mean()), float((error**2).mean())
    bounds: dict[str, Any] = {"mae": [None, None], "rmse": [None, None]}
    if drawn is not None:
        bounds = {"mae": list(percentile(drawn[:, 0])), "rmse": list(np.sqrt(percentile(drawn[:, 1])).tolist())}
    return {"mae": mae, "rmse": mse**0.5, "bias": float(error.mean()), "ci95": bounds, "rows": len(error)}


def figures(run: Run, where: str) -> dict[str, Any]:
    """Errors of the rows that pass ``where``: of all, normal and adverse ones, by weather; of the baseline that says
    the training rows' mean count; and, with weather and training rows, what the features know of it:

    ``weather_accuracy``, balanced accuracy of 5 nearest training rows by standardised pooled features before
    refinement; ``adverse_to_normal``, the share of adverse rows whose refined embedding lies nearest to the training
    rows' mean embedding of normal weather.
    """
    table = run.table
    rows = table.select(where)
    if not len(rows):
        raise InputError(f"no rows of {table.path} pass {where!r}; name a split that exists")
    seen, weather = count_rows(run, rows), weather_of(table, rows)
    normal = normal_name(run.method)
    group = table.take(rows, ["group"])["group"].to_numpy() if "group" in table.columns else np.arange(len(rows))
    learnt = table.select("split = 'train'")
    error = seen.estimate - seen.truth
    out: dict[str, Any] = _by_weather(error, weather, group, normal)
    if len(learnt):
        guess = float(_truth(table, learnt).mean()) - seen.truth
        out["baselines"] = {"mean_count": _by_weather(guess, weather, group, normal)}
        adverse = weather != normal
        if seen.embeddings and len(set(weather_of(table, learnt).tolist())) > 1 and adverse.any():
            out |= _knowledge(seen, weather, count_rows(run, learnt), weather_of(table, learnt), normal)
    return {"counting": out}


def weather_of(table: Table, rows: np.ndarray) -> np.ndarray:
    """object [n]: name of each row's weather; normal where the Table does not say."""
    if "weather" not in table.columns:
        return np.array([NORMAL] * len(rows), dtype=object)
    return np.array([w or NORMAL for w in table.take(rows, ["weather"])["weather"].to_pylist()], dtype=object)


def normal_name(method: Method) -> str:
    """What the run calls weather that is none."""
    return str(getattr(method.config, "normal", NORMAL))


def lines(found: Mapping[str, Any]) -> list[str]:
    """What the command line prints."""
    counting = found["counting"]
    said = []
    for name, entry in _entries(counting):
        low, high = entry["ci95"]["mae"]
        spread = "" if low is None else f" ({low:.2f} to {high:.2f})"
        said.append(f"{name:<22} MAE {entry['mae']:.2f}{spread}  RMSE {entry['rmse']:.2f}  {entry['rows']} rows")
    if "weather_accuracy" in counting:
        said.append(f"weather read off features  {counting['weather_accuracy']:.3f} (balanced accuracy, 5-NN)")
        said.append(f"adverse refined to normal  {counting['adverse_to_normal']:.3f}")
    return said


def report(page: Report, found: Mapping[str, Any], run: Run, where: str) -> None:
    """Errors by weather, estimates against truths, and density maps over pictures."""
    counting = found["counting"]
    page.heading("Counts")
    page.table(
        ("rows", "MAE", "95% low", "high", "RMSE", "bias", "number"),
        [
            (name, e["mae"], *("-" if b is None else b for b in e["ci95"]["mae"]), e["rmse"], e["bias"], e["rows"])
            for name, e in _entries(counting)
        ],
    )
    if "weather_accuracy" in counting:
        page.text(
            f"Weather read off pooled features by 5 nearest training rows: balanced accuracy "
            f"{counting['weather_accuracy']:.3f}. Adverse pictures whose refined embedding lies nearest to normal "
            f"weather: {counting['adverse_to_normal']:.3f}."
        )
    rows = run.table.select(where)
    page.figure(_scatter(run, rows), "Estimated over true counts, a dot a picture; the line is equality.")
    page.heading("Density maps")
    page.cards(list(_cards(run, rows[np.linspace(0, len(rows) - 1, min(_SHOWN, len(rows))).astype(int)])))


def _entries(counting: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "all", counting
    for name in ("normal", "adverse"):
        if name in counting:
            yield name, counting[name]
    for name, entry in counting.get("by_weather", {}).items():
        if name != "normal":
            yield name, entry
    if "baselines" in counting:
        yield "mean count (baseline)", counting["baselines"]["mean_count"]


def _by_weather(error: np.ndarray, weather: np.ndarray, group: np.ndarray, normal: str) -> dict[str, Any]:
    out = errors(error, group)
    adverse = weather != normal
    for name, chosen in (("normal", ~adverse), ("adverse", adverse)):
        if chosen.any():
            out[name] = errors(error[chosen], group[chosen])
    if adverse.any():
        out["by_weather"] = {
            str(name): errors(error[weather == name], group[weather == name]) for name in sorted(set(weather.tolist()))
        }
    return out


def _knowledge(seen: Counted, weather: np.ndarray, learnt: Counted, known: np.ndarray, normal: str) -> dict[str, float]:
    scale = StandardScaler().fit(learnt.embeddings["features"])
    reader = KNeighborsClassifier(min(NEIGHBOURS, len(known)))
    reader.fit(scale.transform(learnt.embeddings["features"]), known.tolist())
    said = reader.predict(scale.transform(seen.embeddings["features"]))
    both = np.isin(weather, np.unique(known))
    names = sorted(set(known.tolist()))
    centres = np.stack([learnt.embeddings["plain"][known == name].mean(0) for name in names])
    centres = centres / np.linalg.norm(centres, axis=1, keepdims=True).clip(1e-12)
    nearest = np.array(names, dtype=object)[(seen.embeddings["refined"] @ centres.T).argmax(1)]
    adverse = weather != normal
    return {
        "weather_accuracy": float(balanced_accuracy_score(weather[both].tolist(), said[both].tolist())),
        "adverse_to_normal": float((nearest[adverse] == normal).mean()),
    }


def _truth(table: Table, rows: np.ndarray) -> np.ndarray:
    if "places" not in table.columns:
        raise InputError(f"{table.path} has no column 'places'; counts are judged against the points of every picture")
    places = table.take(rows, ["places"])["places"]
    if places.null_count:
        raise InputError(f'{places.null_count} rows have no places; leave them out with a filter "places is not null"')
    return np.array([len(entry) for entry in places.to_pylist()], dtype=np.float64)


def _files(table: Table, rows: np.ndarray, name: str) -> list[bytes]:
    return cast(list[bytes], table.take(rows, [name])[name].to_pylist())


def _scatter(run: Run, rows: np.ndarray) -> Figure:
    seen, weather = count_rows(run, rows), weather_of(run.table, rows)
    figure = Figure(figsize=(5, 4.4))
    axis = figure.subplots()
    for name in sorted(set(weather.tolist())):
        axis.plot(seen.truth[weather == name], seen.estimate[weather == name], "o", ms=3, alpha=0.6, label=name)
    top = float(max(seen.truth.max(), seen.estimate.max(), 1))
    axis.plot([0, top], [0, top], color="#718096", lw=0.8)
    axis.set(xlabel="true count", ylabel="estimate")
    axis.legend(fontsize=8)
    return figure


@torch.no_grad()
def _cards(run: Run, rows: np.ndarray) -> Iterator[tuple[str, str, list[tuple[str, bytes | str]]]]:
    import matplotlib

    name, _ = single(run.method.modalities)
    device = next(run.method.parameters()).device
    files, weather, truth = _files(run.table, rows, name), weather_of(run.table, rows), _truth(run.table, rows)
    ids = run.table.take(rows, ["id"])["id"].to_pylist()
    batch = next(read(run.table, rows, run.method.decode, len(rows), modalities=(name,)))
    density = masked_density(run.method, batch.to(device), files)[:, 0].cpu().numpy()
    top = max(float(density.max()), 1e-9)
    for i, data in enumerate(files):
        map_ = (matplotlib.colormaps["viridis"](density[i] / top)[..., :3] * 255).astype(np.uint8)
        parts: list[tuple[str, bytes | str]] = [("picture", _png(decode_whole(data))), ("density", _png(map_))]
        yield str(ids[i]), f"{weather[i]}: {density[i].sum():.1f} of {truth[i]:.0f}", parts


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
