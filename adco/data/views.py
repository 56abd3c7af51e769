"""Augmentation: random views as pure functions of (seed, epoch, picture, view), and the test view.

Drawing is apart from rendering: `draw_view` decides everything, a renderer only computes pixels.
There are two renderers of the same views: by Pillow here, the definition, and fast_views.py.
"""

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
IN_CACHE = 2**17  # numbers that a core's cache holds several times


@dataclass(frozen=True)
class Recipe:
    """Distribution of one view. Defaults: the full-size view of the paper."""

    size: int = 224  # pixels
    min_scale: float = 0.2  # share of the picture's area
    max_scale: float = 1.0
    jitter: tuple[float, float, float, float] = (
        0.4,
        0.4,
        0.4,
        0.1,
    )  # brightness, contrast, saturation, hue
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    flip_p: float = 0.5


class Draw(NamedTuple):
    """Everything random about one view."""

    box: tuple[int, int, int, int]  # left, top, width, height, pixels of the picture
    jitter: tuple[tuple[str, float], ...]  # operations in order, with their factors; empty = none
    gray: bool
    sigma: float  # 0 = no blur
    flip: bool


def view_rng(seed: int, epoch: int, index: int, view: int) -> np.random.Generator:
    """The only source of randomness of a view. epoch -1, -2, ... are the passes of the start-up."""
    return np.random.default_rng((seed, epoch % 2**32, index, view))


NUM_TRIES = 10  # of placing a crop
JITTER = ("brightness", "contrast", "saturation", "hue")


def draw_view(recipe: Recipe, width: int, height: int, rng: np.random.Generator) -> Draw:
    """Draw a view of a picture of width x height pixels. The number of draws never depends on
    their values.
    """
    uniform = rng.random(4 * NUM_TRIES + 13).tolist()  # one call: each costs more than its numbers
    box = draw_box(recipe, width, height, uniform[13:])
    brightness, contrast, saturation, hue = recipe.jitter
    ranges = (
        (1 - brightness, 1 + brightness),
        (1 - contrast, 1 + contrast),
        (1 - saturation, 1 + saturation),
        (-hue, hue),
    )
    factors = [between(*ends, u) for ends, u in zip(ranges, uniform[:4], strict=True)]
    order = sorted(range(4), key=uniform[4:8].__getitem__)  # every order equally likely
    jittered, gray, blurred, flip = uniform[8:12]
    return Draw(
        box=box,
        jitter=tuple((JITTER[i], factors[i]) for i in order) if jittered < recipe.jitter_p else (),
        gray=gray < recipe.gray_p,
        sigma=between(*recipe.blur_sigma, uniform[12]) if blurred < recipe.blur_p else 0.0,
        flip=flip < recipe.flip_p,
    )


def draw_box(
    recipe: Recipe, width: int, height: int, uniform: list[float]
) -> tuple[int, int, int, int]:
    """A crop with area share in [min_scale, max_scale] and log-uniform aspect ratio in [3/4, 4/3].

    The first of ten tries that fits inside the picture; else the largest centred one of an allowed
    ratio. uniform: four numbers in [0, 1) per try.
    """
    for i in range(0, 4 * NUM_TRIES, 4):
        share, shape, x, y = uniform[i : i + 4]
        area = between(recipe.min_scale, recipe.max_scale, share) * (width * height)
        ratio = exp(between(log(3 / 4), log(4 / 3), shape))
        w, h = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    w = min(width, max(1, round(height * 4 / 3)))
    h = min(height, max(1, round(width * 4 / 3)))
    return (width - w) // 2, (height - h) // 2, w, h


def between(low: float, high: float, uniform: float) -> float:
    return low + (high - low) * uniform


def normalised(views: list[np.ndarray]) -> Tensor:
    """A batch of views uint8 [S, S, 3] as float32 [n, 3, S, S] with ImageNet's mean 0 and standard
    deviation 1, laid out channels last.
    """
    num, side = len(views), len(views[0])
    scale = (1 / (255 * torch.tensor(STD))).repeat(side)  # [3 S], as a row of pixels
    shift = (-torch.tensor(MEAN) / torch.tensor(STD)).repeat(side)
    pixels = torch.from_numpy(np.stack(views)).view(num, side, 3 * side)
    batch = torch.empty(num, side, 3 * side)
    chunk = max(1, IN_CACHE // pixels[0].numel())
    for part, source in zip(batch.split(chunk), pixels.split(chunk), strict=True):
        torch.addcmul(shift, source, scale, out=part)
    return batch.view(num, side, side, 3).permute(0, 3, 1, 2)
