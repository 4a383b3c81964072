"""SGRAF against its definition: scores, gradients, blocks of every size, masks, parameter counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from consilience.data.schema import Kind
from consilience.encoders.build import EncoderConfig, build_encoder
from consilience.encoders.text import GRUText
from consilience.errors import InputError
from consilience.heads import sgraf as code
from consilience.heads.pair_difference import squared_difference
from consilience.heads.sgraf import SGRAF
from consilience.heads.similarity import SlotAttention
from tests.heads.sgraf_reference import slow_global, slow_scores

E, R = 24, 5
MODULES = ("sgr", "saf", "both")


def _net(module: str = "sgr", *, batch_norm: bool = True, dtype: torch.dtype = torch.float64, steps: int = 3) -> SGRAF:
    """A scorer whose biases and norms are not at their start, without dropout."""
    torch.manual_seed(1)
    net = SGRAF(E, 12, module, steps=steps, slots=R, batch_norm=batch_norm).to(dtype)
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.normal_(part.bias, std=0.1)
        elif isinstance(part, nn.BatchNorm1d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return net


def _slots(count: int, length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(count, length, E, dtype=dtype), dim=2)


def _captions(lengths: list[int], longest: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return _slots(len(lengths), longest, dtype) * mask[:, :, None], mask


def _all(regions: Tensor) -> Tensor:
    return torch.ones(regions.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("module", MODULES)
def test_scores_and_gradients_are_those_of_the_loop(module: str, few: bool, training: bool) -> None:
    net = _net(module).train(training)
    regions, (words, mask) = _slots(7, R).requires_grad_(), _captions([4, 9, 1, 4, 6, 4], 9)
    words.requires_grad_()
    concerned = torch.randn(7, 6, dtype=torch.float64) * (torch.rand(7, 6) < 0.3)
    found = []
    for score in (
        lambda: net(regions, _all(regions), words, mask, few),
        lambda: slow_scores(net, regions, words, mask),
    ):
        net.zero_grad()
        regions.grad = words.grad = None
        scores = score()
        (scores * concerned).sum().backward()
        named = {name: p.grad.clone() for name, p in net.named_parameters()}
        found.append((scores.detach(), regions.grad, words.grad, named))
    (s, r, w, p), (s0, r0, w0, p0) = found
    assert not bool(p0["parts.0.pairs.score.weight"].eq(0).all())
    for ours, slow in ((s, s0), (r, r0), (w, w0)):
        torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-12)
    for name, slow in p0.items():
        torch.testing.assert_close(p[name], slow, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("module", MODULES)
def test_float32_stays_within_a_millionth(module: str) -> None:
    net = _net(module, dtype=torch.float32).eval()
    regions, (words, mask) = _slots(9, R, torch.float32), _captions([3, 8, 8, 5, 1], 8, torch.float32)
    with torch.no_grad():
        assert (
            float((net(regions, _all(regions), words, mask) - slow_scores(net, regions, words, mask)).abs().max())
            < 1e-6
        )


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    images=st.integers(1, 5),
    block=st.sampled_from([1, 3_000, 40_000, 1 << 28]),
    steps=st.integers(1, 3),
    grad=st.booleans(),
)
@hypothesis_settings(max_examples=40)
def test_blocks_of_every_size_agree(lengths: list[int], images: int, block: int, steps: int, grad: bool) -> None:
    net = _net(steps=steps).eval()
    net.block_bytes = block
    regions, (words, mask) = _slots(images, R), _captions(lengths, 7)
    with torch.set_grad_enabled(grad):
        scores = net(regions, _all(regions), words, mask)
    assert scores.shape == (images, len(lengths))
    torch.testing.assert_close(scores, slow_scores(net, regions, words, mask), rtol=1e-9, atol=1e-12)


def test_gradients_of_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    regions, (words, mask) = _slots(6, R), _captions([5, 2, 5, 5, 7], 7)
    grads = []
    for block in (1, 1 << 24):
        monkeypatch.setattr(code, "CPU_BLOCK", block)
        for few in (False, True):
            net = _net().train()
            x = regions.clone().requires_grad_()
            net(x, _all(x), words, mask, few).square().sum().backward()
            grads.append(torch.cat([x.grad.flatten(), *(p.grad.flatten() for p in net.parameters())]))
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], rtol=1e-9, atol=1e-12)


def test_few_scores_only_the_pairs_with_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    net = _net().train()
    regions, (words, mask) = _slots(6, R), _captions([5, 2, 5, 5, 7], 7)
    scores = net(regions, _all(regions), words, mask, few=True)
    seen = []
    nodes = code.PairSimilarity.nodes

    def counted(self: code.PairSimilarity, images: code.Images, said: Tensor, whole: Tensor) -> Tensor:
        out = nodes(self, images, said, whole)
        seen.append(len(out))
        return out

    monkeypatch.setattr(code.PairSimilarity, "nodes", counted)
    (scores[0, 1] + scores[4, 1] + scores[4, 4]).backward()
    assert sum(seen) == 3


@pytest.mark.parametrize("module", MODULES)
def test_padding_never_counts(module: str) -> None:
    net = _net(module, batch_norm=False).eval()
    regions, (words, mask) = _slots(3, R), _captions([4, 2], 4)
    scores = net(regions, _all(regions), words, mask)
    longer = torch.cat([words, torch.randn(2, 3, E, dtype=torch.float64)], 1)
    assert torch.equal(net(regions, _all(regions), longer, F.pad(mask, (0, 3))), scores)
    companion = torch.cat([longer, _slots(1, 7)])  # a longer caption in the batch
    more = torch.cat([F.pad(mask, (0, 3)), torch.ones(1, 7, dtype=torch.bool)])
    torch.testing.assert_close(net(regions, _all(regions), companion, more)[:, :2], scores, rtol=1e-12, atol=1e-14)
    wider = torch.cat([regions, torch.randn(3, 2, E, dtype=torch.float64)], 1)
    there = torch.cat([_all(regions), torch.zeros(3, 2, dtype=torch.bool)], 1)
    torch.testing.assert_close(net(wider, there, words, mask), scores, rtol=1e-12, atol=1e-14)
    holes = torch.tensor([[1, 0, 1, 0, 1, 1], [0, 1, 1, 0, 0, 0]], dtype=torch.bool)
    spread = torch.randn(2, 6, E, dtype=torch.float64)
    spread[holes] = words[mask]
    torch.testing.assert_close(net(regions, _all(regions), spread, holes), scores, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("module", MODULES)
def test_the_order_of_regions_is_seen_by_the_batch_norm_only(module: str) -> None:
    regions, (words, mask) = _slots(3, R), _captions([4, 2], 4)
    turned = regions[:, torch.tensor([3, 0, 4, 1, 2])]
    net = _net(module, batch_norm=False).eval()
    before, after = (net(x, _all(x), words, mask) for x in (regions, turned))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-14)
    net = _net(module).eval()
    assert not torch.allclose(net(turned, _all(turned), words, mask), net(regions, _all(regions), words, mask))


def test_empty_captions_and_images_are_no_catastrophe() -> None:
    net = _net("both", batch_norm=False).train()
    regions, (words, mask) = _slots(3, R).requires_grad_(), _captions([4, 0], 4)
    there = _all(regions)
    there[1] = False
    for few in (False, True):
        scores = net(regions, there, words, mask, few)
        assert scores.isfinite().all()
        scores.sum().backward()
        assert regions.grad.isfinite().all()
        assert not bool(regions.grad[1].any())
    assert net(regions, there, words, torch.zeros_like(mask)).isfinite().all()


def test_global_vectors() -> None:
    net = _net("both", batch_norm=False).eval()
    regions, (words, mask) = _slots(3, R), _captions([4, 2], 4)
    there = _all(regions)
    there[0, 3:] = False
    v, t = net.globals(regions, there, words, mask)
    torch.testing.assert_close(v.norm(dim=1), torch.ones(3, dtype=torch.float64))
    for n, part in enumerate(net.parts):
        for attend, slots, seen, found in ((part.image, regions, there, v), (part.text, words, mask, t)):
            slow = torch.stack([slow_global(attend, x[m]) for x, m in zip(slots, seen, strict=True)])
            torch.testing.assert_close(found[:, n * E : (n + 1) * E] * 2**0.5, slow)
    net.block_bytes = 1
    with torch.no_grad():
        torch.testing.assert_close(net.globals(regions, there, words, mask)[0], v)


def test_batch_norms_of_the_image_attention() -> None:
    torch.manual_seed(0)
    attend = SlotAttention(E, R).double().train()
    attend.dropout.p = 0.0
    slots = _slots(8, R)
    local = attend.local(slots)
    mean, variance = local.mean((0, 2)), local.var((0, 2), correction=0)  # a channel is a region's place
    local = ((local - mean[:, None]) / (variance[:, None] + 1e-5).sqrt()).tanh()
    whole = attend.whole(slots.mean(1))
    whole = ((whole - whole.mean(0)) / (whole.var(0, correction=0) + 1e-5).sqrt()).tanh()
    weights = torch.softmax((local * whole[:, None]) @ attend.weigh.weight[0], 1)
    torch.testing.assert_close(attend(slots, _all(slots)), F.normalize((weights[:, :, None] * slots).sum(1), dim=1))


def test_parameter_counts_of_the_paper() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(build_encoder(Kind.REGIONS, EncoderConfig())) == 2_098_176
    assert count(GRUText(8481)) == 10_691_244
    # with the three key biases of the authors' code, which have no effect: 5,319,755
    assert count(SGRAF()) == 5_319_755 - 3 * 256


def test_a_key_bias_would_change_nothing() -> None:
    net = _net().eval()
    regions, (words, mask) = _slots(3, R), _captions([4, 2], 4)
    before = slow_scores(net, regions, words, mask)
    for step in net.parts[0].pairs.judge.steps:
        step.key.bias = nn.Parameter(torch.randn(12, dtype=torch.float64))
    torch.testing.assert_close(slow_scores(net, regions, words, mask), before)


@pytest.mark.parametrize("shared", [True, False])
def test_squared_difference_is_differentiated_rightly(shared: bool) -> None:
    torch.manual_seed(0)
    sizes = ((3, 4, 2), (3, 2, 6), (1 if shared else 3, 4, 6), (5, 6), (5,))
    inputs = [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in sizes]
    mix, regions, words, weight, bias = inputs
    slow = F.linear((mix @ regions - words).square(), weight, bias)
    torch.testing.assert_close(squared_difference(*inputs), slow)
    assert torch.autograd.gradcheck(squared_difference, inputs)


def test_autocast_does_not_coarsen_the_scores() -> None:
    net = _net("both", dtype=torch.float32).train()
    regions, (words, mask) = _slots(4, R, torch.float32), _captions([3, 5], 5, torch.float32)
    full = net(regions, _all(regions), words, mask)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(regions, _all(regions), words, mask, few=True)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=1e-6)


def test_filtration_norms_over_all_pairs_and_keeps_moments() -> None:
    net = _net("saf").train()
    norm = net.parts[0].pairs.judge.norm
    before = norm.running_mean.clone()
    regions, (words, mask) = _slots(4, R), _captions([3, 5], 5)
    net(regions, _all(regions), words, mask)
    assert not torch.equal(norm.running_mean, before)


def test_what_does_not_fit_is_refused() -> None:
    net = _net()
    regions, (words, mask) = _slots(2, R + 1), _captions([4, 2], 4)
    with pytest.raises(InputError, match="takes exactly 5"):
        net(regions, _all(regions), words, mask)
    with pytest.raises(InputError, match="regions have 12 columns"):
        net(regions[:, :R, :12], _all(regions)[:, :R], words[..., :12], mask)
    with pytest.raises(InputError, match="similarity module"):
        SGRAF(E, module="sgraf")
