"""Tokenisers and the transformer that reads visible tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from consilience.encoders.patches import (
    GroupNet,
    ImageTokens,
    PointTokens,
    Tokens,
    TokenTransformer,
    sine_cosine,
    survive,
)
from consilience.encoders.point_ops import group, groups_of
from consilience.encoders.transformer import Block
from consilience.errors import InputError
from consilience.views.keyed import KeyedRandom
from consilience.views.masking import normalised, patchify


def test_positions_are_sines_and_cosines_of_row_and_column() -> None:
    side, width = 3, 8
    codes = sine_cosine(side, width)
    for row in range(side):
        for column in range(side):
            expected = []
            for coordinate in (row, column):
                rates = [10_000 ** (-k / 2) for k in range(2)]
                expected += [math.sin(coordinate * r) for r in rates] + [math.cos(coordinate * r) for r in rates]
            assert codes[row * side + column].tolist() == pytest.approx(expected, abs=1e-6)
    assert len({tuple(code) for code in codes.tolist()}) == side * side
    with pytest.raises(InputError, match="multiple of 4"):
        sine_cosine(3, 6)


def test_group_net_is_point_maes_small_pointnet() -> None:
    """Against the network as Point-MAE draws it: the maximum is concatenated to every point before one layer."""
    torch.manual_seed(0)
    net, patches = GroupNet(10, 4, "layer"), torch.randn(2, 3, 5, 3)
    weight = torch.cat([net.of_group.weight, net.of_point.weight], 1)
    for b in range(2):
        for g in range(3):
            points = net.lift(patches[b, g])
            joined = torch.cat([points.amax(0).expand(5, -1), points], 1)
            expected = net.last(F.linear(joined, weight, net.of_group.bias)).amax(0)
            torch.testing.assert_close(net(patches)[b, g], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net(patches.flip(2)), net(patches))


def test_batch_norm_covers_all_points_of_all_groups() -> None:
    torch.manual_seed(0)
    net = GroupNet(6, 4, "batch")
    net(torch.randn(2, 3, 5, 3))
    norm = net.lift[1].inner
    assert norm.num_batches_tracked == 1
    lifted = net.lift[0](torch.randn(2, 3, 5, 3))
    expected = F.batch_norm(lifted.reshape(30, 4), None, None, norm.weight, norm.bias, True)
    torch.testing.assert_close(net.lift[1](lifted), expected.view(2, 3, 5, 4))


def test_point_tokens_are_groups() -> None:
    torch.manual_seed(0)
    tokeniser, clouds = PointTokens(4, 6, 8, 4, "layer"), torch.randn(3, 20, 3)
    tokens, (patches, centres) = tokeniser(clouds), group(clouds, *groups_of(clouds, 4, 6))
    assert (tokeniser.count, tokeniser.outputs) == (4, 18)
    torch.testing.assert_close(tokens.content, tokeniser.net(patches))
    torch.testing.assert_close(tokens.place, tokeniser.position(centres))
    assert torch.equal(tokens.targets.view(3, 4, 6, 3), patches)
    torch.testing.assert_close(tokeniser(clouds + 5).content, tokens.content, atol=1e-5, rtol=1e-4)


def test_image_tokens_are_patches() -> None:
    torch.manual_seed(0)
    tokeniser, images = ImageTokens(3, 8, 4, 12), torch.rand(2, 3, 8, 8)
    tokens = tokeniser(images)
    assert (tokeniser.count, tokeniser.outputs) == (4, 48)
    torch.testing.assert_close(tokens.content, tokeniser.embed(2 * patchify(images, 4) - 1))
    assert torch.equal(tokens.targets, normalised(patchify(images, 4)))
    assert torch.equal(tokens.place[1], sine_cosine(2, 12))
    with pytest.raises(InputError, match="divides"):
        ImageTokens(1, 28, 5, 12)
    with pytest.raises(InputError, match=r"shape \[1, 8, 8\]"):
        tokeniser(torch.rand(2, 1, 8, 8))


def tokens_of(batch: int, count: int, width: int) -> Tokens:
    return Tokens(torch.randn(batch, count, width), torch.randn(batch, count, width), torch.zeros(batch, count, 1))


@pytest.mark.parametrize("every", [False, True])
def test_hidden_tokens_change_nothing(every: bool) -> None:
    torch.manual_seed(0)
    net, tokens = TokenTransformer(8, 2, 2, place_every_block=every), tokens_of(2, 5, 8)
    visible = torch.tensor([[0, 3], [1, 4]])
    out = net(tokens, visible)
    assert out.shape == (2, 3, 8)
    content, place = tokens.content.clone(), tokens.place.clone()
    content[0, 1], place[0, 1], content[1, 0] = 99, 99, 99
    assert torch.equal(net(Tokens(content, place, tokens.targets), visible), out)
    everything = torch.arange(5).expand(2, 5)
    assert torch.equal(net(tokens, everything), net(tokens))


@pytest.mark.parametrize("every", [False, True])
def test_the_transformer_step_by_step(every: bool) -> None:
    torch.manual_seed(0)
    net, tokens = TokenTransformer(8, 2, 2, place_every_block=every), tokens_of(2, 3, 8)
    for sample in range(2):
        x = torch.cat([net.cls[None], tokens.content[sample]])
        place = torch.cat([torch.zeros(1, 8), tokens.place[sample]])
        for number, block in enumerate(net.blocks):
            if number == 0 or every:
                x = x + place
            x = block(x[None])[0]
        torch.testing.assert_close(net(tokens)[sample], net.norm(x), atol=1e-5, rtol=1e-5)


def test_drop_path_needs_draws_and_belongs_to_the_sample() -> None:
    torch.manual_seed(0)
    net, tokens = TokenTransformer(8, 3, 2, drop_path=0.5), tokens_of(6, 4, 8)
    still = TokenTransformer(8, 3, 2)
    still.load_state_dict(net.state_dict())
    assert net.drops == [0, 0.25, 0.5]
    assert torch.equal(net(tokens), still(tokens))
    index = torch.arange(6) * 11
    moved = net(tokens, None, KeyedRandom.of(index, 1))
    assert not torch.allclose(moved, still(tokens))
    part = Tokens(tokens.content[2:4], tokens.place[2:4], tokens.targets[2:4])
    torch.testing.assert_close(net(part, None, KeyedRandom.of(index[2:4], 1)), moved[2:4], atol=1e-5, rtol=1e-5)


def test_survival_keeps_the_mean() -> None:
    factors = survive(0.3, KeyedRandom.of(torch.arange(20_000), 0), 0)
    assert sorted(set(factors.flatten().tolist())) == pytest.approx([0, 1 / 0.7])
    assert factors.mean(0).tolist() == pytest.approx([1, 1], abs=0.02)


def test_branches_of_a_block_are_scaled_a_sample() -> None:
    torch.manual_seed(0)
    block, x = Block(8, 2), torch.randn(3, 4, 8)
    torch.testing.assert_close(block(x, None, torch.ones(3, 2)), block(x))
    torch.testing.assert_close(block(x, None, torch.zeros(3, 2)), x)
    half = block(x, None, torch.tensor([[0.0, 2.0]]).expand(3, 2))
    torch.testing.assert_close(half, x + 2 * block.feed(x))


def test_heads_split_the_width() -> None:
    torch.manual_seed(0)
    x, one = torch.randn(2, 5, 8), Block(8, 1)
    many = Block(8, 4)
    many.load_state_dict(one.state_dict())
    assert not torch.allclose(one(x), many(x))
    same = Block(8)
    same.load_state_dict(many.state_dict())
    assert torch.equal(same(x), many(x))
