"""From a configuration to an encoder for each kind of modality."""

from __future__ import annotations

from dataclasses import dataclass

from consilience.data.decode import DecodeConfig
from consilience.data.schema import Kind
from consilience.encoders.base import Encoder
from consilience.encoders.image import HuggingFaceImage, ResNet, SmallCNN
from consilience.encoders.mesh import MeshNet
from consilience.encoders.norm import synchronise
from consilience.encoders.points import DGCNN, PointNet, small_pointnet
from consilience.encoders.weights import load_dgcnn, load_meshnet, load_resnet, load_weights
from consilience.errors import InputError, unknown

RESNET_DEPTHS = {"resnet18": 18, "resnet50": 50, "resnet101": 101}


@dataclass(frozen=True)
class EncoderConfig:
    """Which encoder reads which kind, from which weights, at which input size."""

    image: str = "small"
    """Images: small (3 convolutions, 128 features), resnet18 (512), resnet50 or resnet101 (2048), or
    hf:FOLDER_OR_ID for a vision model of transformers."""
    points: str = "small"
    """Point clouds: small (3-64-128-256, max pool), pointnet or dgcnn (RoMo's encoders)."""
    mesh: str = "meshnet"
    """Meshes: meshnet (256 features)."""
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
    image_size: int = 28
    """Side of the images in pixels; RoMo: 224."""
    n_points: int = 128
    """Points drawn from a cloud; RoMo: 1024."""
    n_faces: int = 500
    """Faces of a mesh; MeshNet: 500."""

    @property
    def decode(self) -> DecodeConfig:
        """The sizes samples are decoded to."""
        return DecodeConfig(image_size=self.image_size, n_points=self.n_points, n_faces=self.n_faces)


def _image(kind: Kind, config: EncoderConfig) -> Encoder:
    name, weights = config.image, config.image_weights
    if name.startswith("hf:"):
        if weights is not None:
            raise InputError("image_weights does not go with hf:...; the folder brings its own weights")
        return HuggingFaceImage(name.removeprefix("hf:"))
    if name == "small":
        small = SmallCNN(1 if kind is Kind.GREY else 3)
        if weights is not None:
            load_weights(small, weights)
        return small
    if name not in RESNET_DEPTHS:
        raise unknown("image encoder", name, ["small", *RESNET_DEPTHS, "hf:FOLDER_OR_ID"])
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


def build_encoder(kind: Kind, config: EncoderConfig) -> Encoder:
    """A new encoder for ``kind`` with batch norms over all ranks; raises ``InputError`` on an unknown name.

    Random weights come from torch's global generator unless ``config`` names a file.
    """
    if kind.is_image:
        encoder = _image(kind, config)
    elif kind is Kind.POINTS:
        encoder = _points(config)
    else:
        encoder = _mesh(config)
    synchronise(encoder)
    return encoder
