"""Judge a run against labels: retrieval in every direction between modalities, and its pseudo-labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from consilience.data.table import Table
from consilience.errors import InputError
from consilience.evaluation.clustering import clustering_accuracy, nmi, view_agreement
from consilience.evaluation.retrieval import RetrievalResult, retrieval
from consilience.evaluation.stats import bootstrap_mean
from consilience.methods.base import Encoded, Method
from consilience.training.api import Run
from consilience.training.loop import encode_rows


def directions(encoded: Encoded, labels: Tensor, k: tuple[int, ...] = (1, 5, 10)) -> dict[str, RetrievalResult]:
    """``a->b`` (query modality a, gallery modality b) to the per-query metrics; the partner stays in the gallery.

    Rows without the modality, or without a label (negative), are left out of queries and gallery.
    """
    results = {}
    names = list(encoded.vectors)
    for a in names:
        for b in names:
            if a == b:
                continue
            ask, keep = encoded.present[a] & (labels >= 0), encoded.present[b] & (labels >= 0)
            if not bool(ask.any()) or not bool(keep.any()):
                raise InputError(f"no labelled rows with {a} and {b} to evaluate; check the split and the labels")
            place = torch.cumsum(keep.long(), 0) - 1
            partner = place[ask] if bool(keep[ask].all()) else None
            results[f"{a}->{b}"] = retrieval(
                encoded.vectors[a][ask],
                encoded.vectors[b][keep],
                labels[ask],
                labels[keep],
                k=k,
                partner=partner,
            )
    return results


def mean_map(method: Method, table: Table, rows: np.ndarray, labels: Tensor) -> float:
    """mAP@all, averaged over all directions."""
    device = next(method.parameters()).device
    found = directions(encode_rows(method, table, rows, device), labels.to(device))
    return float(np.mean([result.map for result in found.values()]))


def labelled_rows(table: Table, where: str) -> tuple[np.ndarray, Tensor]:
    """Row offsets that pass ``where`` and their class codes int64 [n]."""
    rows = table.select(where)
    if not len(rows):
        raise InputError(f"no rows of {table.path} pass {where!r}; name a split that exists")
    codes, _ = table.labels(where)
    return rows, torch.from_numpy(codes)


def evaluate(run: Run, *, where: str = "split = 'test'", k: tuple[int, ...] = (1, 5, 10)) -> dict[str, Any]:
    """All retrieval figures of the rows that pass ``where``, with 95% bootstrap intervals over queries, plus the
    pseudo-labels of the training rows where the run left any."""
    rows, labels = labelled_rows(run.table, where)
    device = next(run.method.parameters()).device
    found = directions(encode_rows(run.method, run.table, rows, device), labels.to(device), k)
    figures: dict[str, Any] = {"rows": len(rows), "where": where, "directions": {}}
    for name, result in found.items():
        interval = bootstrap_mean(result.ap)
        entry: dict[str, Any] = {
            "map": result.map,
            "ci95": [interval.low, interval.high],
            "map_at_r": result.map_at_r,
            "map_at_k": {str(cut): value for cut, value in result.map_at_k.items()},
            "precision_at_k": {str(cut): value for cut, value in result.mean_precision_at_k.items()},
            "recall_at_k": {str(cut): value for cut, value in result.mean_recall_at_k.items()},
        }
        if result.mean_partner_recall_at_k is not None:
            entry["partner_recall_at_k"] = {str(c): v for c, v in result.mean_partner_recall_at_k.items()}
        figures["directions"][name] = entry
    figures["mean_map"] = float(np.mean([result.map for result in found.values()]))
    figures["pseudo_labels"] = pseudo_label_figures(run)
    return figures


def pseudo_label_figures(run: Run) -> dict[str, Any]:
    """Accuracy (best matching) and NMI of the run's pseudo-labels: by modality as the robust stage uses them, and as
    that modality alone predicts them; how often the modalities' own predictions agree."""
    table = Table.open(run.table.path)
    figures: dict[str, Any] = {}
    used: list[np.ndarray] = []
    codes, _ = table.labels()
    for modality in run.method.modalities:
        for column, key in (
            (f"pseudo_{modality}", modality),
            (f"pseudo_{modality}_own", f"{modality} alone"),
        ):
            owner = table.provenance(column) if column in table.columns else None
            if owner is None:
                continue
            if owner.get("run") != str(run.path.resolve()):
                if (run.path / "pseudo_labels").exists():  # this run had written its own
                    figures["note"] = f"the pseudo-label columns of {table.path} are now those of {owner.get('run')}"
                continue
            values = table.column(column).astype(np.float64)
            known = ~np.isnan(values) & (codes >= 0)
            predicted = values[known].astype(np.int64)
            figures[key] = {
                "accuracy": clustering_accuracy(predicted, codes[known]),
                "nmi": nmi(predicted, codes[known]),
                "rows": int(known.sum()),
            }
            if key != modality:
                used.append(predicted)
    if len(used) > 1:
        figures["agreement"] = view_agreement(used[0], used[1])
    return figures
