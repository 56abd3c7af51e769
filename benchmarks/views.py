"""Views from JPEG bytes to a normalised tensor, on one core: ours against Pillow and others.

python3 -m benchmarks.views                # a picture of its own making
python3 -m benchmarks.views --data FOLDER  # pictures of a folder
"""

import sys
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms as VT
from PIL import Image, ImageFilter

from adco.data import views
from adco.data.datasets import from_folders
from adco.data.decoder import decode
from adco.data.loader import RENDERERS
from adco.data.pictures import ArrayPictures, Pictures
from adco.data.views import Draw, Recipe, as_batch, draw_view, normalised, view_rng
from benchmarks import measure
from ops.arguments import AT_LEAST_1, POSITIVE, option, parse
from ops.errors import reported

FULL = Recipe()  # two of these make the views of a picture
USUAL = (500, 375)  # pixels, of most of ImageNet
ONE_CORE = torch.device("cpu")


@dataclass(frozen=True)
class ViewsBenchmark:
    """Time of two full-size views of a 500 x 375 JPEG."""

    data: str = option("", "folder of pictures; none: one of its own making")
    pictures: int = option(8, "pictures whose views are timed", POSITIVE)
    repeats: int = option(15, "times that each way is taken, in turn with the others", AT_LEAST_1)


def main(argv=None) -> int:
    with reported("benchmarks.views"):
        config = parse(ViewsBenchmark, argv)
        pictures = from_folders(Path(config.data), False).train if config.data else made_up()
    torch.set_num_threads(1)
    print(measure.describe(ONE_CORE) + "\n")
    print_times(pictures, config.pictures, config.repeats)
    return 0


def made_up() -> ArrayPictures:
    """One picture [375, 500]: noise with as much in every octave, as photographs have."""
    rng = np.random.default_rng(0)
    total = np.zeros((USUAL[1], USUAL[0], 3))
    for octave in range(2, 9):
        noise = Image.fromarray(rng.integers(0, 256, (2**octave,) * 2 + (3,), dtype=np.uint8))
        total += np.asarray(noise.resize(USUAL, Image.Resampling.BICUBIC), dtype=float) - 127.5
    return ArrayPictures(np.clip(127.5 + 0.6 * total, 0, 255).astype(np.uint8)[None])


# ---- time


def jpeg(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.resize(USUAL, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def draw(index: int, view: int, width: int, height: int) -> Draw:
    return draw_view(FULL, width, height, view_rng(0, 0, index, view))


def ours(renderer, index: int, data: bytes):
    pixels = decode(BytesIO(data))
    draws = (draw(index, view, *pixels.shape[1::-1]) for view in (0, 1))
    return normalised(as_batch([renderer.render(pixels, drawn, FULL.size) for drawn in draws]))


def published_recipe(size: int = FULL.size):
    """One view in torchvision's transforms on Pillow pictures, as MoCo v2 and AdCo have it."""

    def blur(picture):
        sigma = np.random.default_rng().uniform(*FULL.blur_sigma)
        return picture.filter(ImageFilter.GaussianBlur(sigma))

    return VT.Compose(
        [
            VT.RandomResizedCrop(size, scale=(FULL.min_scale, FULL.max_scale)),
            VT.RandomApply([VT.ColorJitter(*FULL.jitter)], FULL.jitter_p),
            VT.RandomGrayscale(FULL.gray_p),
            VT.RandomApply([blur], FULL.blur_p),
            VT.RandomHorizontalFlip(FULL.flip_p),
            VT.ToTensor(),
            VT.Normalize(views.MEAN, views.STD),
        ]
    )


def published():
    one = published_recipe()
    return lambda index, data: (picture := opened(data)) and [one(picture), one(picture)]


def lightly():
    """Two views by lightly's transform for MoCo v2, if the package is there."""
    from lightly.transforms import MoCoV2Transform

    transform = MoCoV2Transform()
    return lambda index, data: transform(opened(data))


def print_times(pictures: Pictures, number: int, repeats: int) -> None:
    ways = {f"ours, {name}": partial(ours, renderer) for name, renderer in RENDERERS.items()}
    ways["published"] = published()
    try:
        ways["lightly"] = lightly()
    except ImportError as error:
        print(f"lightly is left out: {error}\n")
    jpegs = [jpeg(Image.fromarray(pictures.read(i))) for i in range(min(number, len(pictures)))]
    jpegs = (jpegs * number)[:number]

    def all_jpegs(way):
        for index, data in enumerate(jpegs):
            way(index, data)

    seconds = measure.interleaved(
        {name: partial(all_jpegs, way) for name, way in ways.items()}, repeats, ONE_CORE
    )
    per_picture = {name: [s / number for s in turns] for name, turns in seconds.items()}
    measure.print_head("two 224 views of a 500 x 375 JPEG", "ms", "times ours, fast")
    for name, turns in per_picture.items():
        ratio = measure.ratio(turns, per_picture["ours, fast"])
        measure.print_row(name, measure.milliseconds(turns), ratio)


if __name__ == "__main__":
    sys.exit(main())
