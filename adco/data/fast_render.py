"""The views of views.py, rendered several times faster: the same draws, nearly the same pixels.

torch's antialiasing kernel resizes. Brightness, contrast and saturation are affine maps of a pixel,
the blur is one small kernel.
"""

from math import sqrt

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from adco.data.views import Draw

# A loader process owns one core, and a forked thread pool would hang.
cv2.setNumThreads(0)


def render(pixels: np.ndarray, draw: Draw, size: int) -> np.ndarray:
    """The drawn view of a picture [H, W, C]: uint8 [size, size, C]."""
    channels = pixels.shape[2]
    draw = draw.of_channels(channels)
    # The crop, resized.
    left, top, width, height = draw.box
    view = resized(pixels[top : top + height, left : left + width], size, size)

    # Colours, blur and flip, in the order of pil_render.
    for name, factor in draw.jitter:
        view = JITTER[name](view, factor)
    if draw.gray:
        view = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)  # one channel for what is left to do
    if draw.sigma:
        kernel = blur_kernel(draw.sigma)
        view = cv2.sepFilter2D(view, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    if draw.flip:
        view = cv2.flip(view, 1)
    view = cv2.cvtColor(view, cv2.COLOR_GRAY2RGB) if draw.gray else view
    return view.reshape(size, size, channels)  # OpenCV has no axis of one channel


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear; where it shrinks, with a kernel so wide that every pixel counts (antialiasing)."""
    # OpenCV's kernel is never widened, which makes no difference where nothing shrinks.
    if pixels.shape[0] <= height and pixels.shape[1] <= width:
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    picture = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # no copy: channels last
    shrunk = F.interpolate(picture, (height, width), mode="bilinear", antialias=True)
    return shrunk[0].permute(1, 2, 0).numpy()


# Pillow cuts off fractions where OpenCV rounds. So CUT is subtracted: just less than a half, for
# whole numbers to stay.
CUT = 0.49
LUMA = np.tile((0.299, 0.587, 0.114), (3, 1))  # a pixel's gray


def mixed(view: np.ndarray, factor: float, shift=0.0, gray=0.0) -> np.ndarray:
    """factor * view + shift of each channel, plus `gray` [C, C] of the pixel: an affine map."""
    channels = view.shape[2] if view.ndim == 3 else 1
    matrix = factor * np.eye(channels) + gray
    return cv2.transform(view, np.column_stack([matrix, np.full(channels, shift) - CUT]))


def adjust_contrast(view: np.ndarray, factor: float) -> np.ndarray:
    # Pillow's mean gray of the view is a whole number. Other channels have one each.
    colour = view.ndim == 3 and view.shape[2] == 3
    gray = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY) if colour else view
    means = np.array([int(cv2.mean(plane)[0] + 0.5) for plane in cv2.split(gray)])
    return mixed(view, factor, (1 - factor) * means)


def adjust_saturation(view: np.ndarray, factor: float) -> np.ndarray:
    return mixed(view, factor, gray=(1 - factor) * LUMA)


def adjust_hue(view: np.ndarray, turns: float) -> np.ndarray:
    """Turn the hue; a whole turn is 1."""
    colours = cv2.cvtColor(view.astype(np.float32), cv2.COLOR_RGB2HSV)  # hue in degrees
    # Pillow's hue has 256 steps and is rounded down: on average it lies half a step lower.
    colours[..., 0] += (int(turns * 255) - 0.5) % 255 / 255 * 360
    return cv2.convertScaleAbs(cv2.cvtColor(colours, cv2.COLOR_HSV2RGB))


JITTER = dict(
    brightness=mixed, contrast=adjust_contrast, saturation=adjust_saturation, hue=adjust_hue
)


def blur_kernel(sigma: float) -> np.ndarray:
    """Pillow's approximation of a Gaussian: the same box, with soft ends, three times over."""
    # Three boxes add up to the variance. One has `whole` full pixels on each side of its middle,
    # and two end pixels whose weight makes the variance exact.
    variance = sigma * sigma / 3  # of one box
    whole = int((sqrt(12 * variance + 1) - 1) / 2)
    end = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    end /= 6 * (variance - (whole + 1) ** 2)
    box = np.array([end, *[1.0] * (2 * whole + 1), end]) / (2 * whole + 1 + 2 * end)
    kernel = np.convolve(np.convolve(box, box), box)
    return (kernel + kernel[::-1]) / 2  # exactly symmetric: OpenCV's fast path
