"""Start, resume and load runs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from consilience.data.datasets import is_dataset, read_dataset
from consilience.data.importers import import_table, open_source
from consilience.data.importers.romo_lists import read_pseudo_labels, write_pseudo_labels
from consilience.data.noise_index import write_noise_index
from consilience.data.review import Review
from consilience.data.schema import Modalities
from consilience.data.table import Table, is_table
from consilience.data.targets import class_names
from consilience.distributed import rank, world_size
from consilience.errors import ConsilienceError, InputError
from consilience.heads.released import SUFFIXES
from consilience.methods.base import Method
from consilience.methods.registry import find
from consilience.training.checkpoint import load_model, newest
from consilience.training.config import TrainConfig
from consilience.training.configure import build
from consilience.training.loop import Trainer, Watch, join_processes
from consilience.training.run import RunFolder, environment, plain_values
from consilience.training.selection import chosen_modalities, class_codes, select_rows

NOISE_INDEX = "noise_index.npy"
"""Injected mismatches of a run, in its folder."""


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, the Table it learnt from and the method ready to encode."""

    folder: RunFolder
    table: Table
    method: Method

    @property
    def path(self) -> Path:
        return self.folder.path


def table_of(
    data: str | Path | Table,
    run: Path,
    *,
    on_bad_sample: Literal["stop", "quarantine"] = "stop",
    kinds: Mapping[str, str] | None = None,
) -> Table:
    """The Table behind ``data``: itself, or an import into ``run/table`` (kept, so that a second call reuses it).

    Raises InputError when ``run/table`` was imported from something else, and for kinds given with a Table.
    """
    if isinstance(data, Table) or (Path(data).is_dir() and is_table(data)):
        if kinds:
            raise InputError(f"{data} is a table already; --kinds applies to other sources")
        return data if isinstance(data, Table) else Table.open(data)
    place = run / "table"
    if rank() == 0:
        if not is_table(place):
            import_table(data, place, kinds=kinds, on_bad_sample=on_bad_sample)
        else:
            known = (read_dataset(str(data)) if is_dataset(str(data)) else open_source(data)).source
            kept = Table.open(place).source
            if kept != known:
                raise InputError(f"{place} was imported from {kept}, not from {known}; choose another -o")
    if world_size() > 1:
        torch.distributed.barrier()
    return Table.open(place)


def given_labels(table: Table, rows: np.ndarray, given: str, modalities: Modalities) -> dict[str, torch.Tensor]:
    """The labels that ``--train.given`` names, int64 [N] by modality (a column, or RoMo's text files)."""
    if "=" not in given:
        if given == "label":
            values = class_codes(table)[rows]
        else:
            column = table.take(rows, [given])[given]
            if column.null_count:
                raise InputError(f"column {given} is empty in {column.null_count} training rows; label them all")
            values = column.to_numpy()
        if values.min() < 0:
            raise InputError(f"{int((values < 0).sum())} training rows have no label; label them all")
        return {name: torch.from_numpy(values.astype(np.int64)) for name in modalities}
    labels = {}
    for part in given.split(","):
        name, _, file = part.partition("=")
        if name not in modalities:
            raise InputError(f"--train.given {part}: the data has no modality {name!r}; it has {', '.join(modalities)}")
        if not Path(file).is_file():
            raise InputError(f"--train.given {part}: {file} does not exist; give a file in RoMo's text format")
        pseudo = read_pseudo_labels(Path(file))
        if len(pseudo.pseudo) != len(rows):
            raise InputError(
                f"{file} labels {len(pseudo.pseudo)} samples, the run trains on {len(rows)}; use --train.validation 0 "
                "and a file with one line a training row"
            )
        labels[name] = torch.from_numpy(pseudo.pseudo.astype(np.int64))
    missing = set(modalities) - set(labels)
    if missing:
        raise InputError(
            f"--train.given names no file for {', '.join(sorted(missing))}; give one each, comma-separated"
        )
    return labels


def _trainer(
    folder: RunFolder,
    table: Table,
    name: str,
    config: Any,
    train: TrainConfig,
    watch: Watch | None,
    quiet: bool,
) -> Trainer:
    if train.threads:
        torch.set_num_threads(train.threads)
    info = find(name)
    modalities = chosen_modalities(table, train)
    for modality, kind in modalities.items():
        if kind.value not in info.kinds:
            raise InputError(
                f"{name} takes {', '.join(info.kinds)}; {modality} of {table.path} is {kind.value}; "
                "choose modalities with --train.modalities"
            )
    selection = select_rows(table, train, modalities, info.cls.complete, _balance(train, table, name))
    torch.manual_seed(train.seed)
    method = info.cls(config, modalities, len(selection.rows))
    if train.start:
        _start_from(Path(train.start), method, name)
    if train.given:
        method.believe(given_labels(table, selection.rows, train.given, modalities))
    return Trainer(folder, table, method, train, selection, watch, quiet)


def _balance(train: TrainConfig, table: Table, name: str) -> str | None:
    """The column whose classes the run balances, if any. A method's rows may only be balanced by what it is told."""
    cls = find(name).cls
    column = cls.balance if train.balance == "auto" else None if train.balance == "none" else train.balance
    if column is None:
        return None
    if column not in cls.targets:
        told = ", ".join(cls.targets) or "no columns"
        raise InputError(f"--train.balance {column}: {name} learns from {told}; choose one of them, or none")
    if column not in table.columns:
        raise InputError(
            f"{table.path} has no column {column!r}, which {name} learns from and balances its batches by; import it "
            "with the data"
        )
    return column


def _start_from(place: Path, method: Method, name: str) -> None:
    """Networks and memories of another run, or of a checkpoint of the authors' own program, into ``method``."""
    if place.name.endswith(SUFFIXES) and not place.is_dir():
        method.load_released(place)
        return
    other = RunFolder.open(place)
    if other.config()["method"] != name:
        method.start_from(_weights(other), other.config()["method"])
    else:
        load_model(_weights(other), method)


def _weights(folder: RunFolder) -> Path:
    """The final weights of a run, or those of its newest checkpoint."""
    if folder.model_file.exists():
        return folder.model_file
    checkpoint = newest(folder.checkpoints)
    if checkpoint is None:
        raise InputError(f"{folder.path} has no weights yet; go on with: consilience train --resume {folder.path}")
    return checkpoint / "model.safetensors"


def settled(config: Any, table: Table) -> Any:
    """The configuration with the sizes, the tokenizer, the names of weathers and the number of classes that it leaves
    open as the Table has them."""
    if getattr(config, "classes", None) == 0:
        names = class_names(table, "label")
        if len(names) < 2:
            raise InputError(
                f"{table.path} has labels of {len(names)} classes and a classifier needs two or more; import labels "
                "with the data (class folders, a column label)"
            )
        config = replace(config, classes=len(names))
    if getattr(config, "weathers", None) == "" and "weather" in table.columns:
        config = replace(config, weathers=",".join(class_names(table, "weather")))
    encoders = getattr(config, "encoders", None)
    if encoders is None:
        if getattr(config, "vector_width", None) == 0 and "vector_width" in table.sizes:
            return replace(config, vector_width=table.sizes["vector_width"])
        return config
    known = {name: value for name, value in table.sizes.items() if not getattr(encoders, name)}
    if encoders.text.startswith("hf:"):
        known.pop("tokenizer", None)
    return replace(config, encoders=replace(encoders, **known)) if known else config


def _finish(folder: RunFolder, trainer: Trainer) -> Run:
    table = Table.open(trainer.table.path)
    if trainer.main:
        _export_pseudo_labels(folder, table, trainer.rows, trainer.method.modalities)
    trainer.method.eval()
    return Run(folder, table, trainer.method)


def _export_pseudo_labels(folder: RunFolder, table: Table, rows: np.ndarray, modalities: Modalities) -> None:
    """Readable pseudo-labels in the authors' text format (path, pseudo-label, -1 for the unknown truth)."""
    for name in modalities:
        column = f"pseudo_{name}"
        provenance = table.provenance(column) if column in table.columns else None
        if provenance is None or provenance["run"] != str(folder.path.resolve()):
            continue
        taken = table.take(rows, [column, f"origin_{name}"])
        paths = [origin or "-" for origin in taken[f"origin_{name}"].to_pylist()]
        target = folder.path / "pseudo_labels" / f"{name}_train_list_pseudo_labelling.txt"
        write_pseudo_labels(target, [p.replace(" ", "_") for p in paths], taken[column].to_numpy())


def train(
    method: str,
    data: str | Path | Table,
    out: str | Path,
    *,
    config: Any = None,
    train: TrainConfig | None = None,
    kinds: Mapping[str, str] | None = None,
    on_bad_sample: Literal["stop", "quarantine"] = "stop",
    watch: Watch | None = None,
    quiet: bool = False,
) -> Run:
    """Train ``method`` on ``data`` into the new run folder ``out``.

    ``data``: the name of an embedded data set, a Table, or anything ``consilience import`` reads. ``config``: the
    method's configuration dataclass (its defaults when None). Raises InputError for bad input, before anything is
    written where possible, and :class:`~consilience.training.loop.Interrupted` on Ctrl-C (the run can be resumed).
    """
    info, train, out = find(method), train or TrainConfig(), Path(out)
    config = info.cls.Config() if config is None else config
    if (out / "config.yaml").exists():
        raise InputError(f"{out} holds a run already; resume it with --resume {out} or choose another -o")
    join_processes(train.device)
    fresh = not is_table(out / "table")
    table = table_of(data, out, on_bad_sample=on_bad_sample, kinds=kinds)
    if train.review:
        table = _reviewed(table)
    folder = RunFolder(out)
    try:
        config = settled(config, table)
        trainer = _trainer(folder, table, method, config, train, watch, quiet)
    except ConsilienceError:
        if fresh and table.path == out / "table" and rank() == 0:  # nothing half-done stays behind a refusal
            shutil.rmtree(table.path)
        raise
    if trainer.main:
        content = {
            "method": method,
            "data": str(table.path.resolve()),
            "modalities": {name: kind.value for name, kind in trainer.method.modalities.items()},
            "samples": len(trainer.rows),
            "method_config": plain_values(config),
            "train": plain_values(train),
        }
        RunFolder.create(out, content, environment(train.seed, table.fingerprint()))
        if trainer.selection.noise_index is not None:
            write_noise_index(out / NOISE_INDEX, trainer.selection.noise_index)
    trainer.accelerator.wait_for_everyone()
    trainer.run()
    return _finish(folder, trainer)


def _reviewed(table: Table) -> Table:
    """The Table with every decision of its review in its columns."""
    if rank() == 0:
        Review.open(table).settle()
    if world_size() > 1:
        torch.distributed.barrier()
    return Table.open(table.path)


def resume(out: str | Path, *, watch: Watch | None = None, quiet: bool = False) -> Run:
    """Go on with the run in ``out`` from its newest checkpoint; a finished run is only loaded."""
    folder = RunFolder.open(Path(out))
    content = folder.config()
    table = Table.open(content["data"])
    recorded = _recorded_version(folder)
    if recorded != table.fingerprint():
        raise InputError(f"{table.path} changed since {out} was started (data version {recorded}); train anew")
    config: Any = build(find(content["method"]).cls.Config, content["method_config"])
    options = build(TrainConfig, content["train"])
    if folder.model_file.exists():
        return load(folder.path)
    join_processes(options.device)
    trainer = _trainer(folder, table, content["method"], config, options, watch, quiet)
    trainer.run()
    return _finish(folder, trainer)


def _recorded_version(folder: RunFolder) -> str:
    import json

    return str(json.loads((folder.path / "environment.json").read_text())["data_version"])


def load(run: str | Path, device: str = "cpu") -> Run:
    """The method of a run, in evaluation mode, ready to encode; of an unfinished run, its newest checkpoint."""
    folder = RunFolder.open(Path(run))
    content = folder.config()
    info = find(content["method"])
    config: Any = build(info.cls.Config, content["method_config"])
    method = info.cls(config, folder.modalities(), content["samples"])
    load_model(_weights(folder), method)
    table = Table.open(content["data"]) if is_table(content["data"]) else None
    if table is None:
        raise InputError(f"{content['data']}, the table of {run}, is gone; put it back or train again")
    return Run(folder, table, method.to(device).eval())
