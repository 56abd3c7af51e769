"""The one decoder: what an image file means, in uint8 RGB, or why it cannot be shown.

simplejpeg decodes sound JPEGs, to the same pixels as Pillow in a third of the time. Pillow decodes
everything else.
"""

import os
import warnings
from contextlib import contextmanager, nullcontext, suppress
from typing import BinaryIO, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

# Pillow reads HEIC where this package is installed.
with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

# The limit is Decoding.max_megapixels; Pillow's own cannot be told apart from a broken file.
Image.MAX_IMAGE_PIXELS = None

ORIENTATION = 0x0112  # EXIF and TIFF tag: 1 as stored, 2 to 8 turned or mirrored
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
WHITE_IS_ZERO, SIGNED = 0, 2  # values of the last two


class Decoding(NamedTuple):
    """What may be said about reading a picture."""

    exif: bool = False  # turn it as its orientation tag says
    max_megapixels: float = 179.0


AS_STORED = Decoding()


def decoding_of(config) -> Decoding:
    """What the options say of it (ops.options.PictureOptions)."""
    return Decoding(bool(config.exif), config.max_megapixels)


class TooLarge(OSError):
    """A picture that may be sound, with more pixels than are read."""


def decode(file: BinaryIO, how: Decoding = AS_STORED) -> np.ndarray:
    """The pixels of an image file that is open, uint8 [H, W, 3], RGB.

    16 bits and signed values are scaled by the range of their type. Transparency is left out.
    Raises OSError for what is torn, too large, or of unknown range, and whatever Pillow raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags, at every reading
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        if num_bytes == 0:
            raise OSError("the file is empty")
        # The header decides before the body is read.
        with Image.open(file) as image:
            megapixels = image.width * image.height / 1e6
            if megapixels > how.max_megapixels:
                most = f"more than --max_megapixels {how.max_megapixels:g}"
                raise TooLarge(f"{megapixels:.1f} megapixels, {most}")
            # Tags that cannot be read say nothing; those of a TIFF are needed below.
            orientation = 1
            if how.exif or image.format == "TIFF":
                with suppress(Exception):
                    orientation = image.getexif().pop(ORIENTATION, 1)
            # A file far larger than its picture would be read for nothing.
            plain = image.format == "JPEG" and image.mode in ("RGB", "L")
            pixels = None
            if plain and num_bytes < 8e6 * megapixels + 1e6:
                file.seek(0)
                pixels = jpeg_pixels(file.read())
                file.seek(0)
            if pixels is None:
                pixels = pillow_pixels(image)
    if how.exif and orientation != 1:
        stored = Image.fromarray(pixels)
        stored.getexif()[ORIENTATION] = orientation
        pixels = np.array(ImageOps.exif_transpose(stored))
    return pixels


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


def pillow_pixels(image: Image.Image) -> np.ndarray:
    """The pixels of an opened image as they are stored."""
    # Pillow turns a TIFF while it loads; without the tag it does not (Pillow 10 keeps a copy).
    image._tile_orientation = None
    # Only libtiff speaks for itself.
    with silence() if image.format == "TIFF" else nullcontext():
        image.load()
    tags = image.tag_v2 if image.format == "TIFF" else {}
    signed = tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED
    if image.mode[0] not in "IF" and not signed:
        return np.array(image.convert("RGB"))
    if image.mode == "F" or (image.mode == "I" and image.format not in ("TIFF", "PNG", "PPM")):
        raise OSError(f"its numbers (mode {image.mode}) have no known range; save 8 or 16 bits")
    # Of PNG and PGM Pillow makes 16 bits.
    gray = to_8_bits(np.array(image), tags.get(BITS, (16,))[0], signed)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        gray = 255 - gray
    return np.repeat(gray[:, :, None], 3, axis=2)


def to_8_bits(values: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Integers of a type with so many bits, [H, W], as uint8: its range becomes 0 to 255."""
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
