"""Damaged checkpoints are named, with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from consilience.errors import InputError
from consilience.training.checkpoint import Position, load_model, load_optimiser, load_position, newest, save_checkpoint


def made(folder: Path) -> tuple[Path, torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.Adam(model.parameters(), 0.1)
    for step in (1, 2, 3):
        model(torch.ones(1, 2)).sum().backward()
        optimiser.step()
        save_checkpoint(folder, model, optimiser, Position(0, 0, step, step, None))
    found = newest(folder)
    assert found is not None
    return found, model, optimiser


def test_the_newest_two_are_kept_and_restore_exactly(tmp_path: Path) -> None:
    checkpoint, model, optimiser = made(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert load_position(checkpoint) == Position(0, 0, 3, 3, None)
    other = torch.nn.Linear(2, 2)
    again = torch.optim.Adam(other.parameters(), 0.1)
    load_model(checkpoint / "model.safetensors", other)
    load_optimiser(checkpoint, again)
    for m, o in ((model, optimiser), (other, again)):
        o.zero_grad()
        m(torch.ones(1, 2)).sum().backward()
        o.step()
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize("file", ["loop.json", "optimiser.safetensors"])
def test_damage_is_named(tmp_path: Path, file: str) -> None:
    checkpoint, _, optimiser = made(tmp_path)
    (checkpoint / file).write_bytes(b"{torn")
    with pytest.raises(InputError, match=rf"{file} is damaged; remove .*{checkpoint.name} to go on"):
        load_optimiser(checkpoint, optimiser)


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    checkpoint, _, _ = made(tmp_path)
    with pytest.raises(InputError, match=r"model.safetensors does not fit this configuration: weight"):
        load_model(checkpoint / "model.safetensors", torch.nn.Linear(3, 2))
