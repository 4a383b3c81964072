"""From a configuration to an encoder for each kind of modality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from consilience.data.decode import DecodeConfig
from consilience.data.schema import Kind
from consilience.data.text import tokenizer
from consilience.encoders.base import Encoder
from consilience.encoders.hub import HuggingFaceText
from consilience.encoders.image import HuggingFaceImage, ResNet, SmallCNN
from consilience.encoders.mesh import MeshNet
from consilience.encoders.norm import synchronise
from consilience.encoders.points import DGCNN, PointNet, small_pointnet
from consilience.encoders.regions import LinearRegions
from consilience.encoders.text import BagOfWords, GRUText, TextTransformer
from consilience.encoders.vector import VectorMLP
from consilience.encoders.vit import SmallViT
from consilience.encoders.weights import load_dgcnn, load_meshnet, load_resnet, load_weights
from consilience.errors import InputError, unknown

RESNET_DEPTHS = {"resnet18": 18, "resnet50": 50, "resnet101": 101}


@dataclass(frozen=True)
class EncoderConfig:
    """Which encoder reads which kind, from which weights, at which input size."""

    image: str = "small"
    """Images: small (3 convolutions, 128 features), vit (small transformer, 128), resnet18 (512), resnet50 or
    resnet101 (2048), or hf:FOLDER_OR_ID for a vision model of transformers."""
    points: str = "small"
    """Point clouds: small (3-64-128-256, max pool), pointnet or dgcnn (RoMo's encoders)."""
    mesh: str = "meshnet"
    """Meshes: meshnet (256 features)."""
    text: str = "auto"
    """Texts: auto (words where tokens are whole words, else transformer), transformer (small, 128 features), gru
    (SGRAF's, ``embed`` features), words (mean of word vectors, 256), or hf:FOLDER_OR_ID for a text model of
    transformers."""
    region_encoder: str = "linear"
    """Region features: linear (SGRAF's, ``embed`` features)."""
    vector: str = "mlp"
    """Vectors: mlp (256 features)."""
    image_weights: str | None = None
    """File with the image encoder's weights (our names, torchvision's or transformers' for a ResNet)."""
    points_weights: str | None = None
    """File with the point encoder's weights (our names, or the public DGCNN's)."""
    mesh_weights: str | None = None
    """File with the mesh encoder's weights (our names, or the public MeshNet's)."""
    points_width: int = 1024
    """Features of pointnet and dgcnn; RoMo: 1024 in stage 1, 256 in stage 2."""
    neighbours: int = 20
    """Neighbours in dgcnn, the point itself included; RoMo: 20 in stage 1, 40 in stage 2."""
    embed: int = 1024
    """Features of gru and of linear regions; SGRAF: 1024."""
    text_layers: int = 2
    """Layers of the small text transformer."""
    patch: int = 7
    """Side of the patches of vit in pixels; it divides image_size."""
    frozen: bool = False
    """Leave the weights of hf:... models as they are."""
    image_size: int = 28
    """Side of the images in pixels; RoMo: 224."""
    n_points: int = 128
    """Points drawn from a cloud; RoMo: 1024."""
    n_faces: int = 500
    """Faces of a mesh; MeshNet: 500."""
    tokenizer: str = ""
    """How texts become token ids: bytes, words:FILE, ids:FILE, bpe:FILE, hf:FOLDER_OR_ID. Empty: as the Table says;
    else the tokenizer of an hf:... text encoder; else bytes."""
    max_tokens: int = 0
    """Tokens kept of a text. 0: as the Table says, else 64."""
    regions: int = 0
    """Regions of an image. 0: as the Table says, else 36."""
    region_width: int = 0
    """Features of a region. 0: as the Table says, else 2048."""
    vector_width: int = 0
    """Length of a vector. 0: as the Table says, else 128."""

    @property
    def decode(self) -> DecodeConfig:
        """The sizes samples are decoded to; what is still open takes the defaults of :class:`DecodeConfig`."""
        plain = DecodeConfig()
        own = self.text if self.text.startswith("hf:") else plain.tokenizer
        return DecodeConfig(
            image_size=self.image_size,
            n_points=self.n_points,
            n_faces=self.n_faces,
            tokenizer=self.tokenizer or own,
            max_tokens=self.max_tokens or plain.max_tokens,
            regions=self.regions or plain.regions,
            region_width=self.region_width or plain.region_width,
            vector_width=self.vector_width or plain.vector_width,
        )


def _image(kind: Kind, config: EncoderConfig) -> Encoder:
    name, weights = config.image, config.image_weights
    if name.startswith("hf:"):
        if weights is not None:
            raise InputError("image_weights does not go with hf:...; the folder brings its own weights")
        return HuggingFaceImage(name.removeprefix("hf:"), config.frozen)
    if name in ("small", "vit"):
        channels = 1 if kind is Kind.GREY else 3
        small = SmallCNN(channels) if name == "small" else SmallViT(channels, config.image_size, config.patch)
        if weights is not None:
            load_weights(small, weights)
        return small
    if name not in RESNET_DEPTHS:
        raise unknown("image encoder", name, ["small", "vit", *RESNET_DEPTHS, "hf:FOLDER_OR_ID"])
    resnet = ResNet(RESNET_DEPTHS[name])
    if weights is not None:
        load_resnet(resnet, weights)
    return resnet


def _points(config: EncoderConfig) -> Encoder:
    name, weights = config.points, config.points_weights
    if name == "dgcnn":
        if config.neighbours > config.n_points:
            raise InputError(
                f"neighbours={config.neighbours} exceeds n_points={config.n_points}; lower one or raise the other"
            )
        dgcnn = DGCNN(config.points_width, config.neighbours)
        if weights is not None:
            load_dgcnn(dgcnn, weights)
        return dgcnn
    if name not in ("small", "pointnet"):
        raise unknown("point encoder", name, ["small", "pointnet", "dgcnn"])
    pointnet = small_pointnet() if name == "small" else PointNet(config.points_width)
    if weights is not None:
        load_weights(pointnet, weights)
    return pointnet


def _mesh(config: EncoderConfig) -> Encoder:
    if config.mesh != "meshnet":
        raise unknown("mesh encoder", config.mesh, ["meshnet"])
    meshnet = MeshNet()
    if config.mesh_weights is not None:
        load_meshnet(meshnet, config.mesh_weights)
    return meshnet


def _text(config: EncoderConfig) -> Encoder:
    name, sizes = config.text, config.decode
    if name == "auto":  # small data know words sooner than they learn them from letters
        name = "words" if sizes.tokenizer.startswith("words:") else "transformer"
    if not name.startswith("hf:") and name not in ("transformer", "gru", "words"):
        raise unknown("text encoder", name, ["auto", "transformer", "gru", "words", "hf:FOLDER_OR_ID"])
    vocabulary = tokenizer(sizes.tokenizer).size
    if name == "gru":
        return GRUText(vocabulary, config.embed)
    if name == "words":
        return BagOfWords(vocabulary)
    if name == "transformer":
        return TextTransformer(vocabulary, sizes.max_tokens, layers=config.text_layers)
    model = HuggingFaceText(name.removeprefix("hf:"), config.frozen)
    model.check(vocabulary, sizes.max_tokens)
    return model


def _regions(config: EncoderConfig) -> Encoder:
    if config.region_encoder != "linear":
        raise unknown("region encoder", config.region_encoder, ["linear"])
    return LinearRegions(config.decode.region_width, config.embed)


def _vector(config: EncoderConfig) -> Encoder:
    if config.vector != "mlp":
        raise unknown("vector encoder", config.vector, ["mlp"])
    return VectorMLP(config.decode.vector_width)


def build_encoder(kind: Kind, config: EncoderConfig) -> Encoder:
    """A new encoder for ``kind`` with batch norms over all ranks; raises ``InputError`` on an unknown name.

    Random weights come from torch's global generator unless ``config`` names a file.
    """
    if kind.is_image:
        encoder = _image(kind, config)
    else:
        builders: dict[Kind, Callable[[EncoderConfig], Encoder]] = {
            Kind.POINTS: _points,
            Kind.MESH: _mesh,
            Kind.TEXT: _text,
            Kind.REGIONS: _regions,
            Kind.VECTOR: _vector,
        }
        encoder = builders[kind](config)
    synchronise(encoder)
    return encoder
