"""Augmentation: random views as pure functions of (seed, epoch, picture, view).

Drawing is apart from rendering: `draw_view` decides everything random, a renderer computes pixels.
Two renderers show the same draws: pil_render.py, which defines the pixels, and fast_render.py.
"""

from dataclasses import dataclass
from functools import cache
from math import exp, log, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
NUM_TRIES = 10  # of placing a crop
JITTER = ("brightness", "contrast", "saturation", "hue")
IN_CACHE = 2**17  # numbers that a core's cache holds several times


@dataclass(frozen=True)
class Recipe:
    """Distribution of one view. Defaults: the full-size view of the paper."""

    size: int = 224  # pixels
    min_scale: float = 0.2  # share of the picture's area
    max_scale: float = 1.0
    # Brightness, contrast and saturation: factors in 1 +- value. Hue: +- value, in whole turns.
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    flip_p: float = 0.5


class Draw(NamedTuple):
    """Everything random about one view. Saturation, hue and gray are of RGB alone."""

    box: tuple[int, int, int, int]  # left, top, width, height, pixels of the picture
    jitter: tuple[tuple[str, float], ...]  # operations in order, with their factors; empty = none
    gray: bool
    sigma: float  # 0 = no blur
    flip: bool

    def of_channels(self, channels: int) -> "Draw":
        """What there is to do to a picture of so many channels."""
        jitter = tuple(step for step in self.jitter if step[0] in ("brightness", "contrast"))
        return self if channels == 3 else self._replace(jitter=jitter, gray=False)


def view_rng(seed: int, epoch: int, index: int, view: int) -> np.random.Generator:
    """The only source of randomness of a view. Epochs -1, -2, ... are the start-up's passes."""
    return np.random.default_rng((seed, epoch % 2**32, index, view))


def draw_view(recipe: Recipe, width: int, height: int, rng: np.random.Generator) -> Draw:
    """A random view of a picture of width x height pixels.

    Every view takes the same number of random numbers, whatever their values.
    """
    # All numbers by one call, which costs more than the numbers. The last are 4 for each try.
    u = rng.random(13 + 4 * NUM_TRIES).tolist()
    factors, order, chances, sigma, tries = u[:4], u[4:8], u[8:12], u[12], u[13:]

    # Which factor each colour operation has: about 1, the hue about 0.
    ways = zip((1, 1, 1, 0), recipe.jitter, factors, strict=True)
    factors = [between(middle - most, middle + most, x) for middle, most, x in ways]

    # Sorting four random numbers gives every order with equal probability.
    ranked = sorted(range(4), key=order.__getitem__)

    # What is done at all.
    jittered, gray, blurred, flip = chances
    jittered = jittered < recipe.jitter_p
    return Draw(
        box=draw_box(recipe, width, height, tries),
        jitter=tuple((JITTER[i], factors[i]) for i in ranked) if jittered else (),
        gray=gray < recipe.gray_p,
        sigma=between(*recipe.blur_sigma, sigma) if blurred < recipe.blur_p else 0.0,
        flip=flip < recipe.flip_p,
    )


def draw_box(recipe: Recipe, width: int, height: int, tries: list[float]) -> tuple[int, ...]:
    """A crop with area share in [min_scale, max_scale] and aspect ratio in [3/4, 4/3].

    It is the first try that fits inside the picture. If none does, it is the largest centred box
    of an allowed ratio. tries: four numbers in [0, 1) for each try.
    """
    for i in range(0, len(tries), 4):
        share, shape, x, y = tries[i : i + 4]
        # Uniform in area, log-uniform in aspect ratio: a ratio is as likely as its inverse.
        area = between(recipe.min_scale, recipe.max_scale, share) * (width * height)
        ratio = exp(between(log(3 / 4), log(4 / 3), shape))
        w, h = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        # Then uniform over all places, in whole pixels.
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    # A very long or small picture: its longer side is cut to the ratio.
    w = min(width, max(1, round(height * 4 / 3)))
    h = min(height, max(1, round(width * 4 / 3)))
    return (width - w) // 2, (height - h) // 2, w, h


def between(low: float, high: float, uniform: float) -> float:
    return low + (high - low) * uniform


def as_batch(views: list[np.ndarray]) -> Tensor:
    """Views uint8 [S, S, C] as one batch uint8 [n, C, S, S], laid out channels last.

    Batches travel as bytes, to the process that trains and to its device; see `normalised`.
    """
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)


def normalised(pixels: Tensor, dtype=torch.float32, layout=torch.channels_last) -> Tensor:
    """A batch of as_batch on its device, with mean 0 and standard deviation 1 of ImageNet's pixels.

    Of other channels than three each is taken for the mean of the three.
    Computed in float32, and rounded once to `dtype`.
    """
    num, channels, side, _ = pixels.shape
    length = channels * side  # of a row
    rows = pixels.permute(0, 2, 3, 1).reshape(num, side, length)  # a view: [n, S, C S]
    scale, shift = scale_and_shift(side, channels, pixels.device)
    batch = torch.empty_like(rows, dtype=dtype)
    # On a CPU a few pictures at a time, so that converting and scaling happen in the cache.
    chunk = max(1, IN_CACHE // (length * side)) if pixels.device.type == "cpu" else max(1, num)
    for part, source in zip(batch.split(chunk), rows.split(chunk), strict=True):
        torch.addcmul(shift, source, scale, out=part)
    batch = batch.view(num, side, side, channels).permute(0, 3, 1, 2)
    return batch.contiguous(memory_format=layout)


@cache
def scale_and_shift(side: int, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(x / 255 - mean) / std as x * scale + shift, for a row of pixels at a time: [C S] each.

    Made once: a copy to a GPU would make the host wait in every step.
    """
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    if channels != 3:
        mean, std = (x.mean().expand(channels) for x in (mean, std))
    scale, shift = 1 / (255 * std), -mean / std
    return scale.repeat(side).to(device), shift.repeat(side).to(device)
