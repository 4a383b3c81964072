"""Text models and two-tower models of transformers, built tiny and saved to folders with their tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as tr
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from consilience.data.schema import Kind
from consilience.encoders.build import EncoderConfig, build_encoder
from consilience.encoders.hub import HuggingFaceText
from consilience.encoders.image import HuggingFaceImage
from consilience.errors import InputError

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
VISION = {**TINY, "image_size": 32, "patch_size": 8}
MARKERS = ("[PAD]", "[START]", "[END]", "[UNK]")
VOCABULARY = 40


def _save(model: tr.PreTrainedModel, path: Path, words: int = VOCABULARY) -> str:
    model.save_pretrained(path)
    names = {name: code for code, name in enumerate([*MARKERS, *(f"w{n}" for n in range(words - 4))])}
    library = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.post_processor = processors.TemplateProcessing(
        single="[START] $A [END]", special_tokens=[("[START]", 1), ("[END]", 2)]
    )
    wrapped = tr.PreTrainedTokenizerFast(
        tokenizer_object=library, pad_token="[PAD]", bos_token="[START]", eos_token="[END]", unk_token="[UNK]"
    )
    wrapped.save_pretrained(path)
    return str(path)


def _text(family: str, places: int = 12) -> tr.PreTrainedModel:
    torch.manual_seed(0)
    sizes = {**TINY, "vocab_size": VOCABULARY}
    if family == "bert":
        return tr.BertModel(tr.BertConfig(**sizes, max_position_embeddings=places)).eval()
    if family == "xlm-r":
        config = tr.XLMRobertaConfig(**sizes, max_position_embeddings=places + 2, type_vocab_size=1)
        return tr.XLMRobertaModel(config).eval()
    if family == "t5":
        config = tr.T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
        return tr.T5Model(config).eval()
    # transformers takes 2 as a sign of an old checkpoint, whose end marker is the highest id
    markers = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": places}
    if family == "clip":
        return tr.CLIPModel(
            tr.CLIPConfig(text_config={**sizes, **markers}, vision_config=VISION, projection_dim=6)
        ).eval()
    return tr.SiglipModel(tr.SiglipConfig(text_config={**sizes, **markers}, vision_config=VISION)).eval()


FAMILIES = ("bert", "xlm-r", "t5", "clip", "siglip")


def _ids(*texts: list[int], longest: int = 9) -> Tensor:
    out = torch.full((len(texts), longest), -1)
    for row, text in zip(out, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return out


MANY = ([1, 5, 2], [1, 7, 8, 9, 10, 11, 2], [])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_companions_do_not_count(tmp_path: Path, family: str) -> None:
    net = HuggingFaceText(_save(_text(family), tmp_path)).eval()
    assert net.width == (6 if family == "clip" else 16)
    assert net.slot_width == 16
    alone, many = net(_ids(MANY[0])), net(_ids(*MANY))
    torch.testing.assert_close(alone[0], many[0], rtol=1e-5, atol=1e-6)
    assert many.isfinite().all()
    slots, mask = net.slots(_ids(*MANY))
    assert slots.shape == (3, 9, 16)
    assert mask.sum(1).tolist() == [3, 7, 0]
    assert not bool(slots[~mask].any())
    torch.testing.assert_close(net.slots(_ids(MANY[0]))[0][0], slots[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "xlm-r"])
def test_features_are_the_mean_of_the_models_own_states(tmp_path: Path, family: str) -> None:
    model = _text(family)
    net = HuggingFaceText(_save(model, tmp_path)).eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor(MANY[1:2])).last_hidden_state[0]  # no padding, no mask
    torch.testing.assert_close(net(_ids(*MANY))[1], states.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net.slots(_ids(*MANY))[0][1, :7], states, rtol=1e-5, atol=1e-6)
    assert not any("pooler" in name for name, _ in net.named_parameters())


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_two_towers_share_one_space(tmp_path: Path, family: str) -> None:
    model = _text(family)
    folder = _save(model, tmp_path)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    config = EncoderConfig(image=f"hf:{folder}", text=f"hf:{folder}", max_tokens=9)
    image, text = (build_encoder(kind, config).eval() for kind in (Kind.RGB, Kind.TEXT))
    assert image.width == text.width == (6 if family == "clip" else 16)
    caption = [1, 7, 8, 9, 10, 11, 3]
    ids = torch.zeros(1, 12, dtype=torch.int64)  # the whole of SigLIP's fixed length; CLIP stops at its end marker
    ids[0, :7] = torch.tensor(caption)
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(settings[name])[:, None, None] for name in ("image_mean", "image_std"))
    with torch.no_grad():
        said = model.get_text_features(input_ids=ids)
        seen = model.get_image_features(pixel_values=(pixels - mean) / std)
        hidden = model.vision_model(pixel_values=(pixels - mean) / std).last_hidden_state
    torch.testing.assert_close(
        text(_ids([1, 3], caption))[1:2], getattr(said, "pooler_output", said), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(image(pixels), getattr(seen, "pooler_output", seen))
    slots, mask = image.slots(pixels)
    assert slots.shape == (2, 16, 16)  # CLIP's class token is no patch
    assert mask.all()
    torch.testing.assert_close(slots, hidden[:, -16:])


def test_frozen_models_give_no_gradient_and_do_not_drop(tmp_path: Path) -> None:
    folder = _save(_text("clip"), tmp_path / "clip")
    for net, x in (
        (HuggingFaceText(folder, frozen=True), _ids(*MANY)),
        (HuggingFaceImage(folder, frozen=True), torch.rand(2, 3, 32, 32)),
    ):
        net.train()
        assert not any(module.training for module in net.modules())
        for out in (net(x), net.slots(x)[0]):
            assert not out.requires_grad
    bert = HuggingFaceText(_save(_text("bert"), tmp_path / "bert"), frozen=False).train()
    assert any(module.training for module in bert.modules())
    bert(_ids(*MANY)).sum().backward()
    for name, parameter in bert.named_parameters():
        assert parameter.grad is not None, name


def test_texts_longer_than_the_positions(tmp_path: Path) -> None:
    for family in ("bert", "xlm-r", "clip", "siglip"):
        folder = _save(_text(family, places=8), tmp_path / family)
        net = HuggingFaceText(folder).eval()
        assert net.max_tokens == 8
        assert net(torch.randint(3, VOCABULARY, (2, 8))).isfinite().all()
        with pytest.raises(InputError, match="reads at most 8 tokens"):
            net(_ids(*MANY))
        with pytest.raises(InputError, match=r"max_tokens=64.*at most 8 tokens"):
            build_encoder(Kind.TEXT, EncoderConfig(text=f"hf:{folder}"))


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = _save(_text("bert"), tmp_path)
    with pytest.raises(InputError, match=r"the tokenizer has 260 tokens.*knows 40"):
        build_encoder(Kind.TEXT, EncoderConfig(text=f"hf:{folder}", tokenizer="bytes", max_tokens=8))
    with pytest.raises(InputError, match="knows 40"):
        HuggingFaceText(folder)(_ids([1, 40, 2]))
    assert build_encoder(Kind.TEXT, EncoderConfig(text=f"hf:{folder}", max_tokens=8)).width == 16


def test_what_reads_no_text_is_refused(tmp_path: Path) -> None:
    vit = tr.ViTModel(tr.ViTConfig(**VISION))
    vit.save_pretrained(tmp_path / "v")
    with pytest.raises(InputError, match="does not read text"):
        HuggingFaceText(str(tmp_path / "v"))
    with pytest.raises(InputError, match=r"no text model in .*config\.json is missing"):
        HuggingFaceText(str(tmp_path / "nothing"))


def test_slots_of_feature_maps_and_class_tokens(tmp_path: Path) -> None:
    resnet = tr.ResNetModel(tr.ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", embedding_size=8))
    resnet.save_pretrained(tmp_path / "r")
    net = HuggingFaceImage(str(tmp_path / "r")).eval()
    slots, mask = net.slots(torch.rand(2, 3, 64, 64))
    assert slots.shape[2] == net.slot_width == 16
    assert mask.shape == slots.shape[:2]
    tr.ViTModel(tr.ViTConfig(**VISION)).save_pretrained(tmp_path / "v")
    assert HuggingFaceImage(str(tmp_path / "v")).slots(torch.rand(2, 3, 32, 32))[0].shape == (2, 16, 16)
