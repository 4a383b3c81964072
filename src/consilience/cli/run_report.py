"""The report of a training run: curves, what was set aside, where things are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilience.data.table import QUARANTINE
from consilience.evaluation.figures import loss_curves, precision_recall
from consilience.evaluation.report import Report
from consilience.evaluation.tasks import JUDGES
from consilience.methods.base import Task
from consilience.training.api import Run


def write_run_report(run: Run, figures: Mapping[str, Any] | None = None) -> Path:
    """Write ``report.html`` of a run from its own files (no labels needed), with what ``evaluate`` found if given."""
    content = run.folder.config()
    facts = json.loads((run.path / "environment.json").read_text())
    page = Report(f"{content['method']} on {Path(content['data']).name}")
    kinds = ", ".join(f"{name} ({kind})" for name, kind in content["modalities"].items())
    page.text(f"{content['samples']} training samples; {kinds}. Seed {facts['seed']}.")
    records = list(run.folder.records())
    if records:
        agreed = any("agreement" in record for record in records)
        below = "; agreement of the modalities on held-out pairs by epoch." if agreed else "."
        page.figure(loss_curves(records), f"Loss terms by step{below}")
    if figures is not None:
        if run.method.task is Task.RETRIEVAL:
            add_figures(page, figures)
        else:
            page.heading(f"Judged on {figures['rows']} rows where {figures['where']}")
            JUDGES[run.method.task].report(page, figures, run, figures["where"])
    add_quarantine(page, run)
    page.heading("Traced to")
    page.table(("", ""), [(name, str(value)) for name, value in facts.items()])
    return page.save(run.folder.report_file)


def add_figures(page: Report, figures: Mapping[str, Any]) -> None:
    """What ``evaluate`` found, with 95% intervals over queries."""
    page.heading(f"Judged on {figures['rows']} rows where {figures['where']}")
    pairs = figures.get("pairs", {})
    ways = {name: found for name, found in pairs.items() if "->" in name}
    if ways:
        cuts = list(next(iter(ways.values()))["ci95"])
        shown = [[name, *(_with_interval(way, cut) for cut in cuts), way["median_rank"]] for name, way in ways.items()]
        page.table(("retrieval of pairs, percent", *(f"R@{cut[1:]}" for cut in cuts), "median rank"), shown)
        page.text(f"rsum {_with_interval({'rsum': pairs['rsum'], 'ci95': {'rsum': pairs.get('ci95')}}, 'rsum')}")
    if "directions" in figures:
        shown = [[name, way["map"], *way["ci95"]] for name, way in figures["directions"].items()]
        page.table(("retrieval by class", "mAP", "low", "high"), shown)
    if "hamming" in figures:
        found = figures["hamming"]
        shown = [[name, way["map"], *way["ci95"], way["asymmetric_map"], way["real_map"]]
                 for name, way in found["directions"].items()]  # fmt: skip
        heads = (f"codes of {found['bits']} bits by {found['by']}", "mAP", "low", "high", "real query", "real vectors")
        page.table(heads, shown)
        page.figure(
            precision_recall({name: way["curve"] for name, way in found["directions"].items()}),
            f"Precision and recall within Hamming radius 0 to {found['bits']}, mean over queries, in "
            f"{found['database_rows']} rows where {found['database']}.",
        )
    if "noise" in figures:
        page.table(("mismatches injected into the training pairs", ""), list(figures["noise"].items()))


def _with_interval(found: Mapping[str, Any], name: str) -> str:
    bounds = found["ci95"][name]
    interval = "" if bounds is None else f" [{bounds[0]:.1f}, {bounds[1]:.1f}]"
    return f"{found[name]:.1f}{interval}"


def quarantined(run: Run) -> list[dict[str, str]]:
    """The samples of the run's Table that were set aside at import: id, modality, origin, reason."""
    listed = run.table.path / QUARANTINE
    return [json.loads(line) for line in listed.read_text().splitlines()] if listed.exists() else []


def add_quarantine(page: Report, run: Run) -> None:
    """List the samples that could not be read, if any."""
    entries = quarantined(run)
    if entries:
        page.heading(f"Set aside: {len(entries)} unreadable samples")
        page.table(("id", "modality", "origin", "reason"), [list(entry.values()) for entry in entries])
