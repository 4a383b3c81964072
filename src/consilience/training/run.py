"""The run folder: configuration, environment, log, weights. Whole or absent, at any instant."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from consilience.data.schema import Kind
from consilience.errors import InputError
from consilience.files import make_folder, write_json, write_text

_KEYS = ("method", "data", "modalities", "samples", "method_config", "train")
_PACKAGES = ("consilience", "torch", "numpy", "accelerate", "transformers", "lancedb", "scikit-learn")


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.log_file = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model_file = self.path / "model.safetensors"
        self.best_file = self.checkpoints / "best.safetensors"
        self.report_file = self.path / "report.html"

    @classmethod
    def create(cls, path: Path, content: dict[str, Any], environment: dict[str, Any]) -> RunFolder:
        """A new run at ``path`` with its configuration; InputError when a run is there already."""
        run = cls(path)
        if run.config_file.exists():
            raise InputError(f"{path} holds a run already; resume it with --resume {path} or choose another -o")
        make_folder(run.checkpoints)
        write_json(run.path / "environment.json", environment)
        write_text(run.config_file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run; InputError when ``path`` holds none."""
        run = cls(path)
        if not run.config_file.exists():
            raise InputError(f"{path} is not a run folder (no config.yaml); give the folder that train wrote to")
        return run

    def config(self) -> dict[str, Any]:
        """The resolved configuration as plain values: method, data, modalities, method config, train config."""
        try:
            content = yaml.safe_load(self.config_file.read_text())
        except yaml.YAMLError as error:
            raise InputError(f"{self.config_file} is not valid YAML: {str(error).splitlines()[0]}") from error
        missing = set(_KEYS) - set(content if isinstance(content, dict) else ())
        if missing:
            raise InputError(f"{self.config_file} lacks {', '.join(sorted(missing))}; restore it or train again")
        return dict(content)

    def modalities(self) -> dict[str, Kind]:
        return {name: Kind(kind) for name, kind in self.config()["modalities"].items()}

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to log.jsonl."""
        with self.log_file.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> Iterator[dict[str, Any]]:
        """The lines of log.jsonl (a torn last line is left out)."""
        if self.log_file.exists():
            for line in self.log_file.read_text().splitlines():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    return

    def rewind_log(self, step: int) -> None:
        """Drop the lines written after global step ``step``: a resumed run writes them again."""
        kept = [json.dumps(record) for record in self.records() if record["step"] <= step]
        write_text(self.log_file, "".join(line + "\n" for line in kept))


def plain_values(config: Any) -> dict[str, Any]:
    """A configuration dataclass as nested plain values, ready for YAML."""
    values: dict[str, Any] = dataclasses.asdict(config)
    return values


def environment(seed: int, data_version: str) -> dict[str, Any]:
    """What a figure must be traced to: versions, seed, data version, commit, threads."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "packages": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "data_version": data_version,
        "commit": commit(),
    }


def commit() -> str:
    """The git commit the code runs from, with ``+`` when the tree has changes; ``unknown`` outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
