"""The views of views.py, rendered by Pillow: the definition of their pixels."""

import numpy as np
import torchvision.transforms.functional as VF
from PIL import Image, ImageFilter

from adco.data.views import Draw

MOST_PIXELS = 2**26  # of a picture that is resized whole
JITTER = {
    "brightness": VF.adjust_brightness,
    "contrast": VF.adjust_contrast,
    "saturation": VF.adjust_saturation,
    "hue": VF.adjust_hue,
}


def render(pixels: np.ndarray, draw: Draw, size: int) -> np.ndarray:
    """The drawn view of a picture [H, W, 3]: uint8 [size, size, 3]."""
    # The crop, resized.
    left, top, width, height = draw.box
    view = Image.fromarray(pixels).crop((left, top, left + width, top + height))
    view = view.resize((size, size), Image.Resampling.BILINEAR)

    # Colours, blur and flip, in the order of MoCo v2's augmentation.
    for name, factor in draw.jitter:
        view = JITTER[name](view, factor)
    if draw.gray:
        view = VF.to_grayscale(view, num_output_channels=3)
    if draw.sigma:
        view = view.filter(ImageFilter.GaussianBlur(draw.sigma))
    if draw.flip:
        view = VF.hflip(view)
    return np.array(view)


def check_view(
    pixels: np.ndarray, size: int, square: bool = False, whole: bool = False
) -> np.ndarray:
    """The view that scores are computed on, of a picture [H, W, 3]: uint8 [size, size, 3].

    Resize(size 256/224), CenterCrop(size).  square: both sides are resized to that length, whatever
    the picture's shape.  whole: Resize(size), CenterCrop(size).
    """
    height, width = pixels.shape[:2]
    # Lengths of the resized picture: the shorter side is given, fractions of the other are cut off.
    side, short = size if whole else round(size * 256 / 224), min(height, width)
    w, h = (side, side) if square else (side * width // short, side * height // short)
    left, top = round((w - size) / 2), round((h - size) / 2)
    picture, how = Image.fromarray(pixels), Image.Resampling.BILINEAR
    if w * h <= MOST_PIXELS:
        return np.array(picture.resize((w, h), how).crop((left, top, left + size, top + size)))
    # A very long picture: its long side first, of which the centre is cut out before the other.
    if w > h:
        picture = picture.resize((w, height), how).crop((left, 0, left + size, height))
        view = picture.resize((size, h), how).crop((0, top, size, top + size))
    else:
        picture = picture.resize((width, h), how).crop((0, top, width, top + size))
        view = picture.resize((w, size), how).crop((left, 0, left + size, size))
    return np.array(view)
