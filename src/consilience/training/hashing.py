"""Binary codes for any trained method: an affine map fitted on its vectors, whose signs are the code.

* ``sign``: the signs of the centred vectors themselves (as many bits as the vectors have numbers).
* ``lsh``: random hyperplanes (M. Charikar, "Similarity Estimation Techniques from Rounding Algorithms", STOC 2002).
* ``itq``: principal components, then the rotation that brings them nearest to the corners of the cube (Y. Gong et al.,
  "Iterative Quantization", IEEE TPAMI 35(12), 2013), on the pooled vectors of all modalities.
* ``learned``: a linear head, started from ``itq`` (``lsh`` where the vectors are narrower than the code), that makes
  the codes of a pair agree: symmetric InfoNCE on tanh of the map, with a penalty on bits that are mostly one sign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import safe_open
from safetensors.numpy import save

from consilience.errors import InputError, unknown
from consilience.files import write_bytes
from consilience.heads.codes import pack
from consilience.losses.contrastive import pair_nce

Way = Literal["itq", "sign", "lsh", "learned"]
WAYS: tuple[str, ...] = get_args(Way)
ROUNDS = 50
"""Iterations of ITQ; Gong et al. use 50."""


@dataclass(frozen=True)
class Hasher:
    """x -> x @ matrix + bias; bit k of the code is set where entry k is at least 0."""

    matrix: Float[np.ndarray, "d k"]
    bias: Float[np.ndarray, " k"]
    by: str

    @property
    def bits(self) -> int:
        return int(self.matrix.shape[1])

    def project(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """float32 [n, K] before the signs: what asymmetric ranking compares with stored codes."""
        if x.ndim != 2 or x.shape[1] != len(self.matrix):
            raise InputError(f"vectors {list(x.shape)} do not fit a hasher of vectors with {len(self.matrix)} numbers")
        out: np.ndarray = (x @ self.matrix + self.bias).astype(np.float32)
        return out

    def code(self, x: Float[np.ndarray, "n d"]) -> UInt8[np.ndarray, "n k//8"]:
        """Packed codes uint8 [n, K/8]."""
        return pack(self.project(x))

    def save(self, path: Path) -> None:
        """Write to a safetensors file, atomically."""
        tensors = {"matrix": np.ascontiguousarray(self.matrix), "bias": np.ascontiguousarray(self.bias)}
        write_bytes(path, save(tensors, {"hasher": json.dumps({"by": self.by})}))

    @classmethod
    def load(cls, path: Path) -> Hasher:
        """From :meth:`save`; InputError when the file is absent or holds no hasher."""
        if not path.is_file():
            raise InputError(f"{path}, which turns vectors into codes, is gone; hash the table again")
        try:
            with safe_open(path, "np") as file:
                by = json.loads((file.metadata() or {})["hasher"])["by"]
                return cls(file.get_tensor("matrix"), file.get_tensor("bias"), by)
        except Exception as error:
            raise InputError(f"{path} is no hasher ({error}); hash the table again") from error


def identity_hasher(bits: int) -> Hasher:
    """For vectors whose own signs are the code."""
    return Hasher(np.eye(bits, dtype=np.float32), np.zeros(bits, np.float32), "sign")


def fit_hasher(vectors: Mapping[str, Float[np.ndarray, "n d"]], bits: int, by: str = "itq", seed: int = 0) -> Hasher:
    """A hasher for unit vectors of one common space; row i of every modality is sample i.

    Deterministic for a seed. Raises InputError for unknown ways, a number of bits that is no multiple of 8, ``sign``
    with other bits than numbers, ``itq`` with more bits than numbers, and modalities of different widths.
    """
    if by not in WAYS:
        raise unknown("way to hash (--by)", by, WAYS)
    if bits < 8 or bits % 8:
        raise InputError(f"--bits {bits}: expected a multiple of 8, such as 16, 32, 64 or 128")
    widths = {int(x.shape[1]) for x in vectors.values()}
    if len(widths) != 1:
        raise InputError(f"the modalities have vectors of {sorted(widths)} numbers; a hasher needs one common space")
    width = widths.pop()
    pooled = np.concatenate([np.asarray(x, dtype=np.float32) for x in vectors.values()])
    if len(pooled) < 2:
        raise InputError(f"{len(pooled)} vectors are too few to fit a hasher; widen the filter")
    mean = pooled.mean(0)
    if by == "sign":
        if bits != width:
            raise InputError(f"--by sign gives as many bits as the vectors have numbers, {width}; give --bits {width}")
        return Hasher(np.eye(width, dtype=np.float32), -mean, by)
    if by == "lsh" or (by == "learned" and bits > width):
        start = np.random.default_rng(seed).normal(size=(width, bits)).astype(np.float32)
    elif bits > width:
        raise InputError(
            f"--by itq gives at most as many bits as the vectors have numbers, {width}; use lsh or learned"
        )
    else:
        start = _itq(pooled - mean, bits, seed)
    if by == "learned":
        if len(vectors) < 2:
            raise InputError("--by learned makes modalities agree and needs two; use itq")
        return _learn([np.asarray(x, dtype=np.float32) for x in vectors.values()], mean, start, seed)
    return Hasher(start, -mean @ start, by)


def _itq(x: Float[np.ndarray, "n d"], bits: int, seed: int) -> Float[np.ndarray, "d bits"]:
    """Principal components and rotation R: alternate B = sign(V R) and R = argmin |B - V R| (Gong et al., eq. 3)."""
    values, directions = np.linalg.eigh(x.T.astype(np.float64) @ x / len(x))
    components = directions[:, np.argsort(-values, kind="stable")[:bits]]
    v = x @ components
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(bits, bits)))
    for _ in range(ROUNDS):
        signs = np.where(v @ rotation >= 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(v.T @ signs)
        rotation = left @ right
    return np.asarray(components @ rotation, dtype=np.float32)


def _learn(x: list[np.ndarray], mean: np.ndarray, start: np.ndarray, seed: int) -> Hasher:
    """600 steps of Adam on 256 random pairs; the start is scaled so that tanh begins unsaturated."""
    parts = [torch.from_numpy(np.ascontiguousarray(one)) for one in x]
    first = torch.from_numpy(start)
    first = first / ((torch.cat(parts) - torch.from_numpy(mean)) @ first).std().clamp_min(1e-6)
    matrix, bias = first.clone().requires_grad_(), (-torch.from_numpy(mean) @ first).requires_grad_()
    optimiser = torch.optim.Adam([matrix, bias], 5e-3)
    draw = np.random.default_rng(seed)
    with torch.enable_grad():
        for _ in range(600):
            rows = torch.from_numpy(draw.integers(0, len(parts[0]), 256))
            codes = [torch.tanh(one[rows] @ matrix + bias) for one in parts]
            unit = [torch.nn.functional.normalize(code, dim=1) for code in codes]
            terms = [pair_nce(a @ b.T, 0.2).mean() for a, b in combinations(unit, 2)]
            loss = torch.stack(terms).sum() + 0.1 * torch.cat(codes).mean(0).square().sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return Hasher(matrix.detach().numpy(), bias.detach().numpy(), "learned")
