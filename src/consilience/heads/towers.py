"""Towers: an encoder and a projection for each modality, into one common space."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from consilience.data.schema import Batch, Kind, Modalities
from consilience.distributed import gather_rows
from consilience.encoders.build import EncoderConfig, build_encoder
from consilience.heads.projection import projection
from consilience.views.geometry import ViewConfig, plain, view


class Towers(nn.ModuleDict):
    """Modality name to the module that maps its tensors to vectors float [b, width].

    DGCNN and PointNet end in their own projection and are built at ``width``; every other encoder is followed by
    linear + batch norm (+ ReLU for images when ``rectified``). ``neighbours`` is DGCNN's k.
    """

    def __init__(
        self, config: EncoderConfig, modalities: Modalities, width: int, neighbours: int, rectified: bool
    ) -> None:
        super().__init__()
        self.kinds = dict(modalities)
        sizes = replace(config, points_width=width, neighbours=neighbours)
        for name, kind in modalities.items():
            encoder = build_encoder(kind, sizes)
            if kind is Kind.POINTS and sizes.points != "small":
                self[name] = encoder
            else:
                after = projection(encoder.width, width, rectified=rectified and kind.is_image)
                self[name] = nn.Sequential(encoder, after)

    def plain(self, batch: Batch, modality: str) -> Float[Tensor, "b d"]:
        """Vectors of one modality of this process's rows, without augmentation."""
        vectors: Tensor = self[modality](plain(batch.values[modality], self.kinds[modality]))
        return vectors

    def moved(
        self, batch: Batch, key: tuple[int, ...], views: ViewConfig
    ) -> tuple[list[Float[Tensor, "n d"]], list[Bool[Tensor, " n"]]]:
        """Vectors of one random view of every modality, gathered over all processes, and presence masks.

        Rows whose modality is absent are not encoded (they would disturb the batch norm) and hold zeros.
        """
        vectors, present = [], []
        for position, (name, kind) in enumerate(self.kinds.items()):
            seen = batch.present[name]
            x = view(batch.values[name][seen], kind, batch.index[seen], (*key, position), views)
            z = self[name](x)
            if not bool(seen.all()):
                z = torch.zeros(len(batch), z.shape[1], dtype=z.dtype, device=z.device).index_put((seen,), z)
            vectors.append(gather_rows(z))
            present.append(gather_rows(seen))
        return vectors, present
