"""Networks for an audit, and what they make of the rows: trained on the audited Table (by folds, so that no pair is
judged by a network that learnt it), or taken from a run that exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor

from consilience.audit.checks.base import Judged, Views, groups_of
from consilience.audit.graph import Graph
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.methods.registry import find
from consilience.noise.pair_beliefs import PairBeliefs
from consilience.training.api import Run, resume, settled, train
from consilience.training.config import TrainConfig
from consilience.training.configure import more_epochs
from consilience.training.loop import Interrupted
from consilience.training.passes import encode_rows
from consilience.training.run import RunFolder, plain_values
from consilience.training.selection import select_rows

ENOUGH = 2000
"""Pairs below which the defaults of a method mean more epochs, so that small data get as many steps."""


@dataclass(frozen=True)
class Judge:
    """A run and the rows of the audited Table that it learnt from."""

    run: Run
    learnt: Int64[np.ndarray, " m"]
    """Their ``index``."""


def train_judges(
    table: Table,
    out: Path,
    *,
    method: str,
    config: Any | None,
    options: TrainConfig,
    folds: int,
    where: str | None,
    quiet: bool,
) -> list[Judge]:
    """Train on the training rows (those that pass ``where``): once (``folds`` 1), or for each fold without it (0: five
    folds below 2,000 pairs, where every pair counts, else two).

    Without ``config`` the method's defaults, with epochs multiplied where a run learns from fewer than 2,000 pairs.
    Finished runs below ``out`` are reused, unfinished ones resumed. Which rows a run of several learns from is written
    to columns ``audit_learn_<k>`` of the Table. Raises InputError when a run there has other options, or when there
    are fewer rows than folds.
    """
    kinds = table.modalities
    modalities = {name: kinds[name] for name in options.modalities.split(",")} if options.modalities else kinds
    whole = select_rows(table, replace(options, trust=None), modalities, find(method).cls.complete)
    index = table.indices()
    rows = np.sort(np.concatenate([whole.rows, whole.held_out])) if options.validation else whole.rows
    chosen = rows[np.isin(rows, table.select(where))]
    folds = folds or (5 if len(chosen) < ENOUGH else 2)
    fold = _folds(table, chosen, folds, options.seed)
    if config is None:
        pairs = len(chosen) * (folds - 1) // folds if folds > 1 else len(chosen)
        config = more_epochs(find(method).cls.Config(), -(-ENOUGH // max(1, pairs)))
    judges = []
    for number in range(folds):
        mine = chosen[fold != number] if folds > 1 else chosen
        own = options
        if folds > 1 or len(chosen) < len(rows):
            column = f"audit_learn_{number}"
            split = table.select("split = 'train'")
            everything = split if len(split) else table.select()
            table = Table.open(table.path)
            values = np.isin(everything, mine).astype(np.float32)
            provenance = {"audit": "learnt from", "fold": number, "folds": folds, "seed": options.seed}
            if column not in table.columns or table.provenance(column) != provenance:
                table.write_columns(index[everything], {column: values}, provenance)
            own = replace(options, trust=column, trust_as="exclude")
        place = out / ("run" if folds == 1 else f"run-{number + 1}-of-{folds}")
        judges.append(Judge(_train(table, place, method, config, own, quiet), index[mine]))
    return judges


def judge_of(run: Run, table: Table) -> Judge:
    """A run that exists; what it learnt from counts when it learnt from this Table."""
    content = run.folder.config()
    learnt = np.zeros(0, dtype=np.int64)
    if run.table.fingerprint() == table.fingerprint():
        options = TrainConfig(**content["train"])
        try:
            learnt = table.indices()[select_rows(table, options, run.method.modalities, type(run.method).complete).rows]
        except InputError:  # a column it was trained with is gone: whatever it may have learnt from
            learnt = table.indices()[table.select("split = 'train'")]
    return Judge(run, learnt)


def views_of(judges: Sequence[Judge], table: Table, rows: Int64[np.ndarray, " n"]) -> Views:
    """Encode the audited rows with every judge and decide who judges whom.

    A row that some judges have not learnt from is judged by those alone; one that all have learnt from by all.
    Raises InputError when the Table lacks a modality of the run, or has it as another kind.
    """
    first = judges[0].run
    for name, kind in first.method.modalities.items():
        if table.modalities.get(name) is not kind:
            found = table.modalities.get(name)
            what = f"has no {name}" if found is None else f"has {name} as {found.value}"
            raise InputError(
                f"{first.path} was trained on {name} ({kind.value}), {table.path} {what}; give another --run"
            )
    vectors: list[dict[str, Tensor]] = []
    present: dict[str, Tensor] = {}
    for judge in judges:
        device = next(judge.run.method.parameters()).device
        encoded = encode_rows(judge.run.method, table, rows, device)
        vectors.append({name: F.normalize(value.cpu(), dim=1) for name, value in encoded.vectors.items()})
        present = {name: mask.cpu() for name, mask in encoded.present.items()}
    groups, index = groups_of(table, rows), table.indices()[rows]
    seen = np.stack([np.isin(index, judge.learnt) for judge in judges])
    splits = table.take(rows, ["split"])["split"].to_pylist()
    train = np.array([split == "train" for split in splits])
    if seen.any():
        train = np.asarray(seen.any(0))

    def graph(which: Sequence[int], positions: np.ndarray) -> Graph:
        part = torch.from_numpy(positions)
        joined = {
            name: torch.cat([vectors[k][name][part] for k in which], 1) / float(len(which)) ** 0.5 for name in present
        }
        return Graph(joined, {name: mask[part] for name, mask in present.items()}, groups=groups[positions])

    judged = []
    patterns = np.concatenate([seen, train[None]]).T
    for pattern in np.unique(patterns, axis=0):
        positions = np.flatnonzero((patterns == pattern).all(1))
        fresh = [k for k in range(len(judges)) if not pattern[k]]
        which = fresh or list(range(len(judges)))
        judged.append(Judged(positions, graph(which, positions), not fresh, "train" if pattern[-1] else "held out"))
    everyone = np.arange(len(rows))
    return Views(graph(range(len(judges)), everyone), judged, _belief(judges, index))


def _belief(judges: Sequence[Judge], index: np.ndarray) -> np.ndarray:
    """Mean of what the judges' own memories say of the pairs they learnt from."""
    total, count = np.zeros(len(index)), np.zeros(len(index))
    for judge in judges:
        for module in judge.run.method.modules():
            if isinstance(module, PairBeliefs) and module.clean.shape[1] == len(judge.learnt):
                order = np.argsort(judge.learnt)
                place = np.searchsorted(judge.learnt, index, sorter=order).clip(max=len(order) - 1)
                here = judge.learnt[order[place]] == index
                total[here] += module.clean.mean(0).cpu().numpy()[order[place[here]]]
                count[here] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _folds(table: Table, rows: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each row, groups whole, sizes equal up to a group."""
    groups = groups_of(table, rows)
    names, place = np.unique(groups, return_inverse=True)
    if folds > 1 and len(names) < 2 * folds:
        raise InputError(f"{len(names)} training pairs make no {folds} folds; give a smaller --folds")
    order = np.empty(len(names), dtype=np.int64)
    order[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % folds
    return order[place]


def _train(table: Table, place: Path, method: str, config: Any, options: TrainConfig, quiet: bool) -> Run:
    try:
        if not (place / "config.yaml").exists():
            return train(method, table, place, config=config, train=options, quiet=quiet)
        kept = RunFolder.open(place).config()
        wanted = (method, plain_values(settled(config, table)), plain_values(options), str(table.path.resolve()))
        if (kept["method"], kept["method_config"], kept["train"], kept["data"]) != wanted:
            raise InputError(f"{place} was run with other options or data; choose another -o")
        return resume(place, quiet=quiet)
    except Interrupted as stop:
        raise Interrupted(f"stopped while training {place}; go on with the same command") from stop
