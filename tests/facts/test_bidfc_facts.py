"""Numbers that BIDFC's parts must give: closed forms, limits and invariances of its specification."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from consilience.data.loader import Loader
from consilience.data.schema import Batch, Kind
from consilience.data.table import Table
from consilience.errors import InputError
from consilience.heads.imprint import DrawnHead, imprinted_logits
from consilience.losses.instances import instance_discrimination, ramp, separation, view_variance
from consilience.methods.base import Optimiser, Progress
from consilience.methods.bidfc import BIDFC, BIDFCConfig
from consilience.views.keyed import KeyedRandom


def own(count: int) -> Tensor:
    return torch.arange(count)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0, 100.0])
def test_uniform_logits_cost_the_logarithm_of_the_batch(temperature: float) -> None:
    assert instance_discrimination(torch.full((6, 6), 3.0), own(6), temperature).item() == pytest.approx(math.log(6))


def test_one_logit_on_the_own_picture() -> None:
    value = instance_discrimination(4 * torch.eye(4), own(4), 2.0).item()
    assert value == pytest.approx(math.log(1 + 3 * math.exp(-2)))
    assert value == pytest.approx(0.340753, abs=1e-6)


def test_endless_temperature_forgets_the_logits() -> None:
    assert instance_discrimination(torch.randn(5, 5), own(5), 1e6).item() == pytest.approx(math.log(5), abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_at_uniform_logits_and_its_halving(temperature: float) -> None:
    logits = torch.zeros(4, 4, requires_grad=True)
    instance_discrimination(logits, own(4), temperature).backward()
    expected = (torch.full((4, 4), 0.25) - torch.eye(4)) / (4 * temperature)
    torch.testing.assert_close(logits.grad, expected)


def test_candidates_are_what_a_row_is_told_from() -> None:
    """Rows 0 and 1 leave each other out: two candidates are left of three, the own one among them."""
    seen = ~torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
    found = instance_discrimination(torch.zeros(3, 3), own(3), 0.5, seen)
    assert found.item() == pytest.approx((2 * math.log(2) + math.log(3)) / 3)
    with pytest.raises(InputError, match="positive"):
        instance_discrimination(torch.zeros(3, 3), own(3), 0.0)


def test_views_that_are_equal_have_no_spread_and_a_finite_gradient() -> None:
    features = torch.randn(3, 1, 5).repeat(1, 4, 1).requires_grad_(True)
    for statistic in ("std", "var"):
        value = view_variance(features, statistic)
        assert value.item() == 0
        (gradient,) = torch.autograd.grad(value, features)
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_two_views_of_nought_and_two() -> None:
    features = torch.tensor([0.0, 2.0])[None, :, None].expand(3, 2, 7)
    assert view_variance(features, "std", "sum").item() == pytest.approx(4.242641, abs=1e-6)
    assert view_variance(features, "std", "mean").item() == pytest.approx(1.414214, abs=1e-6)
    assert view_variance(features, "var", "mean").item() == pytest.approx(2.0)


@given(st.integers(1, 5), st.integers(2, 6), st.integers(1, 7), st.integers(0, 10_000))
def test_spread_of_views_by_a_slow_loop_and_its_invariances(b: int, k: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(b, k, d))
    slow = 0.0
    for i in range(b):
        for j in range(d):
            mean = sum(features[i, v, j] for v in range(k)) / k
            slow += math.sqrt(sum((features[i, v, j] - mean) ** 2 for v in range(k)) / (k - 1)) / d
    x = torch.from_numpy(features).float()
    found = view_variance(x, "std", "sum")
    assert found.item() == pytest.approx(slow, rel=1e-4, abs=1e-5)
    moved = view_variance(x + torch.randn(b, 1, d), "std", "sum")
    assert moved.item() == pytest.approx(slow, rel=1e-3, abs=1e-4)
    assert view_variance(x.flip(1), "std", "sum").item() == pytest.approx(slow, rel=1e-4, abs=1e-5)
    assert view_variance(3 * x, "std", "sum").item() == pytest.approx(3 * slow, rel=1e-4, abs=1e-5)
    assert view_variance(x).item() == pytest.approx(slow / b, rel=1e-4, abs=1e-5)


def test_spread_needs_two_views_and_two_pictures() -> None:
    with pytest.raises(InputError, match="two or more"):
        view_variance(torch.zeros(3, 1, 2))
    with pytest.raises(InputError, match="two or more"):
        imprinted_logits(torch.zeros(3, 1, 2))
    with pytest.raises(InputError, match="larger"):
        separation(torch.zeros(1, 2, 2))


def test_separation_is_the_distance_from_its_target() -> None:
    """Mean features -1 and 1 in every number: their standard deviation is the root of 2."""
    features = torch.tensor([-1.0, 1.0])[:, None, None].expand(2, 3, 4)
    assert separation(features, 1.0).item() == pytest.approx((math.sqrt(2) - 1) ** 2)
    assert separation(features, math.sqrt(2)).item() == pytest.approx(0, abs=1e-12)
    collapsed = torch.zeros(4, 3, 2, requires_grad=True)
    value = separation(collapsed)
    value.backward()
    assert value.item() == 1
    assert torch.isfinite(collapsed.grad).all()  # type: ignore[union-attr]


def test_ramp() -> None:
    values = {epoch: ramp(epoch, 30, 150, 1.0) for epoch in (0, 30, 31, 90, 150, 400)}
    assert values == {0: 0, 30: 0, 31: pytest.approx(1 / 120), 90: 0.5, 150: 1, 400: 1}
    assert ramp(0, 0, 0, 2.0) == 0  # epoch 0 of a ramp that starts there
    assert ramp(1, 0, 0, 2.0) == 2.0


@pytest.mark.parametrize("temperature", [0.2, 0.5])
def test_prototypes_of_equal_views_of_orthogonal_pictures(temperature: float) -> None:
    features = (3 * torch.eye(4))[:, None].repeat(1, 5, 1)
    logits = imprinted_logits(features)
    torch.testing.assert_close(logits, torch.eye(4).expand(5, 4, 4))
    loss = instance_discrimination(logits.flatten(0, 1), own(4).repeat(5), temperature)
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-1 / temperature)), abs=1e-6)


@given(st.integers(1, 4), st.integers(2, 4), st.integers(2, 5), st.integers(0, 10_000))
def test_prototypes_by_a_slow_loop(b: int, k: int, d: int, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(b, k, d)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=2, keepdims=True)
    found = imprinted_logits(torch.from_numpy(features)).numpy()
    for view in range(k):
        for j in range(b):
            prototype = sum(unit[j, v] for v in range(k) if v != view)
            prototype = prototype / np.linalg.norm(prototype)
            for i in range(b):
                assert found[view, i, j] == pytest.approx(float(unit[i, view] @ prototype), abs=2e-4)


def test_prototypes_have_no_gradient() -> None:
    """The gradient of a cosine with a fixed direction: orthogonal to the feature, and none through the other views."""
    features = torch.randn(2, 3, 4, requires_grad=True)
    imprinted_logits(features)[0, 0, 0].backward()
    assert features.grad is not None
    assert torch.count_nonzero(features.grad[0, 0])
    assert torch.count_nonzero(features.grad[0, 1:]) == torch.count_nonzero(features.grad[1]) == 0


def test_a_drawn_head_is_another_one_after_every_reset_and_stands_still() -> None:
    head = DrawnHead(6, 8, momentum=0.9)
    index = torch.tensor([5, 2, 9, 11])
    head.reset(KeyedRandom.of(index, 0, 0, 1))
    first = head.weight.clone()
    features, labels = torch.randn(4, 8), own(4)
    head.learn(features, labels, 2.0, 0.1)
    assert torch.count_nonzero(head.weight_speed)
    assert torch.count_nonzero(head.bias_speed)
    bias = head.bias.clone()
    head.reset(KeyedRandom.of(index, 0, 0, 2))
    assert not torch.equal(first[:4], head.weight[:4])
    assert not torch.count_nonzero(head.weight_speed)
    assert not torch.count_nonzero(head.bias_speed)
    assert torch.equal(head.bias, bias), "the bias is kept"
    head.reset(KeyedRandom.of(index, 0, 0, 1))
    assert torch.equal(first, head.weight), "a pure function of the key and the pictures"
    assert set(head.state_dict()) == {"bias"}


def test_a_drawn_row_belongs_to_its_picture_and_has_xaviers_spread() -> None:
    head = DrawnHead(300, 200)
    index = torch.randperm(1000)[:300]
    head.reset(KeyedRandom.of(index, 7))
    assert head.weight.std().item() == pytest.approx(math.sqrt(2 / 500), rel=0.02)
    whole = head.weight.clone()
    head.reset(KeyedRandom.of(index[100:150], 7))
    assert torch.equal(head.weight[:50], whole[100:150])


def test_a_drawn_head_learns_as_autograd_and_sgd_would() -> None:
    torch.manual_seed(0)
    head = DrawnHead(5, 3, momentum=0.9)
    head.reset(KeyedRandom.of(own(5), 1))
    layer = torch.nn.Linear(3, 5)
    layer.load_state_dict({"weight": head.weight, "bias": head.bias})
    optimiser = torch.optim.SGD(layer.parameters(), 0.3, momentum=0.9)
    for _ in range(3):
        features = torch.randn(5, 3)
        optimiser.zero_grad()
        F.cross_entropy(layer(features) / 2.0, own(5)).backward()
        optimiser.step()
        head.learn(features, own(5), 2.0, 0.3)
    torch.testing.assert_close(head.weight, layer.weight.detach())
    torch.testing.assert_close(head.bias, layer.bias.detach())


def test_rows_without_a_picture_rest() -> None:
    """The last, smaller batch of an epoch: no update of absent rows."""
    head = DrawnHead(6, 3, momentum=0.9)
    head.reset(KeyedRandom.of(own(6), 1))
    before = head.weight.clone(), head.bias.clone()
    for _ in range(2):
        head.learn(torch.randn(4, 3), own(4), 1.0, 0.5)
    assert torch.equal(head.weight[4:], before[0][4:])
    assert torch.equal(head.bias[4:], before[1][4:])
    with pytest.raises(InputError, match="batch_size"):
        head(torch.zeros(7, 3))


def small(**options: Any) -> BIDFCConfig:
    base = BIDFCConfig(image_size=8, shrink=1, n_views=3, epochs=10, batch_size=6)
    return replace(base, optimiser=Optimiser("sgd", 0.05, 0.0, schedule="cosine"), **options)


def method_and_batch(**options: Any) -> tuple[BIDFC, Batch]:
    torch.manual_seed(0)
    method = BIDFC(small(**options), {"image": Kind.GREY}, 40)
    values = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    return method, Batch(torch.arange(10, 16), {"image": values}, {"image": torch.ones(6, dtype=torch.bool)})


def walk(method: BIDFC, batch: Batch, epochs: tuple[int, ...]) -> int:
    """All turns of a batch in some epochs, as the loop takes them; returns the encoder's forward passes (in views)."""
    seen = []
    method.encoder.register_forward_hook(lambda module, args, out: seen.append(len(args[0]) // len(batch)))
    phase = method.phases()[0]
    parameters = [p for module in method.trained("train") for p in module.parameters()]
    optimiser = phase.optimiser.build(parameters)
    for epoch in epochs:
        for turn in range(phase.turns):
            terms = method.step(batch, Progress(0, "train", epoch, 0.0, 3, turn))
            if terms:
                torch.stack(list(terms.values())).sum().backward()
                optimiser.step()
                optimiser.zero_grad()
        method.after_batch(batch, Progress(0, "train", epoch, 0.0, 3))
    return sum(seen)


@pytest.mark.parametrize("head", ["imprint", "random", "pairs"])
def test_views_are_encoded_once_while_alpha_is_nought(head: str) -> None:
    """K views a batch, not 2 K; with alpha the published head pays for a second pass, the joint step does not."""
    method, batch = method_and_batch(head=head, temperature=0.5)
    assert walk(method, batch, (0, 1)) == 2 * 3
    method, batch = method_and_batch(head=head, temperature=0.5)
    assert walk(method, batch, (4,)) == (6 if head == "random" else 3)


@pytest.mark.parametrize("head", ["imprint", "random"])
def test_without_alpha_nothing_of_the_second_loss_is_felt(head: str) -> None:
    states = []
    for weight in (1.0, 0.0):
        method, batch = method_and_batch(head=head, dwv_weight=weight)
        walk(method, batch, (0, 1))
        states.append(method.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    method, batch = method_and_batch(head=head, dwv_weight=1.0)
    walk(method, batch, (0, 5))
    other, _ = method_and_batch(head=head, dwv_weight=0.0)
    walk(other, batch, (0, 5))
    assert not all(torch.equal(method.state_dict()[name], other.state_dict()[name]) for name in other.state_dict())


def test_the_average_is_a_copy() -> None:
    """theta_ema = d theta_0 + (1 - d) theta after one batch, and no alias of what comes later."""
    method, batch = method_and_batch(ema=0.75)
    assert method.twin is not None
    start = {name: value.clone() for name, value in method.encoder.state_dict().items()}
    walk(method, batch, (0,))
    now = {name: value.clone() for name, value in method.encoder.state_dict().items()}
    kept = {name: value.clone() for name, value in method.twin.network.state_dict().items()}
    for name, value in kept.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * now[name])
    assert not torch.equal(kept["stages.0.0.weight"], now["stages.0.0.weight"])
    with torch.no_grad():
        method.encoder.stages[0][0].weight.add_(1.0)  # type: ignore[index,operator]
    assert torch.equal(kept["stages.0.0.weight"], method.twin.network.state_dict()["stages.0.0.weight"])
    method.eval()
    plain = replace(method.config, ema=0.0)
    other = BIDFC(plain, {"image": Kind.GREY}, 40).eval()
    other.encoder.load_state_dict(method.twin.network.state_dict())
    assert torch.equal(method.encode(batch, "image"), other.encode(batch, "image"))


def test_pictures_of_a_batch_are_different_ones(tiny_table: Table) -> None:
    """Labels are positions in the batch: no two of them are one picture, in any batch, shared by any number of ranks
    (a running number modulo the batch size, over shuffled batches, was distinct for two thirds)."""
    rows = tiny_table.select("split = 'train'")
    config = small()
    for epoch in range(3):
        parts = []
        for rank in (0, 1):
            loader = Loader(
                tiny_table, rows, BIDFC(config, {"image": Kind.GREY}, 48).decode, 12, seed=1, shuffle=True, rank=rank,
                world=2, modalities=("image",),
            )  # fmt: skip
            parts.append([batch.index for batch in loader.epoch(epoch)])
        for shares in zip(*parts, strict=True):
            joined = torch.cat(shares)
            assert len(joined.unique()) == len(joined)


def test_colliding_labels_are_what_the_arithmetic_says() -> None:
    """The defect that is avoided: of 256 shuffled running numbers modulo 256, about 1 - 1/e are different."""
    order = np.random.default_rng(0).permutation(3671)
    distinct = np.mean([len(np.unique(order[s : s + 256] % 256)) for s in range(0, 3584, 256)])
    assert distinct == pytest.approx(256 * (1 - 1 / math.e), rel=0.05)
