"""CMAH: closed-form values, limits and invariances that hold whatever the implementation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from consilience.data.schema import Batch
from consilience.encoders.point_ops import farthest_points, group, groups_of, nearest_points
from consilience.heads.codes import distances, pack, unpack
from consilience.heads.hash import straight_through
from consilience.losses.contrastive import cross_modal_nce
from consilience.losses.reconstruction import chamfer
from consilience.views.keyed import KeyedRandom
from consilience.views.masking import hidden_count, random_masks
from tests.methods.small_cmah import KINDS, START, batch, method


@pytest.mark.parametrize(("tau", "value"), [(0.5, 0.340753), (0.2, 0.020012), (0.1, 1.36e-4)])
def test_1_four_orthonormal_codes(tau: float, value: float) -> None:
    found = float(cross_modal_nce(torch.eye(4), torch.eye(4), tau))
    assert found == pytest.approx(math.log(1 + 3 * math.exp(-1 / tau)), abs=1e-6)
    assert found == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("tau", [0.05, 0.2, 1.0])
def test_2_equal_codes(tau: float) -> None:
    codes = torch.ones(8, 16)
    assert float(cross_modal_nce(codes, codes, tau)) == pytest.approx(2.079442, abs=1e-5)


def test_3_two_pairs_of_four_bits() -> None:
    a = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1]])
    b = torch.tensor([[1.0, 1, 1, -1], [1, -1, 1, -1]])
    assert float(cross_modal_nce(a, b, 0.2)) == pytest.approx(0.214411, abs=1e-5)


def test_4_debiased() -> None:
    eye = torch.eye(4)
    assert float(cross_modal_nce(eye, eye, 0.5, debias=0.0)) == pytest.approx(0.340753, abs=1e-5)
    assert float(cross_modal_nce(eye, eye, 0.5, debias=0.1)) == pytest.approx(0.111348, abs=1e-5)


def test_5_chamfer() -> None:
    x = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    y = torch.tensor([[0.0, 0, 0], [0, 2, 0]])
    assert float(chamfer(x, y)) == pytest.approx(2.5)
    assert float(chamfer(x, x.flip(0))) == 0
    assert float(chamfer(x, y.flip(0))) == float(chamfer(x, y))
    assert float(chamfer(x, torch.cat([x, x[:1] + 0.1]))) > 0


def test_6_farthest_points_and_invariance() -> None:
    cloud = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [10, 0, 0], [0, 3, 0]]])
    assert farthest_points(cloud, 4).tolist() == [[0, 2, 3, 1]]
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, 60, 3, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    moved = 1.3 * points @ turn.T + torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    assert torch.equal(farthest_points(points, 8), farthest_points(moved, 8))
    (patches, centres), (other, others) = (group(x, *groups_of(x, 8, 10)) for x in (points, moved))
    assert torch.equal(nearest_points(centres, points, 10), nearest_points(others, moved, 10))
    torch.testing.assert_close(1.3 * patches @ turn.T, other, atol=1e-6, rtol=0)


def test_8_codes_and_distances() -> None:
    rng = np.random.default_rng(0)
    for bits in (16, 32, 64, 128):
        u = rng.standard_normal((20, bits)).astype(np.float32)
        b = np.where(u >= 0, 1.0, -1.0)
        gaps = distances(pack(u), pack(u))
        np.testing.assert_array_equal(unpack(pack(u)), b)
        np.testing.assert_array_equal(b @ b.T, bits - 2 * gaps)
        slow = [[sum(x != y for x, y in zip(p, q, strict=True)) for q in b.tolist()] for p in b.tolist()]
        np.testing.assert_array_equal(gaps, slow)


def test_9_counts_of_masks() -> None:
    assert (hidden_count(64, 0.6), hidden_count(196, 0.75)) == (38, 147)
    visible, hidden = random_masks(64, 0.6, KeyedRandom.of(torch.arange(4), 0))
    assert (visible.shape, hidden.shape) == ((4, 26), (4, 38))


def test_9_reconstruction_reads_visible_pixels_and_is_judged_on_hidden_ones() -> None:
    model, rows = method(views=still()), batch()
    pixels = (rows.values["image"].float() / 255).requires_grad_()
    values = {"image": pixels, "points": rows.values["points"]}
    look = {}
    original = model._look

    def remember(*given: object) -> object:
        found = original(*given)  # type: ignore[arg-type]
        look[given[2]] = found
        return found

    model._look = remember  # type: ignore[method-assign, assignment]
    terms = model.step(Batch(rows.index, values, rows.present), START)
    decoder = model.decoders["image"]
    gradient = torch.autograd.grad(terms["reconstruct_image"], [pixels, decoder.leave.bias])[0]
    from consilience.views.masking import patchify, take

    through = patchify(gradient, 7).abs().sum(2)
    assert (take(through, look["image"].visible) > 0).all()
    assert look["image"].hidden.shape == (8, 9)
    shapes: list[torch.Size] = []
    decoder.register_forward_hook(lambda module, given, out: shapes.append(out.shape))
    model.step(rows, START)
    assert shapes == [torch.Size([8, 9, 49])], "predictions at visible places do not even exist"


def still() -> object:
    from consilience.views.geometry import ViewConfig

    return ViewConfig(rotate=0, scale=0, shear=0, shift=0, jitter=0)


def test_10_codes_do_not_know_the_other_modality_fusion_or_decoders() -> None:
    model, rows = method().eval(), batch()
    with torch.no_grad():
        before = {name: model.encode(rows, name) for name in KINDS}
        for module in (model.fusion, model.decoders):
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        for name, other in itertools.permutations(KINDS):
            values = {name: rows.values[name], other: torch.zeros_like(rows.values[other])}
            assert torch.equal(model.encode(Batch(rows.index, values, rows.present), name), before[name])
            alone = Batch(rows.index, {name: rows.values[name]}, {name: rows.present[name]})
            assert torch.equal(model.encode(alone, name), before[name])


def test_11_straight_through() -> None:
    u = torch.tensor([0, 0.3, -0.3, 2, -2], requires_grad=True)
    out = straight_through(u)
    assert out.tolist() == [1, 1, -1, 1, -1]
    out.sum().backward()
    assert u.grad is not None
    assert u.grad.tolist() == [1, 1, 1, 0, 0]
    assert (straight_through(torch.linspace(-1, 1, 1001)) != 0).all()


def test_12_weights_of_pairs() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(6, 8), torch.randn(6, 8)
    plain = cross_modal_nce(a, b, 0.2)
    for constant in (1.0, 0.3, 7.0):
        torch.testing.assert_close(cross_modal_nce(a, b, 0.2, torch.full((6,), constant)), plain)
    weights = torch.tensor([1.0, 1, 0, 1, 1, 1])
    without: Tensor = cross_modal_nce(a, b, 0.2, weights)
    logits = torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T / 0.2
    each = (torch.logsumexp(logits, 1) + torch.logsumexp(logits, 0)) / 2 - logits.diagonal()
    torch.testing.assert_close(without, each[weights > 0].mean())
