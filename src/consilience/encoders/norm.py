"""Batch normalisation whose moments cover the batch of all processes.

``torch.nn.SyncBatchNorm`` does the same but refuses CPU tensors. These classes are ``nn.BatchNorm1d`` and
``nn.BatchNorm2d`` (same parameters, same state-dict keys); with one process they run torch's own kernel, with
several they join count-weighted moments, so ranks may hold batches of different sizes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from consilience.distributed import sum_over_ranks, world_size
from consilience.errors import InputError


def _join(mean: Tensor, squares: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of all ranks from each rank's mean, sum of squared deviations and count (Chan et al., 1979)."""
    total = sum_over_ranks(torch.tensor([float(count)], dtype=mean.dtype, device=mean.device))
    joint = sum_over_ranks(mean * count) / total
    deviation = squares + count * (mean - joint).square()
    return joint, sum_over_ranks(deviation) / total, total


class _OverRanks(nn.modules.batchnorm._BatchNorm):
    """The part that both dimensions share."""

    @property
    def uses_batch(self) -> bool:
        """Whether the next forward pass normalises by the moments of its batch."""
        return self.training or self.running_mean is None

    def settle(
        self, mean: Float[Tensor, " c"], squares: Float[Tensor, " c"], count: int
    ) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Mean and biased variance over all ranks; updates the running moments in training.

        ``mean``, ``squares`` (sum of squared deviations from that mean) and ``count`` (values a channel)
        describe this rank. The running variance takes the unbiased estimate, as torch does.
        Raises :class:`InputError` when all ranks together hold fewer than two values a channel.
        """
        total: Tensor | float = float(count)
        if world_size() > 1:
            mean, variance, joined = _join(mean, squares, count)
            total = joined
        else:
            variance = squares / max(count, 1)
        if float(total) < 2:
            raise InputError("batch normalisation needs two or more values a channel; use a larger batch")
        if self.training and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                weight = self._weight_of_batch()
                unbiased = variance * (total / (total - 1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)
        return mean, variance

    def _weight_of_batch(self) -> float:
        """Share of this batch in the running moments; ``momentum=None`` means the plain average."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return 0.0 if self.momentum is None else self.momentum

    def forward(self, input: Tensor) -> Tensor:
        """Normalised ``input`` ([N, C] or [N, C, ...]), same shape and dtype; moments in float32 or wider."""
        if world_size() == 1 or not self.uses_batch:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        x = input if input.dtype == torch.float64 else input.float()
        over = [d for d in range(x.dim()) if d != 1]
        count = x.numel() // x.shape[1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        local = x.sum(over) / max(count, 1)
        squares = (x - local.view(shape)).square().sum(over)
        mean, variance = self.settle(local, squares, count)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        out = (x - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            out = out + self.bias.view(shape)
        return out.to(input.dtype)


class BatchNorm1d(_OverRanks, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` over all ranks; input float [N, C] or [N, C, L]."""


class BatchNorm2d(_OverRanks, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over all ranks; input float [N, C, H, W]."""


def _over_ranks(module: nn.Module) -> nn.Module:
    if isinstance(module, _OverRanks) or not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return module
    kind = BatchNorm1d if isinstance(module, nn.BatchNorm1d) else BatchNorm2d
    new = kind(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
    new.weight, new.bias = module.weight, module.bias
    new.running_mean, new.running_var = module.running_mean, module.running_var
    new.num_batches_tracked = module.num_batches_tracked
    new.training = module.training
    return new


def synchronise(module: nn.Module) -> nn.Module:
    """``module`` with every ``nn.BatchNorm1d`` and ``nn.BatchNorm2d`` replaced by the classes above.

    Works in place for children and shares parameters and running moments; a module that is itself a batch
    norm is returned anew. A norm that appears at two places stays one module.
    """
    seen: dict[int, nn.Module] = {}

    def new(child: nn.Module) -> nn.Module:
        return seen.setdefault(id(child), _over_ranks(child))

    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and new(child) is not child:
                setattr(parent, name, new(child))
    return new(module)
