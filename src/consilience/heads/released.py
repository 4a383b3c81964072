"""Checkpoints of the authors' own programs, as starting points: SGRAF (Paranioar/SGRAF), NCR
(XLearning-SCU/2021-NeurIPS-NCR) and PC2 (alipay/PC2-NoiseofWeb), and PC2's saved predictions.

Nothing in these files is run: of a checkpoint, tensors, plain values and one ``argparse.Namespace`` are read; of saved
predictions, arrays of numbers. Their networks are ours under other names, with one parameter more: the bias of the keys
in similarity reasoning shifts all logits of a node alike, the softmax cannot see it, and it is dropped.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from consilience.encoders.regions import LinearRegions
from consilience.encoders.text import GRUText
from consilience.errors import InputError
from consilience.heads.matching import Matcher, Peers
from consilience.heads.pseudo_class import PseudoClassifier
from consilience.heads.sgraf import Similarity
from consilience.heads.similarity import Reasoning

SUFFIXES = (".pth.tar", ".pth", ".tar")
State = dict[str, Tensor]
_EXPECTED = "expected a checkpoint that SGRAF, NCR or PC2 wrote (.pth.tar)"
_DAMAGE = (
    OSError, EOFError, pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, IndexError,
    AttributeError, ImportError, MemoryError,
)  # fmt: skip
"""What reading a file of any content may raise."""

# Our names, without the last word (weight, bias, ...), to theirs.
_IMAGE = {"layer": "fc"}
_TEXT = {"embedding": "embed", "gru": "cap_rnn"}
_HEAD = {"head.0": "first_hidden_layer.fc", "head.2": "output_layer"}
_SIMILARITY = {
    "image.local": "v_global_w.embedding_local.0",
    "image.local_norm": "v_global_w.embedding_local.1",
    "image.whole": "v_global_w.embedding_global.0",
    "image.whole_norm": "v_global_w.embedding_global.1",
    "image.weigh": "v_global_w.embedding_common.0",
    "text.local": "t_global_w.embedding_local.0",
    "text.whole": "t_global_w.embedding_global.0",
    "text.weigh": "t_global_w.embedding_common.0",
    "pairs.local": "sim_tranloc_w",
    "pairs.whole": "sim_tranglo_w",
    "pairs.score": "sim_eval_w",
    "pairs.judge.weigh": "SAF_module.attn_sim_w",
    "pairs.judge.norm": "SAF_module.bn",
}
_STEP = {"query": "graph_query_w", "key": "graph_key_w", "graph": "sim_graph_w"}
_UNSEEN = re.compile(r"SGR_module\.\d+\.graph_key_w\.bias")


@dataclass(frozen=True)
class Released:
    """Such a checkpoint."""

    networks: tuple[tuple[State, ...], ...]
    """Of each network (A and B; SGRAF has one) the states of image encoder, text encoder, similarity encoder, and of
    PC2's projection head; names without the ``module.`` of several GPUs."""
    epoch: int
    """As the file counts: warm-up epochs from 0 in a warm-up checkpoint, co-training epochs from 0 in the others."""
    options: dict[str, Any]
    """The program's flags."""


def read_released(path: Path) -> Released:
    """Read a ``checkpoint_*.pth.tar``, ``warmup_model_*.pth.tar`` or ``model_best.pth.tar``.

    Raises :class:`InputError` naming the file when it is missing, torn, or anything else.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; {_EXPECTED}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {foreign[1]}" if foreign else " ".join(str(error).split())[:80]
        raise InputError(f"{path} cannot be read ({reason}); {_EXPECTED}, copied whole") from error
    found = content if isinstance(content, dict) else {}
    names = ("model_A", "model_B") if "model_A" in found else ("model",)
    epoch, options = found.get("epoch"), found.get("opt")
    networks = tuple(_states(found.get(name)) for name in names)
    if not all(len(states) in (3, 4) for states in networks) or not isinstance(epoch, int):
        raise InputError(f"{path} does not hold model_A, model_B (or model) and epoch; {_EXPECTED}")
    return Released(networks, epoch, vars(options) if isinstance(options, argparse.Namespace) else {})


def _states(value: Any) -> tuple[State, ...]:
    """A network's states; none if ``value`` is no list of dictionaries of tensors."""
    states = value if isinstance(value, list | tuple) else ()
    if not all(isinstance(x, dict) and all(isinstance(t, Tensor) for t in x.values()) for x in states):
        return ()
    return tuple({str(name).removeprefix("module."): tensor for name, tensor in x.items()} for x in states)


def load_released(path: Path, peers: Peers, heads: nn.ModuleList | None = None) -> int:
    """Put the networks of such a file into ``peers``, and PC2's projection heads into ``heads`` (one
    :class:`PseudoClassifier` a network); without ``heads`` the file's are left alone. Returns the file's epoch.

    Raises :class:`InputError` for what :func:`read_released` refuses, for a file whose networks have another number,
    architecture or size than ours (naming the flag that sets it), and for one without heads where there should be some.
    """
    released = read_released(path)
    if len(released.networks) != len(peers):
        raise InputError(
            f"{path} holds {len(released.networks)} of the {len(peers)} networks that this method has; a checkpoint of "
            "SGRAF goes into contrastive with --method.networks 1, one of NCR or PC2 into a method with two"
        )
    for flag in ("no_imgnorm", "no_txtnorm"):
        if released.options.get(flag):
            raise InputError(f"{path} was trained with --{flag}; scores here are those of unit vectors")
    found: list[tuple[nn.Module, State]] = []
    for number, states in enumerate(released.networks):
        found += _network(path, states, peers.net(number))
        if heads is not None:
            found.append(_head(path, states, heads[number]))
    for module, state in found:
        module.load_state_dict(state)
    return released.epoch


def _network(path: Path, states: tuple[State, ...], net: Matcher) -> list[tuple[nn.Module, State]]:
    """The modules of one network, each with its new state."""
    image, text, similarity = states[:3]
    scorer = "saf" if any(name.startswith("SAF_module.") for name in similarity) else "sgr"
    if net.config.name != scorer:
        raise InputError(f"{path} scores by {scorer}; set --method.scorer.name {scorer}")
    regions, words, part = net.encoders[net.first], net.encoders[net.second], net.sgraf.parts[0]
    if not isinstance(regions, LinearRegions) or not isinstance(words, GRUText):
        raise InputError(
            f"{path} reads region features and words by a GRU; train on such data, the regions first in "
            "--train.modalities, with --method.encoders.text gru"
        )
    if not net.config.batch_norm:
        raise InputError(f"{path} has batch norms over the regions; set --method.scorer.batch_norm true")
    assert isinstance(part, Similarity)
    judge, embed = part.pairs.judge, words.width
    steps = len(judge.steps) if isinstance(judge, Reasoning) else 0
    norm, vocabulary = "v_global_w.embedding_local.1.weight", words.embedding.num_embeddings
    _size(path, image, "fc.weight", 0, embed, "--method.encoders.embed")
    _size(path, image, "fc.weight", 1, regions.layer.in_features, "--method.encoders.region_width")
    _size(path, text, "embed.weight", 0, vocabulary, "the vocabulary of its training: --method.encoders.tokenizer")
    _size(path, similarity, "sim_tranloc_w.weight", 0, part.pairs.local.out_features, "--method.scorer.sim")
    _size(path, similarity, norm, 0, net.config.slots, "--method.scorer.slots")
    theirs = len({name.split(".")[1] for name in similarity if name.startswith("SGR_module.")})
    if theirs != steps:
        raise InputError(f"{path} reasons in {theirs} steps, not {steps}; set --method.scorer.steps {theirs}")
    names = _SIMILARITY | {
        f"pairs.judge.steps.{i}.{own}": f"SGR_module.{i}.{name}" for i in range(steps) for own, name in _STEP.items()
    }
    return [_fit(path, regions, image, _IMAGE), _fit(path, words, text, _TEXT), _fit(path, part, similarity, names)]


def _head(path: Path, states: tuple[State, ...], head: nn.Module) -> tuple[nn.Module, State]:
    """PC2's projection head of one network."""
    if len(states) < 4 or not isinstance(head, PseudoClassifier):
        raise InputError(f"{path} has no projection head that fits; set --method.head balanced, which starts anew")
    own = head.state_dict()
    _size(path, states[3], "output_layer.weight", 0, len(own["head.2.bias"]), "--method.classes")
    return _fit(path, head, states[3], _HEAD)


def _size(path: Path, state: State, name: str, axis: int, own: int, flag: str) -> None:
    """InputError unless tensor ``name`` has ``own`` entries along ``axis``."""
    if name not in state or state[name].dim() <= axis:
        raise InputError(f"{path} lacks {name}; {_EXPECTED}")
    size = state[name].shape[axis]
    if size != own:
        raise InputError(f"{path}: {name} is made for {size}, this configuration for {own}; set {flag} to fit")


def _fit(path: Path, module: nn.Module, state: State, names: Mapping[str, str]) -> tuple[nn.Module, State]:
    """``module`` with its part of ``state`` under our names; nothing may be missing or left over."""
    own = module.state_dict()
    theirs = {f"{part}.{last}": f"{names[part]}.{last}" for part, _, last in (name.rpartition(".") for name in own)}
    wrong = sorted(set(theirs.values()) ^ {name for name in state if not _UNSEEN.fullmatch(name)})
    wrong += [name for ours, name in theirs.items() if name in state and state[name].shape != own[ours].shape]
    if wrong:
        raise InputError(f"{path} has other networks than SGRAF's: {', '.join(wrong[:3])} missing, new or too large")
    return module, {ours: state[name] for ours, name in theirs.items()}


_ROW = np.zeros(1, dtype=np.float32)
_ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _ROW.__reduce__()[0] for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _ROW.__reduce_ex__(5)[0] for core in ("core", "_core")},
}
"""All that a pickle of arrays needs."""


class _Arrays(pickle.Unpickler):
    """Reads containers, numbers and numpy arrays, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ARRAYS[module, name]


def read_predictions(path: Path, samples: int, classes: int) -> Float[Tensor, "n k"]:
    """Read a ``distri_bank_*.pkl`` or ``warmup_distri_bank_*.pkl`` of PC2: for every training pair, by its position in
    the caption file, the predicted distribution over pseudo-classes. float32.

    Raises :class:`InputError` for another or a torn file and unless there is one row of ``classes`` finite numbers for
    each of the ids 0 to ``samples`` - 1.
    """
    try:
        with path.open("rb") as file:
            bank = _Arrays(file).load()
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(f"{path} cannot be read ({reason}); expected predictions that PC2 saved") from error
    if not isinstance(bank, dict) or not all(type(key) is int for key in bank):
        raise InputError(f"{path} is no dictionary from pair numbers to predictions; expected a file that PC2 saved")
    outside = next((key for key in bank if not 0 <= key < samples), None)
    missing = next((key for key in range(samples) if key not in bank), None)
    if outside is not None or missing is not None:
        what = f"pair {outside} is not among" if outside is not None else f"pair {missing} is missing of"
        raise InputError(
            f"{path}: {what} the {samples} training pairs; train on the same pairs, all of them "
            "(--train.validation 0), or leave the file out"
        )
    for key, row in bank.items():
        if not isinstance(row, np.ndarray) or row.dtype.kind != "f" or row.ndim != 1:
            raise InputError(f"{path}: the prediction of pair {key} is no row of numbers")
        if len(row) != classes:
            raise InputError(f"{path} has {len(row)} classes (pair {key}), not {classes}; set --method.classes to that")
    rows = torch.from_numpy(np.stack([bank[key] for key in range(samples)]).astype(np.float32))
    if not bool(rows.isfinite().all()):
        raise InputError(f"{path}: not every prediction is a finite number; leave the file out")
    return rows


def predictions_beside(path: Path, samples: int, classes: int) -> tuple[Tensor, Tensor] | None:
    """The predictions of networks A and B saved beside a checkpoint, float32 [n, k] each; ``None`` without such files.

    Those of the warm-up come first, as in the release: from its third phase on, the later file mixes pair numbers with
    positions in the clean and the noisy part.
    """
    for prefix in ("warmup_", ""):
        first, second = (path.with_name(f"{prefix}distri_bank_{net}.pkl") for net in "AB")
        if first.is_file() and second.is_file():
            return read_predictions(first, samples, classes), read_predictions(second, samples, classes)
    return None
