"""Speed of batched views of pictures against the usual pipeline of one picture at a time, in one run.

Both sides make the views of momentum contrast (MoCo v2) of the same pictures in memory, 64 x 64 pixels: random resized
crop, mirror, brightness, contrast, saturation and hue, grey, blur. Ours draws for a whole batch of tensors; the other
side is what training programs commonly run in their loaders: Pillow operations for each picture with numbers from
torch's generator, the colour operations in random order, then a float tensor. Seconds are those of the processor, so
that other work on the machine does not count; repeats are interleaved.
"""

from __future__ import annotations

import math
import time
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from consilience.errors import ConsilienceError, InputError
from consilience.training.allocator import keep_freed_memory
from consilience.views.keyed import KeyedRandom
from consilience.views.pictures import PictureViewConfig, picture_view

SIDE = 64
PICTURES = 256
TWISTS = (
    ("brightness", ImageEnhance.Brightness),
    ("contrast", ImageEnhance.Contrast),
    ("saturation", ImageEnhance.Color),
)


def run(*, repeats: int = 5, threads: int = 1, seed: int = 0) -> dict[str, Any]:
    """Measure and return ``{"ratios", "views_per_second", "note"}``; entries hold median, min and max over repeats.

    ``ratios``: the other side's seconds over ours, in colour and in grey (higher = ours is faster). ``threads`` of
    torch for ours; Pillow's pipeline is one process, as one worker of a loader is. Freed memory is kept, as the
    training loop does. InputError for fewer than one of either.
    """
    if repeats < 1 or threads < 1:
        raise InputError(f"repeats is {repeats}, threads {threads}: expected at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        sides = {kind: _measure(channels, repeats, seed) for kind, channels in (("rgb", 3), ("grey", 1))}
    finally:
        torch.set_num_threads(before)
    return {
        "ratios": {
            kind: _spread([a / b for a, b in zip(took["pillow"], took["ours"], strict=True)])
            for kind, took in sides.items()
        },
        "views_per_second": {
            f"{name}_{kind}": _spread([PICTURES / seconds for seconds in values])
            for kind, took in sides.items()
            for name, values in took.items()
        },
        "note": (
            f"{PICTURES} pictures of {SIDE} pixels, views of MoCo v2 as float tensors, {threads} torch thread(s) "
            f"against one Pillow process, {repeats} interleaved repeats, seed {seed}."
        ),
    }


def _measure(channels: int, repeats: int, seed: int) -> dict[str, list[float]]:
    """Seconds of both sides for all pictures, a repeat at a time."""
    config = PictureViewConfig()
    pixels = np.random.default_rng(seed).integers(0, 256, (PICTURES, SIDE, SIDE, channels), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    singles = [Image.fromarray(picture if channels == 3 else picture[:, :, 0]) for picture in pixels]
    took: dict[str, list[float]] = {"ours": [], "pillow": []}
    for repeat in range(-1, repeats):  # the first round loads code
        start = time.process_time()
        ours = batched(tensor, config, seed + repeat)
        middle = time.process_time()
        torch.manual_seed(seed + repeat)
        theirs = one_by_one(singles, config)
        end = time.process_time()
        if ours.shape != theirs.shape:
            raise ConsilienceError(f"{tuple(ours.shape)} here, {tuple(theirs.shape)} there: timings of unequal work")
        if repeat >= 0:
            took["ours"].append(middle - start)
            took["pillow"].append(end - middle)
    return took


def batched(pictures: Tensor, config: PictureViewConfig, seed: int) -> Tensor:
    """A view of each of the uint8 pictures [b, c, h, w], as a method makes them."""
    return picture_view(pictures.float() / 255, KeyedRandom.of(torch.arange(len(pictures)), seed), config)


def one_by_one(pictures: list[Image.Image], config: PictureViewConfig) -> Tensor:
    """The same, one picture after the other."""
    return torch.stack([_view(picture, config) for picture in pictures])


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(1).uniform_(low, high).item())


def _view(picture: Image.Image, c: PictureViewConfig) -> Tensor:
    picture = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=_crop(picture.size, c))
    if _uniform(0, 1) < c.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    colour = picture.mode == "RGB"
    if _uniform(0, 1) < c.colour_probability:
        steps = TWISTS if colour else TWISTS[:2]
        for place in torch.randperm(len(steps)).tolist():
            name, enhance = steps[place]
            reach = getattr(c, name)
            picture = enhance(picture).enhance(_uniform(1 - reach, 1 + reach))
        if colour:
            picture = _turn_hue(picture, _uniform(-c.hue, c.hue))
    if colour and _uniform(0, 1) < c.grey:
        picture = picture.convert("L").convert("RGB")
    if _uniform(0, 1) < c.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(_uniform(0.1, c.blur_sigma)))
    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return pixels.view(SIDE, SIDE, -1).permute(2, 0, 1).contiguous().float().div(255)


def _crop(size: tuple[int, int], c: PictureViewConfig) -> tuple[float, float, float, float]:
    width, height = size
    area = _uniform(c.crop_low, c.crop_high) * width * height
    ratio = math.exp(_uniform(-1, 1) * math.log(c.ratio))
    wide, high = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, top = _uniform(0, width - wide), _uniform(0, height - high)
    return left, top, left + wide, top + high


def _turn_hue(picture: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    shifted = (np.asarray(hue, dtype=np.int16) + round(turn * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}
