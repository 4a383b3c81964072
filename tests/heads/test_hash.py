"""Hash heads: signs, gradients, balance, prefixes."""

from __future__ import annotations

import math

import pytest
import torch

from consilience.heads.codes import pack
from consilience.heads.hash import BitNorm, HashHead, prefixes, slope, straight_through

KINDS = [(k, n, p) for k in ("tanh", "ste") for n in ("batch", "layer", "none") for p in ("feature", "code_mean")]


def slow_head(head: HashHead, tokens: torch.Tensor) -> list[list[float]]:
    """u of every sample, number by number, in evaluation mode with norm none."""
    first, last = head.layers[0], head.layers[2]
    out = []
    for sample in tokens:
        if head.pool == "feature":
            rows = [torch.cat([sample[0], torch.stack([max(column) for column in sample[1:].T])])]
        else:
            rows = list(sample[1:])
        codes = []
        for row in rows:
            middle = torch.clamp(first.weight @ row + first.bias, min=0)
            h = last.weight @ middle + last.bias
            sign = [1.0 if float(x) >= 0 else -1.0 for x in h]
            codes.append([math.tanh(float(head.alpha) * float(x)) for x in h] if head.kind == "tanh" else sign)
        out.append([sum(column) / len(codes) for column in zip(*codes, strict=True)])
    return out


@pytest.mark.parametrize("kind", ["tanh", "ste"])
@pytest.mark.parametrize("pool", ["feature", "code_mean"])
def test_heads_against_loops(kind: str, pool: str) -> None:
    torch.manual_seed(0)
    head = HashHead(6, 8, kind, "none", pool)
    head.alpha.fill_(1.7)
    tokens = torch.randn(3, 5, 6)
    with torch.no_grad():
        found, expected = head(tokens), torch.tensor(slow_head(head, tokens))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "norm", "pool"), KINDS)
def test_real_vectors_have_the_signs_of_the_code(kind: str, norm: str, pool: str) -> None:
    torch.manual_seed(1)
    head = HashHead(8, 16, kind, norm, pool).eval()
    tokens = torch.randn(7, 6, 8)
    u, real = head(tokens), head.real(tokens)
    assert u.dtype == real.dtype == torch.float32
    assert u.abs().max() <= 1
    assert torch.equal(pack(u), pack(real))
    if kind == "ste" and pool == "feature":
        assert set(u.flatten().tolist()) == {-1.0, 1.0}
        assert len(set(real.flatten().tolist())) > 2


def test_straight_through_is_the_clipped_identity_backwards() -> None:
    h = torch.linspace(-2, 2, 41, requires_grad=True)
    weight = torch.randn(41)
    (straight_through(h) * weight).sum().backward()
    assert h.grad is not None
    expected = [float(w) if abs(float(x)) < 1 else 0.0 for x, w in zip(h.detach(), weight, strict=True)]
    assert h.grad.tolist() == expected


def test_bit_norm_is_batch_norm_without_shift() -> None:
    torch.manual_seed(0)
    ours, theirs = BitNorm(5), torch.nn.BatchNorm1d(5)
    ours.gain.data = theirs.weight.data = torch.rand(5) + 0.5
    for _ in range(3):
        h = torch.randn(9, 5) * 3 + 2
        torch.testing.assert_close(ours(h), theirs(h))
    torch.testing.assert_close(ours.mean, theirs.running_mean)
    torch.testing.assert_close(ours.variance, theirs.running_var)
    kept = ours.mean.clone()
    ours(torch.randn(9, 5), False)
    assert torch.equal(ours.mean, kept)
    h = torch.randn(4, 5)
    torch.testing.assert_close(ours.eval()(h), theirs.eval()(h))
    torch.testing.assert_close(ours(h[:1]), ours(h)[:1])


def test_bit_norm_survives_a_batch_of_one() -> None:
    u = torch.tanh(BitNorm(4)(torch.randn(1, 4)))
    assert torch.isfinite(u).all()


def test_prefixes_and_slopes() -> None:
    assert prefixes(128, True) == [16, 32, 64, 128]
    assert prefixes(24, True) == [16, 24]
    assert prefixes(16, True) == prefixes(16, False) == [16]
    assert prefixes(64, False) == [64]
    assert [slope("sqrt", e) for e in (0, 3, 8)] == [1, 2, 3]
    assert slope("constant", 9) == 1
