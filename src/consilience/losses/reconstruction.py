"""What was hidden against what was predicted: Chamfer distance of point sets, squared error of patches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def chamfer(predicted: Float[Tensor, "*n m 3"], true: Float[Tensor, "*n s 3"]) -> Float[Tensor, "*n"]:
    """Chamfer-l2 of point sets, one value a pair of sets, float32 or wider:

    (1/m) sum_x min_y |x - y|^2 + (1/s) sum_y min_x |x - y|^2.

    H. Fan, H. Su, L. Guibas, CVPR 2017, in the averaged and squared form of Point-MAE (Y. Pang et al., ECCV 2022). It
    does not depend on the order of the points. Nearest partners are found without gradient; the gradient flows through
    the differences to them, as it does through the minimum.
    """
    sets = predicted.shape[:-2]
    kind = torch.float64 if predicted.dtype == torch.float64 else torch.float32
    x, y = (each.to(kind).reshape(-1, *each.shape[-2:]) for each in (predicted, true))
    with torch.no_grad():
        gaps = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        of_x, of_y = gaps.argmin(2), gaps.argmin(1)
    own = torch.arange(x.shape[0], device=x.device)[:, None]
    forth = (x - y[own, of_x]).square().sum(2).mean(1)
    back = (x[own, of_y] - y).square().sum(2).mean(1)
    return (forth + back).view(sets)


def patch_error(predicted: Float[Tensor, "b h p"], true: Float[Tensor, "b h p"]) -> Float[Tensor, "b h"]:
    """Mean squared error of every patch over its values, float32 (MAE, equation in section 3)."""
    return (predicted.float() - true.float()).square().mean(2)
