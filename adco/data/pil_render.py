"""The views of views.py, rendered by Pillow: the definition of their pixels."""

import numpy as np
import torchvision.transforms.functional as VF
from PIL import Image, ImageFilter

from adco.data.decoder import by_pillow
from adco.data.views import Draw

MOST_PIXELS = 2**26  # of a picture that is resized whole


def render(pixels: np.ndarray, draw: Draw, size: int) -> np.ndarray:
    """The drawn view of a picture [H, W, C]: uint8 [size, size, C]."""
    draw = draw.of_channels(pixels.shape[2])
    return by_pillow(lambda picture: drawn(picture, draw, size), pixels)


def drawn(picture: Image.Image, draw: Draw, size: int) -> Image.Image:
    # The crop, resized.
    left, top, width, height = draw.box
    view = picture.crop((left, top, left + width, top + height))
    view = view.resize((size, size), Image.Resampling.BILINEAR)

    # Colours, blur and flip, in the order of MoCo v2's augmentation.
    for name, factor in draw.jitter:
        view = getattr(VF, f"adjust_{name}")(view, factor)
    if draw.gray:
        view = VF.to_grayscale(view, num_output_channels=3)
    if draw.sigma:
        view = view.filter(ImageFilter.GaussianBlur(draw.sigma))
    if draw.flip:
        view = VF.hflip(view)
    return view


def check_view(pixels: np.ndarray, size: int, square=False, whole=False) -> np.ndarray:
    """The view that scores are computed on, of a picture [H, W, C]: uint8 [size, size, C].

    Resize(size 256/224), CenterCrop(size).  square: both sides are resized to that length, whatever
    the picture's shape.  whole: Resize(size), CenterCrop(size).
    """
    height, width = pixels.shape[:2]
    # Lengths of the resized picture: the shorter side is given, fractions of the other are cut off.
    side, short = size if whole else round(size * 256 / 224), min(height, width)
    w, h = (side, side) if square else (side * width // short, side * height // short)
    left, top = round((w - size) / 2), round((h - size) / 2)
    how = Image.Resampling.BILINEAR

    def view(picture: Image.Image) -> Image.Image:
        if w * h <= MOST_PIXELS:
            return picture.resize((w, h), how).crop((left, top, left + size, top + size))
        # A very long picture: its long side first, of which the centre is cut out before the other.
        if w > h:
            picture = picture.resize((w, height), how).crop((left, 0, left + size, height))
            return picture.resize((size, h), how).crop((0, top, size, top + size))
        picture = picture.resize((width, h), how).crop((0, top, width, top + size))
        return picture.resize((w, size), how).crop((left, 0, left + size, size))

    return by_pillow(view, pixels)
