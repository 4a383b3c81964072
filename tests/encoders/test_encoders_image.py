"""Image encoders: shapes, normalisation, and models of transformers from folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers as tr

from consilience.encoders.image import HuggingFaceImage, ResNet, SmallCNN, resnet18
from consilience.errors import InputError

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def _folder(path: Path, model: tr.PreTrainedModel, mean: list[float] | None = None) -> str:
    model.save_pretrained(path)
    if mean:
        settings = {"image_mean": mean, "image_std": [0.5, 0.25, 0.5], "size": {"height": 48, "width": 48}}
        (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(path)


def test_small_cnn() -> None:
    torch.manual_seed(0)
    net = SmallCNN(1).eval()
    for side in (28, 64):
        assert net(torch.rand(2, 1, side, side)).shape == (2, net.width)
    x = torch.zeros(1, 1, 32, 32)
    x[0, 0, 3:9, 3:9] = 1
    assert not torch.allclose(net(x), net(x.flip(3)))  # the place of a pattern is kept
    with pytest.raises(InputError, match="3 channels"):
        net(torch.rand(2, 3, 28, 28))


def test_resnet18_has_the_size_of_resnet18() -> None:
    net = resnet18()
    assert sum(p.numel() for p in net.parameters()) == 11_176_512  # torchvision's 11,689,512 less fc's 513,000
    assert net.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 512)
    grey = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(net(grey), net(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(InputError, match="ResNet depth"):
        ResNet(19)


def test_resnet50() -> None:
    net = ResNet(50).eval()
    assert sum(p.numel() for p in net.parameters()) == 23_508_032
    assert net(torch.rand(1, 3, 32, 32)).shape == (1, 2048)


def test_vit_from_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tr.ViTModel(tr.ViTConfig(**TINY, image_size=32, patch_size=8)).eval()
    encoder = HuggingFaceImage(_folder(tmp_path, model, [0.1, 0.2, 0.3])).eval()
    assert encoder.width == 16
    assert encoder.image_size == (32, 32)
    x = torch.rand(2, 3, 32, 32)
    pixels = (x - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.25, 0.5])[:, None, None]
    torch.testing.assert_close(encoder(x), model(pixels).pooler_output)
    large = torch.rand(2, 1, 50, 50)
    small = F.interpolate(large, (32, 32), mode="bilinear", antialias=True).clamp(0, 1)
    torch.testing.assert_close(encoder(large), encoder(small))


def test_untrained_pooler_is_not_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tr.ViTModel(tr.ViTConfig(**TINY, image_size=32, patch_size=8), add_pooling_layer=False).eval()
    encoder = HuggingFaceImage(_folder(tmp_path, model)).eval()
    x = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (x - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(encoder(x), model(pixels).last_hidden_state[:, 0])
    assert not any("pooler" in name for name, _ in encoder.named_parameters())


def test_resnet_and_convnext_from_a_folder(tmp_path: Path) -> None:
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1]}
    resnet = tr.ResNetModel(tr.ResNetConfig(**sizes, layer_type="basic", embedding_size=8))
    encoder = HuggingFaceImage(_folder(tmp_path / "r", resnet, [0.5, 0.5, 0.5])).eval()
    assert encoder.width == 16
    assert encoder.image_size == (48, 48)  # from the preprocessor, the model has none
    assert encoder(torch.rand(2, 3, 60, 60)).shape == (2, 16)
    convnext = tr.ConvNextModel(tr.ConvNextConfig(**sizes, num_stages=2))
    assert HuggingFaceImage(_folder(tmp_path / "c", convnext)).width == 16


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_two_towers_give_the_image_embedding(tmp_path: Path, family: str) -> None:
    torch.manual_seed(0)
    vision = {**TINY, "image_size": 32, "patch_size": 8}
    text = {**TINY, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    extra = {"projection_dim": 12} if family == "CLIP" else {}
    config = getattr(tr, f"{family}Config")(vision_config=vision, text_config=text, **extra)
    model = getattr(tr, f"{family}Model")(config).eval()
    encoder = HuggingFaceImage(_folder(tmp_path, model, [0.5, 0.5, 0.5])).eval()
    assert encoder.width == (12 if family == "CLIP" else 16)
    x = torch.rand(2, 3, 32, 32)
    out = model.get_image_features(pixel_values=(x - 0.5) / torch.tensor([0.5, 0.25, 0.5])[:, None, None])
    torch.testing.assert_close(encoder(x), getattr(out, "pooler_output", out))
    assert not any("text" in name or "logit" in name for name, _ in encoder.named_parameters())


def test_dinov2_and_masked_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = {k: v for k, v in TINY.items() if k != "intermediate_size"}
    dino = tr.Dinov2Model(tr.Dinov2Config(**tiny, image_size=28, patch_size=14))
    encoder = HuggingFaceImage(_folder(tmp_path / "d", dino)).eval()
    assert encoder.width == 16
    mae = tr.ViTMAEModel(tr.ViTMAEConfig(**TINY, image_size=32, patch_size=8))
    encoder = HuggingFaceImage(_folder(tmp_path / "m", mae)).eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(encoder(x), encoder(x))  # no patch is dropped


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"config\.json is missing"):
        HuggingFaceImage(str(tmp_path / "nothing"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="hf download"):
        HuggingFaceImage("nobody-at-all/no-such-model")


def test_text_models_and_incomplete_weights_are_refused(tmp_path: Path) -> None:
    bert = tr.BertModel(tr.BertConfig(**TINY, vocab_size=50))
    with pytest.raises(InputError, match="does not read images"):
        HuggingFaceImage(_folder(tmp_path / "t", bert))
    small = tr.ViTModel(tr.ViTConfig(**TINY, image_size=32, patch_size=8))
    folder = Path(_folder(tmp_path / "v", small))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(InputError, match="lack"):
        HuggingFaceImage(str(folder))
