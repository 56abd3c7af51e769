"""The views of views.py, rendered by Pillow: the definition of their pixels."""

from io import BytesIO

import numpy as np
import torchvision.transforms.functional as VF
from PIL import Image, ImageFilter

from adco.data.views import Draw

JITTER = {
    "brightness": VF.adjust_brightness,
    "contrast": VF.adjust_contrast,
    "saturation": VF.adjust_saturation,
    "hue": VF.adjust_hue,
}


def decode(data: bytes) -> Image.Image:
    """The picture in an image file, in RGB. Raises whatever the decoder does."""
    with Image.open(BytesIO(data)) as image:
        return image.convert("RGB")


def from_array(pixels: np.ndarray) -> Image.Image:
    """A picture from uint8 [H, W, 3]."""
    return Image.fromarray(pixels)


def size(picture: Image.Image) -> tuple[int, int]:
    """Width and height."""
    return picture.size


def render(picture: Image.Image, draw: Draw, size: int) -> np.ndarray:
    """The drawn view of an RGB picture: uint8 [size, size, 3]."""
    # The crop, resized.
    left, top, width, height = draw.box
    view = picture.crop((left, top, left + width, top + height))
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


def check_view(picture: Image.Image, size: int, square: bool = False) -> np.ndarray:
    """The view that scores are computed on, uint8 [size, size, 3].

    Resize(size 256/224), CenterCrop(size). A picture that already has the size is taken whole.
    square: both sides are resized to that length, whatever the picture's shape.
    """
    if square or picture.size != (size, size):
        side = round(size * 256 / 224)
        # One number is the length of the shorter side; two are both.
        picture = VF.resize(picture, [side, side] if square else side)
        picture = VF.center_crop(picture, [size, size])
    return np.array(picture)
