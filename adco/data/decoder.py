"""The one decoder: what an image file means, in uint8 [H, W, C], or why it cannot be shown.

simplejpeg decodes sound JPEGs, to the same pixels as Pillow in a third of the time. Pillow decodes
everything else that has colours; of other channels tifffile reads TIFFs, and numpy its own files.
"""

import os
import warnings
from contextlib import contextmanager, nullcontext, suppress
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from ops.errors import optional
from ops.options import PictureOptions as Decoding

# Pillow reads HEIC where this package is installed.
with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

# The limit is Decoding.max_megapixels; Pillow's own cannot be told apart from a broken file.
Image.MAX_IMAGE_PIXELS = None

ORIENTATION = 0x0112  # EXIF and TIFF tag: 1 as stored, 2 to 8 turned or mirrored
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
WHITE_IS_ZERO, SIGNED = 0, 2  # values of the last two
NPY, TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how files begin
COLOURS = (1, 3)  # numbers of channels that are gray and RGB


AS_STORED = Decoding()


def decoding_of(config) -> Decoding:
    """What the options of a run say of it."""
    return Decoding(config.exif, config.max_megapixels, config.channels or 3, config.ground)


class TooLarge(OSError):
    """A picture that may be sound, with more pixels than are read."""


def decode(file: BinaryIO, how: Decoding = AS_STORED) -> np.ndarray:
    """The pixels of an image file that is open, uint8 [H, W, C].

    16 bits and signed values are scaled by the range of their type. Raises OSError for what is
    torn, too large, of unknown range or of other channels, and whatever the readers raise.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags, at every reading
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        if num_bytes == 0:
            raise OSError("the file is empty")
        begin = file.read(6)
        file.seek(0)
        if begin == NPY:
            pixels, orientation = npy_pixels(file, how), 1
        elif begin[:4] in TIFF and how.channels not in COLOURS:
            pixels, orientation = tiff_planes(file, how)
        else:
            pixels, orientation = image_pixels(file, num_bytes, how)
    pixels = with_channels(pixels, how.channels)

    def turned(stored: Image.Image) -> Image.Image:
        stored.getexif()[ORIENTATION] = orientation
        return ImageOps.exif_transpose(stored)

    return by_pillow(turned, pixels) if how.exif and orientation != 1 else pixels


def check_size(width: int, height: int, how: Decoding) -> float:
    """The megapixels of a picture, by its header. Raises TooLarge before the body is read."""
    megapixels, most = width * height / 1e6, how.max_megapixels
    if megapixels > most:
        raise TooLarge(f"{megapixels:.1f} megapixels, more than --max_megapixels {most:g}")
    return megapixels


def with_channels(pixels: np.ndarray | Image.Image, channels: int) -> np.ndarray:
    """Pixels [H, W, c], or what gives them, as [H, W, channels]: gray becomes RGB, and RGB Pillow's
    gray. Raises OSError where they are others.
    """
    given = pillow_pixels(pixels) if isinstance(pixels, Image.Image) else np.asarray(pixels)
    pixels = array_pixels(given)
    found = pixels.shape[2]
    if (found, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=2)
    if (found, channels) == (3, 1):
        return np.array(Image.fromarray(pixels).convert("L"))[:, :, None]
    if found != channels:
        raise OSError(f"it has {found} channel(s), not the {channels} of --channels")
    return pixels


def by_pillow(change, pixels: np.ndarray) -> np.ndarray:
    """What change(image) makes of pixels [H, W, 3], or of each channel of [H, W, C] by itself."""
    if pixels.shape[2] == 3:
        return np.array(change(Image.fromarray(pixels)))
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return np.stack([change(Image.fromarray(plane)) for plane in planes], axis=2)


def array_pixels(values: np.ndarray) -> np.ndarray:
    """Whole numbers [H, W] or [H, W, c] as uint8 [H, W, c], by the range of their type."""
    check_array(values.shape, values.dtype)
    if values.dtype != np.uint8:
        values = to_8_bits(values, 8 * values.itemsize, values.dtype.kind == "i")
    return values.reshape(*values.shape[:2], -1)


def check_array(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind not in "iu" or dtype.itemsize > 4:  # 64 bits: of no camera
        raise OSError(f"its numbers ({dtype}) have no known range; save 8 or 16 bits")
    if len(shape) not in (2, 3) or 0 in shape:
        raise OSError(f"it is an array {list(shape)}; expected [H, W] or [H, W, C]")


def npy_pixels(file: BinaryIO, how: Decoding) -> np.ndarray:
    """The pixels of numpy's own file of an array."""
    # The usual header; version 2 is for types of hundreds of columns.
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    check_array(shape, dtype)
    check_size(shape[1], shape[0], how)
    file.seek(0)
    return array_pixels(np.load(file, allow_pickle=False))


def tiff_planes(file: BinaryIO, how: Decoding) -> tuple[np.ndarray, int]:
    """The planes of a TIFF's first page, or its pages of one plane each; and its orientation."""
    with optional("tifffile", "a TIFF of such channels").TiffFile(file) as tiff:
        first, planes = tiff.pages[0], []
        check_size(first.imagewidth, first.imagelength, how)
        for page in tiff.pages if first.samplesperpixel == 1 else [first]:
            values = page.asarray()
            if values.ndim == 3 and page.planarconfig == 2:  # one plane after the other
                values = values.transpose(1, 2, 0)
            planes.append(array_pixels(values))
        return np.concatenate(planes, axis=2), first.tags.valueof(ORIENTATION, default=1)


def image_pixels(file: BinaryIO, num_bytes: int, how: Decoding) -> tuple[np.ndarray, int]:
    """The pixels of a picture with colours, or gray as RGB, and its orientation tag."""
    with Image.open(file) as image:
        megapixels = check_size(image.width, image.height, how)
        # Tags that cannot be read say nothing; those of a TIFF are needed below.
        orientation = 1
        if how.exif or image.format == "TIFF":
            with suppress(Exception):
                orientation = image.getexif().pop(ORIENTATION, 1)
        if how.channels not in COLOURS:
            image.load()
            return np.array(image).reshape(image.height, image.width, -1), orientation
        if how.channels == 1 and image.format == "TIFF" and image.n_frames > 1:
            raise OSError(f"it has {image.n_frames} pages, not the 1 channel of --channels")
        # A file far larger than its picture would be read for nothing.
        pixels, plain = None, image.format == "JPEG" and image.mode in ("RGB", "L")
        if plain and num_bytes < 8e6 * megapixels + 1e6:
            file.seek(0)
            pixels = jpeg_pixels(file.read())
            file.seek(0)
        return pillow_pixels(image, how.ground) if pixels is None else pixels, orientation


def jpeg_pixels(data: bytes) -> np.ndarray | None:
    """The pixels of a sound JPEG; None where Pillow has to decide. Raises OSError where torn."""
    try:
        # Strict: libjpeg's complaints are errors, in place of lines on stderr.
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        # The rest of the picture would be gray. Other complaints mean little.
        if "premature end" in str(error).lower():
            raise OSError(f"torn ({error})") from error
    return None


def pillow_pixels(image: Image.Image, ground: str = "") -> np.ndarray:
    """The pixels of an opened image as they are stored, RGB; transparent ones on a ground."""
    # Pillow turns a TIFF while it loads; without the tag it does not (Pillow 10 keeps a copy).
    image._tile_orientation = None
    # Only libtiff speaks for itself.
    with silence() if image.format == "TIFF" else nullcontext():
        image.load()
    tags = image.tag_v2 if image.format == "TIFF" else {}
    signed = tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED
    if image.mode[0] not in "IF" and not signed:
        if ground and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
            below = Image.new("RGBA", image.size, ground)
            image = Image.alpha_composite(below, image.convert("RGBA"))
        return np.array(image.convert("RGB"))
    if image.mode == "F" or (image.mode == "I" and image.format not in ("TIFF", "PNG", "PPM")):
        raise OSError(f"its numbers (mode {image.mode}) have no known range; save 8 or 16 bits")
    # Of PNG and PGM Pillow makes 16 bits.
    gray = to_8_bits(np.array(image), tags.get(BITS, (16,))[0], signed)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        gray = 255 - gray
    return np.repeat(gray[:, :, None], 3, axis=2)


def to_8_bits(values: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Integers of a type with so many bits as uint8: its range becomes 0 to 255."""
    if values.itemsize * 8 == bits:  # Pillow's own types may have another sign
        values = values.view(f"{values.dtype.byteorder}{'i' if signed else 'u'}{bits // 8}")
    lowest = -(2 ** (bits - 1)) if signed else 0
    return np.rint((values.astype(np.float32) - lowest) * (255 / (2**bits - 1))).astype(np.uint8)


@contextmanager
def silence():
    """Nothing of what C libraries write reaches stderr."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
