"""``audit.html``: what was found, how sure it is, and the worst rows to look at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from consilience.audit.calibration import Calibration
from consilience.audit.checks.base import Context, Finding
from consilience.audit.checks.registry import checks
from consilience.audit.thumbnails import thumbnail
from consilience.evaluation.report import Report

WORST = 24
"""Rows shown of each check."""
_BLUE, _RED, _GREY = "#2b6cb0", "#c05621", "#4a5568"


def write_page(path: Path, context: Context, findings: Mapping[str, Finding], result: Mapping[str, Any]) -> Path:
    """Write the report; ``result`` is what :func:`consilience.audit.api.audit` returns."""
    page = Report(f"Audit of {context.table.path.name}")
    page.text(f"{len(context)} rows of {context.table.path} ({context.table.source}).", "soft")
    _headline(page, result)
    told = {name: info.title for name, info in checks().items() if name in findings}
    page.table(
        ("finding", "rows"),
        [
            (
                f"{title}: {found.text}" if found.skipped else found.text,
                "-" if found.skipped else int(found.flagged.sum()),
            )
            for (name, title), found in ((one, findings[one[0]]) for one in told.items())
        ],
    )
    if "true_noise_ratio" in result:
        _planted(page, "Planted mismatches", result)
    if "labels" in result:
        _planted(page, "Planted wrong labels", result["labels"])
    found = findings.get("pair_mismatch")
    if found is not None and found.skipped is None:
        for pair in ("-".join(pair) for pair in context.pairs):
            for sample, fit in found.shown[pair]["fits"].items():
                z = found.shown[pair]["z"][found.shown[pair]["samples"] == sample]
                page.figure(
                    _histogram(z, fit),
                    f"{pair}, {sample} rows: how well pairs fit, on the scale of pairs mismatched on purpose (a normal "
                    f"curve). The grey area are pairs as good as mismatched: {fit.noise_ratio:.1%} of all.",
                )
    for name, info in checks().items():
        if name in findings and findings[name].skipped is None:
            _worst(page, context, info.title, findings[name])
    page.heading("Traced to")
    page.table(
        ("", ""),
        [(key, str(result[key])) for key in ("data_version", "commit")]
        + [("runs", ", ".join(result["runs"]) or "none")],
    )
    return page.save(path)


def _headline(page: Report, result: Mapping[str, Any]) -> None:
    if "noise_ratio" not in result:
        return
    low, high = result["noise_ratio_ci95"]
    page.text(f"Estimated share of wrong pairs: {result['noise_ratio']:.1%} (95% interval {low:.1%} to {high:.1%}).")
    if result.get("warning"):
        page.text(result["warning"], "warning")


def _planted(page: Report, title: str, figures: Mapping[str, Any]) -> None:
    page.heading(title)
    page.text(
        f"True share {figures['true_noise_ratio']:.3f}, estimated {figures['noise_ratio']:.3f}; expected calibration "
        f"error {figures['calibration_error']:.3f}."
    )
    rows = [("this audit", figures["auroc"], figures["average_precision"], figures["noise_ratio"])]
    rows += [
        (name, f["auroc"], f["average_precision"], f.get("noise_ratio", "-"))
        for name, f in figures["baselines"].items()
    ]
    page.table(("", "AUROC", "average precision", "estimated share"), rows)
    page.figure(
        _reliability(figures["calibration"]),
        "Probability of being right against the share that is; dots as large as their number of rows.",
    )


def _histogram(z: np.ndarray, fit: Calibration) -> Figure:
    figure = Figure(figsize=(8, 3.2))
    axis = figure.subplots()
    z = z[~np.isnan(z)]
    edges = np.linspace(min(-4, z.min()), max(5, z.max()), 70)
    axis.hist(z, edges.tolist(), color=_BLUE, alpha=0.45, label="given pairs")
    grid = np.linspace(edges[0], edges[-1], 300)
    wrong, everything = fit.density(grid)
    scale = len(z) * (edges[1] - edges[0])
    axis.fill_between(grid, wrong * scale, color=_GREY, alpha=0.45, label="estimated wrong pairs")
    axis.plot(grid, everything * scale, color=_RED, lw=1.4, label="fitted mixture")
    axis.set_xlabel("fit of the pair (0 = usual for a mismatched pair)")
    axis.set_ylabel("pairs")
    axis.legend(fontsize=8)
    return figure


def _reliability(points: list[tuple[float, float, int]]) -> Figure:
    figure = Figure(figsize=(4.4, 4))
    axis = figure.subplots()
    mean, share, count = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    axis.plot([0, 1], [0, 1], color=_GREY, lw=0.8, ls=":")
    axis.plot(mean, share, color=_BLUE, lw=1)
    axis.scatter(mean, share, s=20 + 300 * count / count.sum(), color=_BLUE, alpha=0.6)
    axis.set_xlabel("probability given")
    axis.set_ylabel("share that is right")
    return figure


def _worst(page: Report, context: Context, title: str, finding: Finding) -> None:
    order = np.argsort(np.where(np.isnan(finding.score), np.inf, finding.score), kind="stable")
    rows = [int(row) for row in order if finding.flagged[row]][:WORST]
    if not rows:
        return
    page.heading(title)
    count = int(finding.flagged.sum())
    page.text(f"{'All' if count <= WORST else f'The {WORST} worst of'} {count}.", "soft")
    position = {int(key): row for row, key in enumerate(context.index)}
    better = {
        name.removeprefix("better_"): values for name, values in finding.columns.items() if name.startswith("better_")
    }
    cards = []
    for row in rows:
        parts = [(name, _look(context, row, name)) for name in context.modalities]
        for name, values in better.items():
            if values[row] >= 0:
                other = position[int(values[row])]
                parts.append((f"better {name}: {context.ids[other]}", _look(context, other, name)))
        if row in finding.others:
            other = finding.others[row]
            parts += [(f"{context.ids[other]}: {name}", _look(context, other, name)) for name in context.modalities]
        note = finding.reasons.get(row, f"right with probability {finding.score[row]:.3f}")
        cards.append((context.ids[row], note, parts))
    page.cards(cards)


def _look(context: Context, row: int, name: str) -> bytes | str:
    entry = context.table.take(context.rows[[row]], [name, f"origin_{name}"]).to_pylist()[0]
    return thumbnail(entry[name], context.modalities[name], entry[f"origin_{name}"] or "")
