"""The fusion block and the decoder of masked auto-encoders against loops over heads and queries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from consilience.heads.fusion import Attention, Fusion
from consilience.heads.masked import MaskedDecoder


@torch.no_grad()
def slow_attention(module: Attention, x: Tensor, context: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    width, size = x.shape[2], x.shape[2] // module.heads
    for sample in range(len(x)):
        q = module.query(module.before(x[sample]))
        k, v = module.keys(module.before_context(context[sample])).split(width, 1)
        joined = torch.zeros_like(q)
        for head in range(module.heads):
            part = slice(head * size, (head + 1) * size)
            for row in range(len(q)):
                scores = [float(q[row, part] @ k[j, part]) / math.sqrt(size) for j in range(len(k))]
                total = sum(math.exp(s) for s in scores)
                for j, score in enumerate(scores):
                    joined[row, part] += math.exp(score) / total * v[j, part]
        out[sample] = module.join(joined)
    return out


def test_attention_against_loops() -> None:
    torch.manual_seed(0)
    module = Attention(8, 2)
    x, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    torch.testing.assert_close(module(x, context), slow_attention(module, x, context), atol=1e-5, rtol=1e-4)


def test_a_layer_is_self_then_cross_then_feed_forward() -> None:
    torch.manual_seed(1)
    fusion = Fusion(8, 2, 1)
    a, b = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    one, two = fusion.first[0], fusion.second[0]
    own_a, own_b = a + slow_attention(one.own, a, a), b + slow_attention(two.own, b, b)
    mixed_a = own_a + slow_attention(one.other, own_a, own_b)
    mixed_b = own_b + slow_attention(two.other, own_b, own_a)
    found = fusion(a, b)
    torch.testing.assert_close(found[0], mixed_a + one.feed(mixed_a), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1], mixed_b + two.feed(mixed_b), atol=1e-5, rtol=1e-4)


def test_without_layers_nothing_is_fused() -> None:
    a, b = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    found = Fusion(8, 2, 0)(a, b)
    assert found[0] is a
    assert found[1] is b


def test_pairs_do_not_see_other_pairs() -> None:
    torch.manual_seed(2)
    fusion = Fusion(8, 2, 2)
    a, b = torch.randn(3, 3, 8), torch.randn(3, 4, 8)
    whole, alone = fusion(a, b), fusion(a[1:2], b[1:2])
    torch.testing.assert_close(whole[0][1:2], alone[0])
    torch.testing.assert_close(whole[1][1:2], alone[1])


def test_the_decoder_predicts_each_hidden_place_from_all_visible_ones() -> None:
    torch.manual_seed(3)
    decoder = MaskedDecoder(8, 12, 2, 4, 5)
    visible, seen, asked = torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    out = decoder(visible, seen, asked)
    assert out.shape == (2, 4, 5)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(decoder(visible[:, order], seen[:, order], asked), out, atol=1e-5, rtol=1e-5)
    swap = torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(decoder(visible, seen, asked[:, swap]), out[:, swap], atol=1e-5, rtol=1e-5)
    other = visible.clone()
    other[0, 0] += 1
    changed = decoder(other, seen, asked)
    assert (changed[0] != out[0]).all()
    torch.testing.assert_close(changed[1], out[1])
