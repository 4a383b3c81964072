"""The report of a training run: curves, what was set aside, where things are."""

from __future__ import annotations

import json
from pathlib import Path

from consilience.data.table import QUARANTINE
from consilience.evaluation.figures import loss_curves
from consilience.evaluation.report import Report
from consilience.training.api import Run


def write_run_report(run: Run) -> Path:
    """Write ``report.html`` of a run from its own files (no labels needed)."""
    content = run.folder.config()
    facts = json.loads((run.path / "environment.json").read_text())
    page = Report(f"{content['method']} on {Path(content['data']).name}")
    kinds = ", ".join(f"{name} ({kind})" for name, kind in content["modalities"].items())
    page.text(f"{content['samples']} training samples; {kinds}. Seed {facts['seed']}.")
    records = list(run.folder.records())
    if records:
        page.figure(
            loss_curves(records),
            "Loss terms by step; agreement of the modalities on held-out pairs by epoch.",
        )
    add_quarantine(page, run)
    page.heading("Traced to")
    page.table(("", ""), [(name, str(value)) for name, value in facts.items()])
    return page.save(run.folder.report_file)


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
