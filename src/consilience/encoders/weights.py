"""Weights from files that other programs wrote: safe to open, and never loaded by halves without saying so.

The layouts of three public families are translated. Names were read from the repositories' model files:

* DGCNN, WangYueFt/dgcnn ``pytorch/model.py``: ``conv1.0.weight`` [64, 6, 1, 1] ... ``conv4.0.weight``,
  ``conv5.0.weight`` [D, 512, 1], their norms ``convN.1.*``, which appear a second time as ``bnN.*``, and the
  classifier ``linear1, bn6, linear2, bn7, linear3``, which has no counterpart here. LYXRhythm/RoMo
  ``nets/dgcnn.py`` is the same with ``linear1`` [D, 2D] and a ``bn1`` of D channels as its head.
* MeshNet, iMoonLab/MeshNet ``models/MeshNet.py`` and ``layers.py``: ``spatial_descriptor.spatial_mlp``,
  ``structural_descriptor.{FRC.rotate_mlp, FRC.fusion_mlp, FKC, structural_mlp}``, ``mesh_convN.{combination,
  concat, aggregation}_mlp``, ``fusion_mlp``, ``concat_mlp``, ``classifier``. Its concat aggregation only.
* ResNet as torchvision names it: ``conv1, bn1, layerS.B.convN, layerS.B.bnN, layerS.B.downsample.{0,1}, fc``.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consilience.encoders.image import ResNet
from consilience.encoders.mesh import MeshNet
from consilience.encoders.points import DGCNN
from consilience.errors import InputError

State = dict[str, Tensor]
WRAPPERS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file: names, in the encoder's own spelling where one exists."""

    matched: tuple[str, ...]
    """Loaded."""
    missing: tuple[str, ...]
    """In the encoder only; left as they were."""
    unexpected: tuple[str, ...]
    """In the file only; ignored."""
    mismatched: tuple[str, ...]
    """In both with different shapes; ignored."""


def _unwrap(found: Any, path: Path) -> State:
    for _ in range(len(WRAPPERS)):
        if isinstance(found, nn.Module):
            found = found.state_dict()
        inner = [found[key] for key in WRAPPERS if isinstance(found, Mapping) and key in found]
        if not inner or isinstance(inner[0], Tensor):
            break
        found = inner[0]
    state = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not state:
        raise InputError(f"{path}: no tensors found at the top level or under {', '.join(WRAPPERS)}; save a state dict")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def read_weights(path: Path | str, allow_pickle: bool = False) -> State:
    """Tensors of a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file by name, on the CPU.

    Takes a state dict out of ``state_dict``, ``model_state_dict`` or ``model`` and strips ``module.``. Raises
    :class:`InputError` when the file is absent, damaged, holds no tensors, or needs arbitrary pickled code
    and ``allow_pickle`` is false. Opening such a file runs whatever its author put in it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"no weights at {path}; give a .safetensors, .pth or .pt file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return _unwrap(load_file(path), path)
        except SafetensorError as error:
            raise InputError(f"{path}: not a readable safetensors file ({error}); copy it again") from error
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise InputError(f"{path}: unknown suffix {path.suffix!r}; expected .safetensors, .pth, .pt or .bin")
    try:
        return _unwrap(torch.load(path, map_location="cpu", weights_only=not allow_pickle), path)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        if allow_pickle:
            raise InputError(f"{path}: damaged ({error}); copy it again") from error
        raise InputError(
            f"{path}: damaged, or holds more than tensors, and opening it could run foreign code; "
            "convert it to safetensors, or pass allow_pickle=True if you trust its author"
        ) from error
    except (RuntimeError, EOFError, OSError, ModuleNotFoundError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); copy it again or convert it") from error


def _some(what: str, names: tuple[str, ...]) -> str:
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def assign(
    module: nn.Module, state: State, path: Path | str, strict: bool = True, free: tuple[str, ...] = ()
) -> LoadReport:
    """Copy ``state`` into ``module``; names that start with ``free`` may be absent even if ``strict``."""
    own = module.state_dict()
    shared = [name for name in own if name in state]
    report = LoadReport(
        matched=tuple(name for name in shared if own[name].shape == state[name].shape),
        missing=tuple(n for n in own if n not in state and not n.endswith("num_batches_tracked")),
        unexpected=tuple(name for name in state if name not in own),
        mismatched=tuple(name for name in shared if own[name].shape != state[name].shape),
    )
    needed = tuple(name for name in report.missing if not (free and name.startswith(free)))
    problems = [
        _some("missing", needed),
        _some("unexpected", report.unexpected),
        _some("of another shape", report.mismatched),
    ]
    if strict and any(problems):
        raise InputError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(filter(None, problems))}; "
            "choose the encoder and width it was saved from, or strict=False to load what fits"
        )
    if not report.matched:
        raise InputError(f"{path}: no tensor fits {type(module).__name__}; it was saved from another encoder")
    module.load_state_dict({name: state[name] for name in report.matched}, strict=False)
    return report


def load_weights(module: nn.Module, path: Path | str, *, strict: bool = True, allow_pickle: bool = False) -> LoadReport:
    """Load a file that holds ``module``'s own names. ``strict``: every tensor must fit, else ``InputError``.

    With ``strict=False`` what fits is loaded and the rest reported; ``InputError`` when nothing fits.
    """
    return assign(module, read_weights(path, allow_pickle), path, strict)


def load_part(module: nn.Module, path: Path | str, part: str = "encoder") -> LoadReport:
    """Load one part of a run's ``model.safetensors``, the tensors named ``part.*``; ``InputError`` unless all fit."""
    file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
    state = read_weights(file)
    own = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
    if not own:
        parts = sorted({name.partition(".")[0] for name in state})
        raise InputError(f"{file} has no part {part!r}; it holds {', '.join(parts)}")
    return assign(module, own, file)


def _below(state: State, anchor: str) -> State | None:
    """The entries beside ``anchor``, whatever prefix they carry; None when no name ends in it."""
    ends = [key for key in state if key == anchor or key.endswith("." + anchor)]
    if not ends:
        return None
    prefix = ends[0].removesuffix(anchor)
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _renamed(state: State, rules: list[tuple[str, str | None]]) -> State:
    """Apply the first matching rule to each name; None drops it, no match keeps it (and is then reported)."""
    out: State = {}
    for name, value in state.items():
        for pattern, new in rules:
            if re.match(pattern, name):
                if new is not None:
                    out[re.sub(pattern, new, name, count=1)] = value
                break
        else:
            out[name] = value
    return out


def load_dgcnn(encoder: DGCNN, path: Path | str, *, strict: bool = True, allow_pickle: bool = False) -> LoadReport:
    """Load the public DGCNN layout (its classifier left out, our head left as it is), RoMo's, or our own."""
    state = read_weights(path, allow_pickle)
    public = _below(state, "conv1.0.weight")
    if public is None:
        return assign(encoder, state, path, strict)
    classifies = "bn6.weight" in public
    rules: list[tuple[str, str | None]] = [
        *[(rf"conv{n}\.0\.", f"edges.{n - 1}.conv.") for n in range(1, 5)],
        *[(rf"conv{n}\.1\.", f"edges.{n - 1}.norm.") for n in range(1, 5)],
        (r"conv5\.0\.", "embed."),
        (r"conv5\.1\.", "embed_norm."),
        (r"(bn[1-7]|linear[1-3])\.", None) if classifies else (r"bn[2-5]\.", None),
        (r"linear1\.", "head."),
        (r"bn1\.", "head_norm."),
    ]
    state = _renamed(public, rules)
    if "embed.weight" in state:
        state["embed.weight"] = state["embed.weight"].flatten(1)
    return assign(encoder, state, path, strict, ("head.", "head_norm.") if classifies else ())


def load_meshnet(encoder: MeshNet, path: Path | str, *, strict: bool = True, allow_pickle: bool = False) -> LoadReport:
    """Load the public MeshNet layout (without its last classifier layer), or our own."""
    state = read_weights(path, allow_pickle)
    public = _below(state, "spatial_descriptor.spatial_mlp.0.weight")
    if public is None:
        return assign(encoder, state, path, strict)
    rules: list[tuple[str, str | None]] = [
        (r"spatial_descriptor\.spatial_mlp\.", "spatial."),
        (r"structural_descriptor\.FRC\.rotate_mlp\.", "rotate.pair."),
        (r"structural_descriptor\.FRC\.fusion_mlp\.", "rotate.fuse."),
        (r"structural_descriptor\.FKC\.weight_", "kernel."),
        (r"structural_descriptor\.FKC\.bn\.", "kernel.norm."),
        (r"structural_descriptor\.structural_mlp\.", "structural."),
        (r"mesh_conv([12])\.combination_mlp\.", r"conv\1.combine."),
        (r"mesh_conv([12])\.concat_mlp\.0\.", r"conv\1.concat."),
        (r"mesh_conv([12])\.concat_mlp\.1\.", r"conv\1.concat_norm."),
        (r"mesh_conv([12])\.aggregation_mlp\.", r"conv\1.aggregate."),
        (r"fusion_mlp\.", "fusion."),
        (r"concat_mlp\.", "concat."),
        (r"classifier\.6\.", None),
        (r"classifier\.", "head."),
    ]
    state = _renamed(public, rules)
    for name, value in state.items():
        if value.dim() > 2:  # 1x1 convolutions [out, in, 1(, 1)] and kernel angles [1, kernels, 4]
            state[name] = value.squeeze(0) if name.startswith("kernel.") else value.flatten(1)
    return assign(encoder, state, path, strict)


def load_resnet(encoder: ResNet, path: Path | str, *, strict: bool = True, allow_pickle: bool = False) -> LoadReport:
    """Load torchvision's ResNet layout (without ``fc``), that of transformers, or our own."""
    state = read_weights(path, allow_pickle)
    layers = "model.encoder.stages."
    rules: list[tuple[str, str | None]]
    public = _below(state, "layer1.0.conv1.weight")
    if public is not None:
        rules = [
            (r"conv1\.", "model.embedder.embedder.convolution."),
            (r"bn1\.", "model.embedder.embedder.normalization."),
            (r"fc\.", None),
        ]
        for s in range(1, 5):
            block, ours = rf"layer{s}\.(\d+)\.", rf"{layers}{s - 1}.layers.\1."
            rules += [(rf"{block}conv{n}\.", rf"{ours}layer.{n - 1}.convolution.") for n in (1, 2, 3)]
            rules += [(rf"{block}bn{n}\.", rf"{ours}layer.{n - 1}.normalization.") for n in (1, 2, 3)]
            rules += [
                (rf"{block}downsample\.0\.", rf"{ours}shortcut.convolution."),
                (rf"{block}downsample\.1\.", rf"{ours}shortcut.normalization."),
            ]
        return assign(encoder, _renamed(public, rules), path, strict)
    public = _below(state, "embedder.embedder.convolution.weight") or state
    rules = [(r"(embedder|encoder)\.", r"model.\1."), (r"classifier\.", None)]
    return assign(encoder, _renamed(public, rules), path, strict)
