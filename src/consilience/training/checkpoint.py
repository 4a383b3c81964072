"""Checkpoints: safetensors for every tensor, JSON for the loop's exact state. No pickle."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from consilience.errors import InputError
from consilience.files import new_folder, write_bytes


@dataclass(frozen=True)
class Position:
    """Where the loop stands: the next thing to do is batch ``batch`` of ``epoch`` of ``phase``.

    ``epoch`` equal to the phase's epochs means that the phase is trained and about to be finished.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    """Batches taken since the start of the run."""
    best: float | None = None
    """Highest agreement on held-out pairs in the last phase so far."""


def save_model(path: Path, model: nn.Module) -> None:
    """Write a module's state to one safetensors file, atomically."""
    write_bytes(path, save({name: value.contiguous().cpu() for name, value in model.state_dict().items()}))


def load_model(path: Path, model: nn.Module) -> None:
    """Load such a file; InputError when it is missing, torn or of another shape."""
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); train or copy it again") from error
    own = model.state_dict()
    wrong = sorted(set(own) ^ set(state)) + [n for n in own if n in state and own[n].shape != state[n].shape]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"{path} does not fit this configuration: {', '.join(wrong[:3])}{more} missing, unexpected or of another "
            "shape; use the config.yaml it was trained with"
        )
    model.load_state_dict(state)


def _split(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = optimiser.state_dict()
    tensors, scalars = {}, {}
    for position, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{position}.{name}"] = value.contiguous().cpu()
            else:
                scalars[f"{position}.{name}"] = value
    return tensors, {"groups": state["param_groups"], "scalars": scalars}


def _join(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *rest["scalars"].items()]:
        position, name = key.split(".", 1)
        state.setdefault(int(position), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": rest["groups"]})


def save_checkpoint(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer | None, position: Position, keep: int = 2
) -> None:
    """Write ``folder/step-XXXXXXXX`` atomically and drop all but the ``keep`` newest."""
    name = f"step-{position.step:08d}-{position.phase}-{position.epoch:05d}"
    with new_folder(folder / name) as target:
        save_model(target / "model.safetensors", model)
        rest: dict[str, Any] = {}
        if optimiser is not None:
            tensors, rest = _split(optimiser)
            write_bytes(target / "optimiser.safetensors", save(tensors))
        write_bytes(target / "loop.json", json.dumps({"position": asdict(position), "optimiser": rest}).encode())
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``."""
    found = sorted(path for path in folder.glob("step-*") if (path / "loop.json").exists())
    return found[-1] if found else None


def load_position(checkpoint: Path) -> Position:
    """The loop position stored in ``checkpoint``; InputError when it is damaged."""
    return Position(**_loop(checkpoint)["position"])


def load_optimiser(checkpoint: Path, optimiser: torch.optim.Optimizer) -> None:
    """Restore the optimiser's state from ``checkpoint``; InputError when it is damaged."""
    try:
        tensors = load_file(checkpoint / "optimiser.safetensors")
    except (OSError, SafetensorError) as error:
        raise _damaged(checkpoint / "optimiser.safetensors") from error
    _join(optimiser, tensors, _loop(checkpoint)["optimiser"])


def _loop(checkpoint: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((checkpoint / "loop.json").read_text())
        Position(**content["position"])
        return content
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise _damaged(checkpoint / "loop.json") from error


def _damaged(file: Path) -> InputError:
    return InputError(f"{file} is damaged; remove {file.parent} to go on from the checkpoint before it")
