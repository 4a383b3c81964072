"""Weather put on pictures while training, a whole batch at a time (:mod:`consilience.data.weather` has the physics)."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from consilience.data.weather import RENDER, WEATHERS
from consilience.views.keyed import KeyedRandom

WHICH, WHETHER = 880, 881  # slots of the draws


def weather_view(
    pictures: Float[Tensor, "b c h w"], random: KeyedRandom, share: float
) -> tuple[Float[Tensor, "b c h w"], Bool[Tensor, " b"]]:
    """``share`` of the pictures in [0, 1] (in expectation, drawn by sample) in haze, rain or snow, each equally likely,
    and which were changed."""
    changed = random.uniform(WHETHER, 0, 1)[:, 0] < share
    which = random.uniform(WHICH, 0, len(WEATHERS))[:, 0].long().clamp(max=len(WEATHERS) - 1)
    out = pictures
    for code, name in enumerate(WEATHERS):
        rows = (changed & (which == code)).nonzero().view(-1)
        if len(rows):
            drawn, _ = RENDER[name](pictures[rows], KeyedRandom(random.key, random.index[rows]))
            out = out.index_put((rows,), drawn.to(out.dtype))
    return out, changed
