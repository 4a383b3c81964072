"""What is believed of every training sample: a cluster for each modality, and how much the sample counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from consilience.errors import InputError


class PseudoLabels(nn.Module):
    """Labels int64 [V, N] and weights float32 [N], part of every checkpoint; ``given`` once they come from outside."""

    labels: Tensor
    weights: Tensor
    given: Tensor

    def __init__(self, modalities: Sequence[str], samples: int, clusters: int) -> None:
        super().__init__()
        self.modalities, self.clusters = list(modalities), clusters
        self.register_buffer("labels", torch.zeros(len(self.modalities), samples, dtype=torch.int64))
        self.register_buffer("weights", torch.ones(samples))
        self.register_buffer("given", torch.tensor(False))

    def believe(self, labels: Mapping[str, Tensor]) -> None:
        """Keep the given labels from now on; InputError when one is not in 0..K-1."""
        for position, name in enumerate(self.modalities):
            low, top = int(labels[name].min()), int(labels[name].max())
            if low < 0 or top >= self.clusters:
                wanted = f"0..{self.clusters - 1} (--method.clusters)"
                raise InputError(f"given labels of {name} reach from {low} to {top}; expected {wanted}")
            self.labels[position] = labels[name].to(self.labels.device)
        self.given.fill_(True)

    def renew(self, labels: Int64[Tensor, "v n"], agreed: Bool[Tensor, " n"], doubt: float) -> None:
        """New labels; samples on which the modalities disagree weigh ``doubt`` instead of 1."""
        self.labels.copy_(labels)
        self.weights.copy_(torch.where(agreed, 1.0, doubt))

    def groups(self, index: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """The label of each sample where all modalities have the same one, else -1."""
        chosen = self.labels[:, index]
        return torch.where((chosen == chosen[:1]).all(0), chosen[0], -1)

    def relative_weights(self, index: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Weights of the samples, scaled to mean 1 over the batch."""
        weights = self.weights[index]
        return weights / weights.mean().clamp(min=1e-6)

    def columns(self, probabilities: Mapping[str, Float[Tensor, "n k"]]) -> dict[str, np.ndarray]:
        """Columns for the Table: the weight, and for each modality the label in use, its probability under that
        modality's own prediction (``_confidence``), and that prediction's best cluster (``_own``)."""
        found = {"pseudo_weight": self.weights.cpu().numpy()}
        for labels, name in zip(self.labels, self.modalities, strict=True):
            own = probabilities[name]
            found[f"pseudo_{name}"] = labels.cpu().numpy()
            found[f"pseudo_{name}_own"] = own.argmax(1).cpu().numpy()
            found[f"pseudo_{name}_confidence"] = own.gather(1, labels[:, None])[:, 0].float().cpu().numpy()
        return found
