"""``audit``: look at every row of a Table through all checks, write what is believed, and say how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from consilience.audit.checks.base import Context, Finding
from consilience.audit.checks.registry import checks, run_checks
from consilience.audit.fix import fix as write_fixed
from consilience.audit.learn import judge_of, train_judges, views_of
from consilience.audit.page import write_page
from consilience.audit.planted import label_figures, pair_figures
from consilience.data.corrupt import corrupt_labels as plant_labels
from consilience.data.corrupt import corrupt_table
from consilience.data.table import Table, is_table
from consilience.errors import InputError, unknown
from consilience.files import make_folder, write_json
from consilience.training.api import Run, load, table_of
from consilience.training.config import TrainConfig
from consilience.training.run import commit

CLEAR = 0.85
"""Least separation of right and wrong pairs at which shares and probabilities are taken at face value."""


def audit(
    data: str | Path | Table,
    out: str | Path,
    *,
    run: Run | str | Path | None = None,
    train: bool = False,
    method: str = "pc2",
    config: Any = None,
    options: TrainConfig | None = None,
    modalities: Sequence[str] | None = None,
    corrupt: float = 0.0,
    corrupt_labels: float = 0.0,
    where: str | None = None,
    folds: int = 0,
    only: Sequence[str] | None = None,
    fix: str | Path | None = None,
    fix_labels: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Audit ``data`` (an embedded data set's name, a Table, or a source, imported to ``out/table``).

    ``run``: judge with an existing run. ``train``: train ``method`` (``config``, ``options``: of it and of the loop) on
    the training rows, by cross-fitting, so that no pair is judged by a network that learnt it (``folds`` 1: once, on
    all; 0: five below 2,000 pairs, else two). With neither, the checks that need no model. ``modalities``: the two to
    learn from and whose pairs are judged.
    ``corrupt`` and ``corrupt_labels`` plant that share of mismatches (of the second modality) and wrong labels in a
    copy, ``out/table``, and the result says how many were found. ``where``: SQL filter of the rows that are audited,
    and learnt from. ``only``: names of checks. ``fix``: where to write a cleaned Table; ``fix_labels``: with probably
    wrong labels replaced.

    Writes columns ``pair_trust``, ``pair_rank``, ``better_<modality>``, ``label_trust``, ``suspicion`` and
    ``duplicate_of`` as far as checks applied (null in rows that were not audited), ``out/audit.html`` and
    ``out/audit.json``, whose content is returned. Training that is interrupted goes on when the same call is repeated.

    Raises InputError for bad input.
    """
    out = make_folder(Path(out))
    _check_call(run, train, corrupt, corrupt_labels, folds, only, fix)
    table = _table(data, out, modalities, corrupt, corrupt_labels, seed)
    rows = table.select(where)
    if not len(rows):
        raise InputError(f"no rows of {table.path} pass {where!r}; widen the filter")
    chosen = _modalities(table, modalities)
    views = None
    judges = []
    if train:
        if len(chosen) < 2:
            raise InputError(f"{table.path} has the one modality {chosen[0]}; training needs pairs of two")
        options = replace(options or TrainConfig(validation=0.0, select="last"), modalities=",".join(chosen), seed=seed)
        judges = train_judges(
            table,
            out,
            method=method,
            config=config,
            options=options,
            folds=folds,
            where=where,
            quiet=quiet,
        )
        table = Table.open(table.path)
    elif run is not None:
        judges = [judge_of(run if isinstance(run, Run) else load(run), table)]
        learnt = list(judges[0].run.method.modalities)
        if modalities is not None and not set(chosen) <= set(learnt):
            raise InputError(f"{judges[0].run.path} was trained on {', '.join(learnt)}; --modalities asks for others")
        chosen = chosen if modalities is not None else learnt
    if judges:
        views = views_of(judges, table, rows)
    if corrupt_labels and views is None:
        raise InputError("--corrupt-labels needs a model; give --train or --run RUN")
    kinds = {name: table.modalities[name] for name in (chosen if judges else list(table.modalities))}
    pairs = list(combinations(chosen, 2)) if judges else []
    context = Context(table, rows, kinds, pairs, views, seed)
    findings = run_checks(context, only)
    result = _summary(context, findings, corrupt, corrupt_labels)
    result["runs"] = [str(judge.run.path) for judge in judges]
    result["columns"] = _write(context, findings, result["runs"])
    if fix is not None:
        result["fixed"] = write_fixed(context, findings, Path(fix), labels=fix_labels)
    result["report"] = str(write_page(out / "audit.html", context, findings, result))
    write_json(out / "audit.json", _plain(result))
    return result


def _check_call(
    run: Any, train: bool, corrupt: float, corrupt_labels: float, folds: int, only: Sequence[str] | None, fix: Any
) -> None:
    if run is not None and train:
        raise InputError("--run judges with an existing run, --train trains one; give one of them")
    for name, value in (("--corrupt", corrupt), ("--corrupt-labels", corrupt_labels)):
        if not 0 <= value < 1:
            raise InputError(f"{name} {value}: expected a share from 0 to below 1")
    if corrupt and not (train or run):
        raise InputError("--corrupt plants mismatches, and finding them needs a model; give --train or --run RUN")
    if folds < 0:
        raise InputError(f"--folds {folds}: expected 0 (two or five, by the number of pairs) or more")
    for name in only or ():
        if name not in checks():
            raise unknown("check", name, checks())
    if fix is not None and Path(fix).exists():
        raise InputError(f"{fix} already exists; remove it or choose another --fix")


def _table(
    data: str | Path | Table, out: Path, modalities: Sequence[str] | None, corrupt: float, wrong: float, seed: int
) -> Table:
    """The audited Table: the data's own, or a copy with planted faults (made once)."""
    if not corrupt and not wrong:
        return table_of(data, out, on_bad_sample="quarantine")
    source = table_of(data, out / "source", on_bad_sample="quarantine")
    steps = []
    if corrupt:
        chosen = _modalities(source, modalities)
        if len(chosen) < 2:
            raise InputError(f"{source.path} has the one modality {chosen[0]}; --corrupt needs pairs of two")
        steps.append(("pairs", f"{source.path}: {corrupt:g} of {chosen[1]}, seed {seed}"))
    if wrong:
        source.labels()  # names the remedy when there are none
        steps.append(("labels", f"{wrong:g} of the labels, seed {seed}"))
    planted = {"of": str(source.path.resolve()), "version": source.fingerprint(), "steps": [list(s) for s in steps]}
    mark, place = out / "planted.json", out / "table"
    if is_table(place):
        import json

        if not mark.exists() or json.loads(mark.read_text()) != planted:
            raise InputError(f"{place} holds other data or other planted faults; choose another -o")
        return Table.open(place)
    write_json(mark, planted)
    if corrupt and wrong:
        between = out / "table-pairs"
        moved = (
            Table.open(between)
            if is_table(between)
            else corrupt_table(source, between, ratio=corrupt, modality=chosen[1], seed=seed)
        )
        return plant_labels(moved, place, ratio=wrong, seed=seed)
    if corrupt:
        return corrupt_table(source, place, ratio=corrupt, modality=chosen[1], seed=seed)
    return plant_labels(source, place, ratio=wrong, seed=seed)


def _modalities(table: Table, modalities: Sequence[str] | None) -> list[str]:
    """The audited modalities; InputError for unknown ones and where two must be chosen."""
    known = list(table.modalities)
    if modalities is None:
        return known[:2] if len(known) == 2 else known
    for name in modalities:
        if name not in known:
            raise unknown(f"--modalities: modality of {table.path}", name, known)
    if len(set(modalities)) < len(modalities):
        raise InputError(f"--modalities {','.join(modalities)} names one twice")
    return list(modalities)


def _summary(context: Context, findings: dict[str, Finding], corrupt: float, corrupt_labels: float) -> dict[str, Any]:
    table = context.table
    result: dict[str, Any] = {
        "table": str(table.path),
        "rows": len(context),
        "pairs": ["-".join(p) for p in context.pairs],
    }
    found = findings.get("pair_mismatch")
    if found is not None and found.skipped is None:
        name = "-".join(context.pairs[0])
        info = found.info.get(f"{name}, train") or found.info[f"{name}, held out"]
        result |= {key: info[key] for key in ("noise_ratio", "noise_ratio_ci95", "separation")}
        if info["separation"] < CLEAR:
            result["warning"] = (
                "the networks tell right pairs from wrong ones poorly here: right pairs that look random are counted "
                "as wrong, so read the share as an upper bound and the probabilities as a ranking"
            )
        if corrupt:
            result |= pair_figures(context, found, context.pairs[0])
    found = findings.get("label_doubt")
    if found is not None and found.skipped is None and corrupt_labels:
        result["labels"] = label_figures(context, found)
    result["checks"] = {
        name: {
            "text": f.text,
            "flagged": int(f.flagged.sum()),
            "skipped": f.skipped,
            **({"found": f.info} if f.info else {}),
        }
        for name, f in findings.items()
    }
    result["data_version"], result["commit"] = table.fingerprint(), commit()
    return result


def suspicions(findings: dict[str, Finding], rows: int) -> np.ndarray:
    """object [n]: the most serious suspicion of every row, "" for none."""
    found = np.full(rows, "", dtype=object)
    for name, info in checks().items():
        if name in findings:
            found[(found == "") & findings[name].flagged] = info.suspicion
    return found


def _write(context: Context, findings: dict[str, Finding], runs: list[str]) -> list[str]:
    """All columns in one transaction; their names."""
    columns: dict[str, Any] = {}
    for finding in findings.values():
        for name, values in finding.columns.items():
            missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)
            values = values.astype(np.float32) if values.dtype.kind == "f" else values
            columns[name] = pa.array(values, mask=missing)
    columns["suspicion"] = pa.array(suspicions(findings, len(context)).tolist(), pa.string())
    applied = [name for name, finding in findings.items() if finding.skipped is None]
    context.table.write_columns(
        context.index, columns, {"audit": applied, "runs": runs, "seed": context.seed, "commit": commit()}
    )
    return list(columns)


def _plain(value: Any) -> Any:
    """None for NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
