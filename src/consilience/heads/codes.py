"""Binary codes: signs packed into bytes, and the Hamming distance between packed codes.

A code of K bits belongs to a vector u of K numbers: bit k is set where u_k >= 0, so that zero always means +1. Bits
are packed little-endian inside the byte (bit 0 of byte 0 is u_0); K is a multiple of 8. For codes b, b' in {-1, +1}^K,
<b, b'> = K - 2 d with d their Hamming distance. Every function takes torch tensors or numpy arrays and answers in kind.
"""

from __future__ import annotations

from typing import overload

import numpy as np
import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from consilience.errors import InputError


@overload
def pack(u: Float[Tensor, "n k"]) -> UInt8[Tensor, "n k//8"]: ...
@overload
def pack(u: Float[np.ndarray, "n k"]) -> UInt8[np.ndarray, "n k//8"]: ...
def pack(u: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """uint8 [n, K/8]: bit k = (u_k >= 0) of float vectors [n, K] (-0.0 counts as 0, NaN as negative).

    Raises ``InputError`` when K is not a positive multiple of 8.
    """
    if u.ndim != 2 or u.shape[1] == 0 or u.shape[1] % 8:
        raise InputError(f"codes of shape {tuple(u.shape)}: expected [n, bits] with bits a multiple of 8")
    if isinstance(u, np.ndarray):
        return np.packbits(u >= 0, axis=1, bitorder="little")
    places = 2 ** torch.arange(8, device=u.device)
    return ((u >= 0).view(len(u), -1, 8) * places).sum(2).to(torch.uint8)


@overload
def unpack(packed: UInt8[Tensor, "n b"]) -> Float[Tensor, "n 8*b"]: ...
@overload
def unpack(packed: UInt8[np.ndarray, "n b"]) -> Float[np.ndarray, "n 8*b"]: ...
def unpack(packed: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """float32 [n, K] of -1 and +1: the code that :func:`pack` has packed."""
    if isinstance(packed, np.ndarray):
        bits = np.unpackbits(packed, axis=1, bitorder="little")
        signs: np.ndarray = bits.astype(np.float32) * 2 - 1
        return signs
    places = torch.arange(8, device=packed.device, dtype=torch.uint8)
    bit = (packed[:, :, None] >> places) & 1
    return bit.flatten(1).to(torch.float32) * 2 - 1


def _words(packed: np.ndarray) -> np.ndarray:
    """The same bits in the widest words that fit, [n, words]: fewer XORs."""
    width = next(size for size in (8, 4, 2, 1) if packed.shape[1] % size == 0)
    return np.ascontiguousarray(packed).view(np.dtype(f"u{width}"))


@overload
def distances(a: UInt8[Tensor, "n b"], b: UInt8[Tensor, "m b"]) -> Int32[Tensor, "n m"]: ...
@overload
def distances(a: UInt8[np.ndarray, "n b"], b: UInt8[np.ndarray, "m b"]) -> Int32[np.ndarray, "n m"]: ...
def distances(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """int32 [n, m]: bits in which the packed codes ``a`` [n, K/8] and ``b`` [m, K/8] differ.

    numpy: XOR and population count, word by word. torch: (K - <a, b>) / 2 by a matrix product, exact in float32.
    Raises ``InputError`` for codes of different lengths.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] == 0:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise InputError(f"packed codes of shapes {shapes}: expected [n, bytes] and [m, bytes] of one length")
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        left, right = _words(a), _words(b)
        out = np.zeros((len(a), len(b)), dtype=np.int32)
        for word in range(left.shape[1]):
            out += np.bitwise_count(left[:, word, None] ^ right[None, :, word])
        return out
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        raise InputError("packed codes of both kinds, torch and numpy: convert one of them")
    return ((8 * a.shape[1] - unpack(a) @ unpack(b).T) / 2).to(torch.int32)
