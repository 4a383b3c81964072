"""Judge a run: retrieval of pairs, retrieval by class in every direction, pseudo-labels, mismatches that it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from consilience.data.table import Table
from consilience.errors import InputError
from consilience.evaluation.clustering import clustering_accuracy, nmi, view_agreement
from consilience.evaluation.coding import CodeOptions, code_figures
from consilience.evaluation.matching import CUTS, TieRule, ceiling
from consilience.evaluation.matching import folds as judge
from consilience.evaluation.retrieval import RetrievalResult, retrieval
from consilience.evaluation.scoring import Represented, Rows, ensemble, paired_items
from consilience.evaluation.stats import bootstrap_mean
from consilience.evaluation.tasks import JUDGES
from consilience.methods.base import Encoded, Method, Task
from consilience.training.api import NOISE_INDEX, Run
from consilience.training.config import TrainConfig
from consilience.training.configure import build
from consilience.training.passes import encode_rows
from consilience.training.selection import image_numbers, select_rows

Relevance = Literal["pair", "group"]
BELIEF = "clean_probability"
"""Column in which a method leaves the probability that a training pair is right."""


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
    rows = chosen_rows(table, where)
    codes, _ = table.labels(where)
    return rows, torch.from_numpy(codes)


def evaluate(
    run: Run | Sequence[Run],
    *,
    where: str = "split = 'test'",
    k: tuple[int, ...] = CUTS,
    folds: int = 1,
    ties: TieRule = "expected",
    relevance: Relevance = "pair",
    codes: CodeOptions | None = None,
) -> dict[str, Any]:
    """All figures of the rows that pass ``where``, with 95% bootstrap intervals over queries.

    Always: retrieval of pairs (``pairs``, and ``rsum`` beside it). Where the rows have labels: retrieval by class, and
    the pseudo-labels of the training rows where the run left any. Where mismatches were injected into the run and it
    left beliefs about its pairs: how well these find them (``noise``).

    Of a method that learns codes, and of any other when ``codes`` says how long they shall be: retrieval by Hamming
    distance (``hamming``), with the rows as queries and those that ``codes.database`` names as the database.

    Of a method for another task than retrieval: what the judge of its task measures
    (:mod:`consilience.evaluation.tasks`), under that one's key.

    Several runs over the same rows and modalities are judged as one: the mean of their scores (of their cosines, by
    class); ``pseudo_labels`` and ``noise`` are then the first run's. ``folds``, ``ties``: of the pairs, see
    :mod:`consilience.evaluation.matching`. ``relevance`` group: an item whose text equals the query's counts too.
    Raises :class:`InputError` for rows without labels that have no two modalities either, and runs that do not match.
    """
    runs = [run] if isinstance(run, Run) else list(run)
    first = _checked(runs)
    table, rows = first.table, chosen_rows(first.table, where)
    figures: dict[str, Any] = {"rows": len(rows), "where": where}
    task = first.method.task
    if task is not Task.RETRIEVAL:
        if len(runs) > 1:
            raise InputError(f"runs for {task} are judged one by one; name one run folder")
        return figures | {"task": str(task)} | JUDGES[task].figures(first, where)
    labels = _labels(table, where)
    encoded: Sequence[Encoded] | None = None
    if labels is not None or not all(_has_scorer(one.method) for one in runs):
        encoded = [encode_rows(one.method, table, rows, next(one.method.parameters()).device) for one in runs]
    if labels is not None and encoded is not None:
        figures |= _label_figures(_joined(encoded), labels, k)
        figures["pseudo_labels"] = pseudo_label_figures(first)
        if first.method.binary or (codes is not None and codes.bits is not None):
            figures["hamming"] = code_figures(first, encoded[0], labels, codes or CodeOptions())
    elif codes is not None and codes.bits is not None:
        raise InputError(f"codes are judged by class, and no row of {table.path} where {where} has a label")
    pairs = pair_figures(runs, rows, encoded, k=k, folds=folds, ties=ties, relevance=relevance)
    if not pairs and labels is None:
        raise InputError(
            f"no row of {table.path} where {where} has a label or two modalities; there is nothing to judge"
        )
    if pairs:
        figures |= {"pairs": pairs, "rsum": pairs["rsum"]}
    noise = noise_figures(first)
    return figures | ({"noise": noise} if noise else {})


def chosen_rows(table: Table, where: str) -> np.ndarray:
    """Offsets of the rows that pass ``where``; :class:`InputError` when there are none."""
    rows = table.select(where)
    if not len(rows):
        raise InputError(f"no rows of {table.path} pass {where!r}; name a split that exists")
    return rows


def _checked(runs: Sequence[Run]) -> Run:
    if not runs:
        raise InputError("no run to evaluate: name one or more run folders")
    first = runs[0]
    for other in runs[1:]:
        if other.table.fingerprint() != first.table.fingerprint():
            raise InputError(
                f"{other.path} and {first.path} learnt from different tables; judge both on one with --data TABLE"
            )
        if dict(other.method.modalities) != dict(first.method.modalities):
            raise InputError(
                f"{other.path} has {', '.join(other.method.modalities)}, {first.path} "
                f"{', '.join(first.method.modalities)}: an ensemble needs the same modalities"
            )
    return first


def _labels(table: Table, where: str) -> Tensor | None:
    """Class codes int64 [n] of the rows, None when none of them has a label."""
    named = table.take(table.select(where), ["label"])["label"]
    return None if named.null_count == len(named) else torch.from_numpy(table.labels(where)[0])


def _joined(encoded: Sequence[Encoded]) -> Encoded:
    """Vectors whose cosine is the mean of the runs' cosines."""
    if len(encoded) == 1:
        return encoded[0]
    names = list(encoded[0].vectors)
    unit = {name: torch.cat([F.normalize(one.vectors[name], dim=1) for one in encoded], 1) for name in names}
    return Encoded(unit, encoded[0].present)


def _label_figures(encoded: Encoded, codes: Tensor, k: tuple[int, ...]) -> dict[str, Any]:
    found = directions(encoded, codes.to(next(iter(encoded.vectors.values())).device), k)
    figures: dict[str, Any] = {"directions": {}}
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
    return figures


def _has_scorer(method: Method) -> bool:
    """Whether the method compares something else than its vectors."""
    return type(method).represent is not Method.represent


def _present(table: Table, rows: np.ndarray, name: str) -> np.ndarray:
    return np.isin(rows, table.select(f"{name} is not null"))


def pair_figures(
    runs: Sequence[Run],
    rows: np.ndarray,
    encoded: Sequence[Encoded] | None = None,
    *,
    k: tuple[int, ...] = CUTS,
    folds: int = 1,
    ties: TieRule = "expected",
    relevance: Relevance = "pair",
) -> dict[str, Any]:
    """Retrieval of pairs by the mean score of ``runs``, for every two modalities, among the rows that have both.

    ``encoded``: the rows as each run's method encodes them, where that is at hand. Of two modalities: what
    :meth:`MatchingResult.figures` gives, how many items each side has (``images``, ``captions``), and the ``ceiling``
    that repeated texts of one-to-one pairs set. Of more: each direction's figures under its name and the mean of the
    ``rsum``. Empty when no row has two modalities.
    """
    table, found = runs[0].table, []
    for names in combinations(runs[0].method.modalities, 2):
        place = np.flatnonzero(_present(table, rows, names[0]) & _present(table, rows, names[1]))
        if not len(place):
            continue
        items = paired_items(table, rows[place], names)
        sides = []
        for number, one in enumerate(runs):
            made: list[Rows] = []
            for name, chosen in zip(items.names, (place[items.first], place[items.second]), strict=True):
                if encoded is None or _has_scorer(one.method):
                    made.append(Represented(one.method, table, rows[chosen], name))
                else:  # what the method compares is encoded already
                    made.append(encoded[number].vectors[name][torch.from_numpy(chosen)])
            sides.append((made[0], made[1]))
        scores = ensemble([one.method for one in runs], sides, items.names)
        group = items.copies if relevance == "group" else None
        result = judge(scores, items.own, folds=folds, ties=ties, k=k, copies=group)
        figures = result.figures(items.names) | {"images": len(items.first), "captions": len(items.second)}
        if group is None and len(items.first) == len(items.second) > len(torch.unique(items.copies)):
            figures["ceiling"] = {f"r{cut}": value for cut, value in ceiling(items.copies, sorted({*k, *CUTS})).items()}
        found.append(figures)
    if len(found) < 2:
        return found[0] if found else {}
    joined = {name: value for figures in found for name, value in figures.items() if "->" in name}
    return joined | {"rsum": float(np.mean([figures["rsum"] for figures in found]))}


def noise_figures(run: Run) -> dict[str, Any]:
    """How well ``clean_probability``, a column of beliefs that ``run`` left, finds the mismatches injected into it.

    ``auroc`` and ``average_precision`` of 1 - p for the mismatched training pairs (absent where all or none are);
    ``noise_ratio``, the mean of 1 - p; ``share_below_half``, of the pairs with p < 1/2; ``true_noise_ratio``. A pair
    that got its own picture back by chance is a right one. Empty without injected noise or without this run's column.
    """
    file, table = run.path / NOISE_INDEX, Table.open(run.table.path)
    owner = table.provenance(BELIEF) if BELIEF in table.columns else None
    if not file.exists() or owner is None or owner.get("run") != str(run.path.resolve()):
        return {}
    config: Any = build(TrainConfig, run.folder.config()["train"])
    whole = replace(config, validation=0.0, trust=None)  # the index numbers all training rows
    rows = select_rows(table, whole, run.method.modalities, type(run.method).complete).rows
    index = np.load(file, allow_pickle=False)
    if len(index) != len(rows):
        raise InputError(f"{file} names {len(index)} pairs, {table.path} has {len(rows)} training rows; train anew")
    wrong = index != image_numbers(table, rows)
    listed = table.take(rows, [BELIEF])[BELIEF].to_numpy(zero_copy_only=False).astype(np.float64)
    known = ~np.isnan(listed)  # rows held out of training have none
    doubt, wrong = 1 - listed[known], wrong[known]
    figures: dict[str, Any] = {}
    if 0 < wrong.sum() < len(wrong):
        figures["auroc"] = float(roc_auc_score(wrong, doubt))
        figures["average_precision"] = float(average_precision_score(wrong, doubt))
    return figures | {
        "noise_ratio": float(doubt.mean()),
        "share_below_half": float((doubt > 0.5).mean()),
        "true_noise_ratio": float(wrong.mean()),
        "pairs": len(wrong),
    }


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
