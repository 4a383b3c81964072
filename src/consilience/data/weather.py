"""Haze, rain and snow on any picture, from physical parameters, and data sets in which some pictures have weather.

Haze follows the model of scattering: what reaches the camera from depth d is I e^(-beta d) + A (1 - e^(-beta d)).
Ranges of parameters and the order of rain's steps are those of the first author's renderer for multi-queue MoCo (GitHub
tianhangpan/RenderWeather, described in docs/multi-queue-moco.md), with these differences. Depth is that of a plane seen
from above, farthest at the upper edge, instead of a depth network's. Lengths are in pixels of a picture with a shorter
side of 768 and scale with the picture. Of rain's noise what lies above its mean is added: the sum as described turns
pictures white (mean 0.42 times a strength of 2.6). Snow is ours. Everything is drawn from a source of numbers that
belong to a sample, so the same seed gives the same picture, and the drawn parameters can be kept.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from consilience.data.pictures import decode_whole, image_channels
from consilience.data.reading import Bad, Reading, png_bytes
from consilience.data.table import Row
from consilience.errors import InputError, unknown

NORMAL = "normal"
WEATHERS = ("haze", "rain", "snow")
"""What can be rendered."""
_REFERENCE = 768.0
_NEAR = 0.2
_LAYERS = ((2.0, 500), (4.0, 150), (8.0, 45))
"""Snow: radius of the flakes in pixels at the reference size, and how many there are at most."""
_STREAK = 62.5  # pixels: the published length of a streak of rain
HAZE, RAIN, SNOW = (900 + 20 * i for i in range(3))  # slots of the draws
Parameters = dict[str, Tensor]
"""Name to float [b]: what was drawn."""


class Draws(Protocol):
    """A source of random numbers that belong to samples; another ``slot`` gives independent ones."""

    def uniform(self, slot: int, low: float, high: float, size: int = 1) -> Tensor:
        """float32 [b, size] in [low, high)."""

    def normal(self, slot: int, size: int = 1) -> Tensor:
        """Standard normal float32 [b, size]."""


def haze(
    pictures: Float[Tensor, "b c h w"], draws: Draws, depth: Float[Tensor, "b 1 h w"] | None = None
) -> tuple[Float[Tensor, "b c h w"], Parameters]:
    """Pictures in [0, 1] through haze of thickness beta in U(2.6, 4.6) and grey light U(0.3, 0.9). ``depth`` in [0, 1],
    by default :func:`depth_ramp`."""
    beta, light = draws.uniform(HAZE, 2.6, 4.6)[:, 0], draws.uniform(HAZE + 1, 0.3, 0.9)[:, 0]
    depth = depth_ramp(*pictures.shape[2:]).to(pictures) if depth is None else depth
    return scatter(pictures, depth, beta, light), {"beta": beta, "airlight": light}


def scatter(
    pictures: Float[Tensor, "b c h w"],
    depth: Float[Tensor, "#b 1 h w"],
    beta: Float[Tensor, " b"],
    airlight: Float[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """I t + A (1 - t) with t = e^(-beta depth)."""
    through = torch.exp(-beta[:, None, None, None] * depth)
    return pictures * through + airlight[:, None, None, None] * (1 - through)


def depth_ramp(height: int, width: int, near: float = _NEAR) -> Float[Tensor, "1 1 {height} {width}"]:
    """Depth of a plane seen from above, 1 at the upper edge and ``near`` at the lower one; its inverse is linear."""
    down = torch.linspace(0, 1, height).view(1, 1, height, 1).expand(1, 1, height, width)
    return 1 / (1 + down * (1 / near - 1))


def rain(pictures: Float[Tensor, "b c h w"], draws: Draws) -> tuple[Float[Tensor, "b c h w"], Parameters]:
    """Darker pictures (squared) in [0, 1] with streaks: noise, blurred along lines of 60 to 65 pixels that lean by
    N(0, 22.5) degrees from the vertical, lower ends to the right."""
    height, width = pictures.shape[2:]
    unit = min(height, width) / _REFERENCE
    mean = 0.15 * draws.uniform(RAIN, 0.2, 0.25)[:, 0]
    spread = 1.2 + draws.uniform(RAIN + 1, 0.0, 0.1)[:, 0]
    zoom = draws.uniform(RAIN + 2, 1.01, 1.21)[:, 0]
    length = draws.uniform(RAIN + 3, 60.0, 65.0)[:, 0]
    lean = (22.5 * draws.normal(RAIN + 4)[:, 0]).clamp(-90, 90)
    strength = draws.uniform(RAIN + 5, 0.0, 0.05)[:, 0] + 0.04 * length + 0.2
    most = max(2, math.ceil(65 * unit))
    canvas = math.ceil(math.hypot(height, width)) + 2
    drops = draws.normal(RAIN + 6, canvas * (canvas + most)).view(-1, canvas + most, canvas).to(pictures.device)
    drops = (mean[:, None, None] + spread[:, None, None] * drops).clamp(0, 1)
    run = (length * unit).round().clamp(2, most).long()
    sums = F.pad(drops.cumsum(1), (0, 0, 1, 0))
    ends = (torch.arange(canvas, device=pictures.device) + run[:, None])[:, :, None].expand(-1, -1, canvas)
    streaks = (sums.gather(1, ends) - sums[:, :canvas]) / run[:, None, None]
    # a shorter streak averages less noise; their contrast is kept that of the published length
    above = (streaks - streaks.mean((1, 2), keepdim=True)) * (run / _STREAK).sqrt()[:, None, None]
    angle = lean * math.pi / 180
    cos, sin = angle.cos() / (canvas * zoom), angle.sin() / (canvas * zoom)
    none = torch.zeros_like(cos)
    turn = torch.stack([torch.stack([width * cos, -height * sin, none], 1),
                        torch.stack([width * sin, height * cos, none], 1)], 1)  # fmt: skip
    grid = F.affine_grid(turn, [len(pictures), 1, height, width], align_corners=False)
    shown = F.grid_sample(above[:, None], grid, padding_mode="border", align_corners=False)
    out = pictures.square() + strength[:, None, None, None] * shown.clamp_min(0)
    found = {"noise_mean": mean, "noise_spread": spread, "zoom": zoom, "length": length, "lean": lean}
    return out.clamp(0, 1), found | {"strength": strength}


def snow(pictures: Float[Tensor, "b c h w"], draws: Draws) -> tuple[Float[Tensor, "b c h w"], Parameters]:
    """Pictures in [0, 1] behind a white veil of 0.1 and flakes of three sizes that fall, each blurred a little along
    its way: U(0.5, 1) of 500 small, 150 middle and 45 large ones."""
    height, width = pictures.shape[2:]
    unit = min(height, width) / _REFERENCE
    share = draws.uniform(SNOW, 0.5, 1.0)
    lean = 20.0 * draws.normal(SNOW + 1)[:, 0]
    way = torch.stack([torch.sin(lean * math.pi / 180), torch.cos(lean * math.pi / 180)], 1)
    y = torch.arange(height, device=pictures.device) + 0.5
    x = torch.arange(width, device=pictures.device) + 0.5
    flakes = torch.zeros(len(pictures), height, width, device=pictures.device)
    for number, (radius, most) in enumerate(_LAYERS):
        slot = SNOW + 2 + 4 * number
        centre = draws.uniform(slot, 0.0, 1.0, 2 * most).view(-1, most, 2).to(pictures.device)
        centre = centre * torch.tensor([width, height], device=pictures.device)
        wide = radius * unit * draws.uniform(slot + 1, 0.7, 1.3, most).to(pictures.device) / 1.5
        there = torch.arange(most, device=pictures.device) < share.to(pictures.device) * most
        # below half a pixel a flake grows fainter instead of smaller
        bright = draws.uniform(slot + 2, 0.5, 0.9, most).to(pictures.device) * (wide / 0.5).clamp(max=1) ** 2 * there
        wide = wide.clamp_min(0.5)
        for step in (-1.0, 0.0, 1.0):
            at = centre + step * way.to(pictures.device)[:, None] * wide[:, :, None]
            across = torch.exp(-0.5 * ((x - at[:, :, :1]) / wide[:, :, None]) ** 2)
            down = torch.exp(-0.5 * ((y - at[:, :, 1:]) / wide[:, :, None]) ** 2) * (0.5 * bright)[:, :, None]
            flakes = flakes + torch.bmm(down.transpose(1, 2), across)
    veiled = 0.9 * pictures + 0.1
    return 1 - (1 - veiled) * (1 - flakes.clamp(max=0.95))[:, None], {"share": share[:, 0], "lean": lean}


RENDER = {"haze": haze, "rain": rain, "snow": snow}
"""Weather to what renders it."""


@dataclass(frozen=True)
class NamedDraws:
    """Random numbers of samples that have names: a hash of (seed, name, slot)."""

    seed: int
    names: Sequence[str]

    def uniform(self, slot: int, low: float, high: float, size: int = 1) -> Tensor:
        """float32 [b, size] in [low, high)."""
        return torch.stack([torch.from_numpy(g.uniform(low, high, size)).float() for g in self._generators(slot)])

    def normal(self, slot: int, size: int = 1) -> Tensor:
        """Standard normal float32 [b, size]."""
        drawn = (g.standard_normal(size, dtype=np.float32) for g in self._generators(slot))
        return torch.stack([torch.from_numpy(values) for values in drawn])

    def _generators(self, slot: int) -> Iterator[np.random.Generator]:
        for name in self.names:
            digest = hashlib.blake2b(f"{self.seed}\x1f{slot}\x1f{name}".encode(), digest_size=16).digest()
            yield np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))


def rendered(data: bytes, weather: str, name: str, seed: int) -> tuple[bytes, dict[str, float]]:
    """A picture's file in ``weather`` as a PNG of its own size (grey stays grey), and what was drawn for the sample
    ``name``. InputError for a file that is no picture, and weather that is none."""
    if weather not in RENDER:
        raise unknown("weather", weather, WEATHERS)
    pixels = decode_whole(data)
    pixels = pixels[:, :, :1] if image_channels(data) == 1 else pixels
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    out, drawn = RENDER[weather](picture, NamedDraws(seed, [name]))
    shown = (out[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return png_bytes(shown[:, :, 0] if shown.shape[2] == 1 else shown), {k: float(v[0]) for k, v in drawn.items()}


def with_weather(reading: Reading, shares: Mapping[str, float], seed: int = 0) -> Reading:
    """The same rows, some of them in weather; columns ``weather`` and ``weather_parameters`` (JSON) say which.

    ``shares``: weather to its share of the rows; each row of every split but ``test`` draws its own by (seed, id). Rows
    of split ``test`` come once without and once in every weather of ``shares``, so that figures by weather are of the
    same pictures (ids ``NAME#WEATHER``); the column ``group`` has one number a picture. Rows that the source says have
    weather stay as they are. InputError for unknown weather, shares above 1 in sum, and sources without exactly one
    picture modality.
    """
    for name, share in shares.items():
        if name not in RENDER:
            raise unknown("weather", name, WEATHERS)
        if not 0 <= share <= 1:
            raise InputError(f"weather {name}={share}: expected a share from 0 to 1")
    if sum(shares.values()) > 1:
        raise InputError(f"the shares of weather sum to {sum(shares.values()):g}; expected at most 1")
    pictures = [name for name, kind in reading.kinds.items() if kind is None or kind.is_image]
    if len(pictures) != 1:
        raise InputError(f"{reading.source} has {len(pictures)} picture modalities; weather needs one")
    modality = pictures[0]
    kinds = dict(reading.scalars) | {"weather": pa.string(), "weather_parameters": pa.string(), "group": pa.int64()}

    def rows() -> Iterator[Row | Bad]:
        for number, row in enumerate(reading.rows):
            if isinstance(row, Bad):
                yield row
                continue
            data = row.values.get(modality)
            known = row.scalars.get("weather", NORMAL)
            if data is None or known != NORMAL:
                chosen: tuple[str, ...] = (known,)
            elif row.split == "test":
                chosen = (NORMAL, *shares)
            else:
                chosen = (_drawn(shares, row.id, seed),)
            for weather in chosen:
                yield _changed(row, modality, weather, len(chosen) > 1, number, seed)

    words = ", ".join(f"{name} {share:g}" for name, share in shares.items())
    return replace(reading, source=f"{reading.source} with {words} (seed {seed})", rows=rows(), scalars=kinds)


def _drawn(shares: Mapping[str, float], name: str, seed: int) -> str:
    place = float(NamedDraws(seed, [name]).uniform(0, 0.0, 1.0))
    for weather, share in shares.items():
        if place < share:
            return weather
        place -= share
    return NORMAL


def _changed(row: Row, modality: str, weather: str, several: bool, number: int, seed: int) -> Row | Bad:
    scalars: dict[str, Any] = dict(row.scalars) | {"weather": weather, "weather_parameters": None}
    scalars["group"] = row.scalars.get("group", number)
    name = f"{row.id}#{weather}" if several and weather != NORMAL else row.id
    data = row.values.get(modality)
    if weather == NORMAL or data is None or row.scalars.get("weather", NORMAL) != NORMAL:
        return replace(row, id=name, scalars=scalars)
    try:
        picture, drawn = rendered(data, weather, row.id, seed)
    except InputError as error:
        return Bad(name, modality, row.origins.get(modality, ""), str(error))
    scalars["weather_parameters"] = json.dumps({"weather": weather, "seed": seed, **drawn})
    return replace(row, id=name, values=dict(row.values) | {modality: picture}, scalars=scalars)
