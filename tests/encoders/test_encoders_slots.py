"""Encoders of text, regions, vectors and patches: slots, masks, and independence of what else is in the batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consilience.data.schema import Batch, Kind
from consilience.encoders.base import SlotEncoder, mean_of_slots, pad_slots, unit
from consilience.encoders.build import EncoderConfig, build_encoder
from consilience.encoders.image import SmallCNN
from consilience.encoders.regions import LinearRegions
from consilience.encoders.text import BagOfWords, GRUText, TextTransformer
from consilience.encoders.vit import SmallViT
from consilience.errors import InputError
from consilience.heads.towers import Towers
from consilience.views.geometry import ViewConfig

TEXTS = {
    "transformer": lambda: TextTransformer(30, 12, width=16),
    "gru": lambda: GRUText(30, 16, embedding=8),
    "words": lambda: BagOfWords(30, 16),
}


def _ids(*texts: list[int], longest: int = 9) -> Tensor:
    out = torch.full((len(texts), longest), -1)
    for row, text in zip(out, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return out


@pytest.fixture(params=TEXTS)
def text(request: pytest.FixtureRequest) -> SlotEncoder:
    torch.manual_seed(0)
    return TEXTS[request.param]().double().eval()


def test_mean_of_slots_and_padding() -> None:
    slots = torch.tensor([[[2.0, 4], [4, 0]], [[6, 6], [9, 9]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_of_slots(slots, mask[:, :2]).tolist() == [[3, 2], [0, 0]]
    padded, _ = pad_slots(slots, mask)
    assert padded.tolist() == [[[2, 4], [4, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]]]
    assert unit(torch.tensor([3.0, 4, 0])).tolist() == pytest.approx([0.6, 0.8, 0])
    assert not bool(unit(torch.zeros(2, 3)).any())


def test_a_text_does_not_depend_on_its_companions(text: SlotEncoder) -> None:
    alone, many = _ids([1, 5, 2]), _ids([1, 5, 2], [1, 7, 8, 9, 10, 11, 2], [])
    slots, mask = text.slots(many)
    assert slots.shape == (3, 9, text.slot_width)
    assert mask.sum(1).tolist() == [3, 7, 0]
    assert not bool(slots[~mask].any())
    torch.testing.assert_close(text.slots(alone)[0], slots[:1], rtol=0, atol=1e-12)
    shorter = text.slots(alone[:, :3])[0]
    torch.testing.assert_close(shorter, slots[:1, :3], rtol=0, atol=1e-12)
    assert slots[1, 6].abs().sum() > 0
    torch.testing.assert_close(text(many)[1], slots[1, :7].mean(0))
    assert not bool(text(many)[2].any())
    assert text(many[2:]).isfinite().all()


def test_order_matters_except_to_a_bag(text: SlotEncoder) -> None:
    one, other = text(_ids([1, 5, 6, 2])), text(_ids([1, 6, 5, 2]))
    assert torch.allclose(one, other) == isinstance(text, BagOfWords)


def test_ids_outside_the_vocabulary_are_refused(text: SlotEncoder) -> None:
    with pytest.raises(InputError, match="token id 30 in a vocabulary of 30"):
        text(_ids([1, 30]))


def test_gradients_reach_every_weight(text: SlotEncoder) -> None:
    text.train()
    text(_ids([1, 5, 2], [1, 7, 8, 2], [])).square().sum().backward()
    for name, parameter in text.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        used = name != "transformer.positions"
        assert bool(parameter.grad.any()) or not used, name


def test_gru_is_the_mean_of_two_directions_of_every_text() -> None:
    torch.manual_seed(0)
    net = GRUText(30, 6, embedding=4).double().eval()
    ids = [1, 9, 4, 2]
    words = net.embedding(torch.tensor(ids))
    states = []
    for suffix, order in (("", range(4)), ("_reverse", reversed(range(4)))):
        cell = nn.GRUCell(4, 6).double()
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, part).data = getattr(net.gru, f"{part}_l0{suffix}").data
        h, found = torch.zeros(6, dtype=torch.float64), {}
        for place in order:
            h = found[place] = cell(words[place], h)
        states.append(torch.stack([found[place] for place in range(4)]))
    expected = F.normalize((states[0] + states[1]) / 2, dim=1)
    torch.testing.assert_close(net.slots(_ids(ids, [1, 2, 3, 4, 5, 6]))[0][0, :4], expected, rtol=0, atol=1e-7)
    assert float(net.embedding.weight.detach().abs().max()) <= 0.1
    assert net.dropout.p == 0.4


def test_too_many_tokens_for_the_positions() -> None:
    net = TextTransformer(30, 4)
    assert net(_ids([1, 2, 3, 4])).shape == (1, 128)  # padding beyond the positions is nothing
    with pytest.raises(InputError, match="5 tokens for max_tokens=4"):
        net(_ids([1, 2, 3, 4, 5]))


def test_regions() -> None:
    torch.manual_seed(0)
    net = LinearRegions(10, 6)
    assert not bool(net.layer.bias.any())
    nn.init.normal_(net.layer.bias)
    x = torch.randn(2, 4, 10)
    x[1, 2:] = 0
    slots, mask = net.slots(x)
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert not bool(slots[1, 2:].any())
    row = net.layer.weight @ x[1, 1] + net.layer.bias
    torch.testing.assert_close(slots[1, 1], row / row.norm())
    torch.testing.assert_close(net(x)[1], slots[1, :2].mean(0))
    shuffled = net(x[:, torch.tensor([2, 0, 3, 1])])
    torch.testing.assert_close(shuffled, net(x))


def test_vit() -> None:
    torch.manual_seed(0)
    net = SmallViT(1, 28, 7)
    x = torch.rand(2, 1, 28, 28)
    slots, mask = net.slots(x)
    assert slots.shape == (2, 16, 128)
    assert mask.all()
    torch.testing.assert_close(net(x), slots.mean(1))
    moved = x.clone()
    moved[:, :, :7, 7:14] = 0  # the second patch of the first row
    before = net.embed(2 * x - 1).flatten(2).transpose(1, 2)
    after = net.embed(2 * moved - 1).flatten(2).transpose(1, 2)
    assert (before != after).any(2).nonzero()[:, 1].unique().tolist() == [1]
    with pytest.raises(InputError, match="not a multiple of patch=5"):
        SmallViT(1, 28, 5)
    with pytest.raises(InputError, match="built for 1 channels of 28 pixels"):
        net(torch.rand(2, 3, 28, 28))


def test_small_cnn_shows_its_last_map() -> None:
    net = SmallCNN(3).eval()
    x = torch.rand(2, 3, 28, 28)
    slots, mask = net.slots(x)
    assert slots.shape == (2, 16, net.slot_width)
    assert mask.all()
    out = net.head(slots.transpose(1, 2).reshape(2, 128, 4, 4).flatten(1))
    torch.testing.assert_close(out, net(x))


def test_names_that_do_not_exist() -> None:
    with pytest.raises(InputError, match="did you mean 'transformer'"):
        build_encoder(Kind.TEXT, EncoderConfig(text="transfomer"))
    with pytest.raises(InputError, match="linear"):
        build_encoder(Kind.REGIONS, EncoderConfig(region_encoder="linea"))
    with pytest.raises(InputError, match="mlp"):
        build_encoder(Kind.VECTOR, EncoderConfig(vector="mpl"))


def test_sizes_follow_the_configuration() -> None:
    config = EncoderConfig(regions=7, region_width=12, vector_width=5, max_tokens=9, embed=16, text="gru")
    assert (config.decode.shape(Kind.TEXT), config.decode.shape(Kind.REGIONS)) == ((9,), (7, 12))
    assert config.decode.shape(Kind.VECTOR) == (5,)
    assert build_encoder(Kind.REGIONS, config)(torch.randn(2, 7, 12)).shape == (2, 16)
    assert build_encoder(Kind.VECTOR, config)(torch.randn(2, 5)).shape == (2, 256)
    assert build_encoder(Kind.TEXT, config).embedding.weight.shape == (260, 300)
    open_sizes = EncoderConfig().decode
    assert (open_sizes.tokenizer, open_sizes.max_tokens, open_sizes.regions) == ("bytes", 64, 36)
    assert EncoderConfig(text="hf:some/model").decode.tokenizer == "hf:some/model"


def test_towers_of_the_new_kinds() -> None:
    torch.manual_seed(0)
    kinds = {"caption": Kind.TEXT, "regions": Kind.REGIONS, "vector": Kind.VECTOR}
    config = EncoderConfig(regions=3, region_width=8, vector_width=5, embed=16)
    towers = Towers(config, kinds, 12, 20, False).train()
    values = {
        "caption": _ids([1, 5, 2], [1, 7, 8, 2], [1, 2], [1, 9, 2]),
        "regions": torch.randn(4, 3, 8),
        "vector": torch.randn(4, 5),
    }
    present = {name: torch.ones(4, dtype=torch.bool) for name in kinds}
    present["regions"][2] = False
    batch = Batch(torch.arange(4), values, present)
    vectors, masks = towers.moved(batch, (0, 0, 0), ViewConfig())
    for z, mask, name in zip(vectors, masks, kinds, strict=True):
        assert z.shape == (4, 12)
        assert torch.equal(mask, present[name])
    assert not bool(vectors[1][2].any())
    towers.eval()
    for name in kinds:
        assert towers.plain(batch, name).shape == (4, 12)
