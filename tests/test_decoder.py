"""What an image file means: depth, orientation, torn or not; one answer for all."""

import resource
import struct
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from adco.data.datasets import scan_folder, warnings_about
from adco.data.decoder import Decoding, decode
from adco.data.pictures import BrokenPicture, FolderPictures
from ops.errors import RunFailed
from tests.support.scripts import TINY, run_main

RNG = np.random.default_rng(0)
RAMP = np.linspace(0, 1, 64 * 32).reshape(32, 64)
TRUE = np.rint(255 * RAMP)


def read(path, **how):
    return FolderPictures(path.parent, [path.name], decoding=Decoding(**how)).read(0)


def tiff(path, values: np.ndarray, sample_format=1, photometric=1):
    """A plain gray TIFF of any type, [H, W]."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = [(256, values.shape[1]), (257, values.shape[0]), (258, values.itemsize * 8), (259, 1),
            (262, photometric), (273, 8), (277, 1), (278, values.shape[0]), (279, len(data)),
            (339, sample_format)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(header + data + struct.pack("<H", len(tags)) + entries + bytes(4))


# ---- depth


@pytest.mark.parametrize("ending", ["png", "tif", "jp2"])
def test_16_bits_are_the_ramp_that_they_are(tmp_path, ending):
    path = tmp_path / f"deep.{ending}"
    Image.fromarray(np.rint(65535 * RAMP).astype(np.uint16)).save(path)
    assert np.abs(read(path)[..., 0] - TRUE).max() <= 1


def test_a_16_bit_pgm_is_the_ramp_that_it_is(tmp_path):
    values = np.rint(1023 * RAMP).astype(">u2")
    (tmp_path / "x.pgm").write_bytes(b"P5 64 32 1023\n" + values.tobytes())
    assert np.abs(read(tmp_path / "x.pgm")[..., 2] - TRUE).max() <= 1


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "u4", "u2 inverted"])
def test_integers_are_scaled_by_the_range_of_their_type(tmp_path, kind):
    kind, inverted = kind[:2], "inverted" in kind
    range_ = np.iinfo(kind)
    values = np.rint(range_.min + RAMP * (range_.max - range_.min))
    values = values.clip(range_.min, range_.max).astype(kind)
    tiff(tmp_path / "x.tif", values, sample_format=1 + (kind[0] == "i"), photometric=1 - inverted)
    expected = 255 - TRUE if inverted else TRUE
    assert np.abs(read(tmp_path / "x.tif")[..., 1] - expected).max() <= 1


def test_a_16_bit_tiff_of_the_other_byte_order_is_the_same_ramp(tmp_path):
    values = np.rint(65535 * RAMP).astype(np.uint16)
    image = Image.frombytes("I;16B", (64, 32), values.byteswap().tobytes())
    image.save(tmp_path / "x.tif")
    assert np.abs(read(tmp_path / "x.tif")[..., 0] - TRUE).max() <= 1


def test_floats_have_no_known_range(tmp_path):
    tiff(tmp_path / "x.tif", RAMP.astype("f4"), sample_format=3)
    with pytest.raises(BrokenPicture, match="no known range; save 8 or 16 bits"):
        read(tmp_path / "x.tif")


# ---- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["tiff", "png", "webp"])
def test_all_formats_are_as_stored_or_all_are_turned(tmp_path, kind, orientation):
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:3, :5], pixels[6:, 9:] = 255, 90
    tags, path = Image.Exif(), tmp_path / f"x.{kind}"
    tags[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=tags, **({"lossless": True} if kind == "webp" else {}))
    assert (read(path) == pixels).all()
    with Image.open(path) as image:
        upright = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert (read(path, exif=True) == upright).all()


def test_a_run_says_that_pictures_lie_on_their_side(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 3
    for i in range(6):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{i}.jpg", exif=tags if i else Image.Exif())
    (warning,) = warnings_about(scan_folder(tmp_path))
    assert "5 of 6 pictures have an orientation tag: shown as stored; --exif 1" in warning
    (warning,) = warnings_about(scan_folder(tmp_path, Decoding(exif=True)))
    assert "turned by it" in warning


# ---- torn or not


def jpeg(path) -> bytes:
    Image.fromarray(RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path, quality=95)
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_jpeg_that_ends_early_is_torn_for_both_renderers(tmp_path, kept):
    whole = jpeg(tmp_path / "x.jpg")
    half = whole[: int(kept * len(whole))]
    for torn in (half, half + b"\xff\xd9", half + b"\xff\xd9" + whole[len(half) :]):
        (tmp_path / "x.jpg").write_bytes(torn)
        with pytest.raises(BrokenPicture):
            read(tmp_path / "x.jpg")


def test_bytes_too_many_tear_nothing_and_say_nothing(tmp_path, capfd):
    whole = jpeg(tmp_path / "x.jpg")
    sound = read(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes(whole[:-2] + b"junk in front of the marker" + whole[-2:])
    assert (read(tmp_path / "x.jpg") == sound).all()
    # An unknown tag, at which libtiff complains.
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[65000] = "x" * 40
    Image.fromarray(sound).save(tmp_path / "x.tif", compression="tiff_lzw", tiffinfo=info)
    assert (read(tmp_path / "x.tif") == sound).all()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_tags_that_cannot_be_read_break_no_picture(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    pixels = RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    options = {"lossless": True} if kind == "webp" else {}
    Image.fromarray(pixels).save(path, exif=b"Exif\0\0MM\0*garbage", **options)
    assert (read(path) == pixels).all() and (read(path, exif=True) == pixels).all()
    assert FolderPictures(tmp_path, [path.name]).orientation(0) == 1


def test_a_sparse_file_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "x.jpg"
    jpeg(path)
    sound = read(path)
    with open(path, "r+b") as file:
        file.truncate(2**36)
    assert (read(path) == sound).all()


def test_too_many_pixels_are_the_true_reason_and_the_limit_can_be_raised(tmp_path):
    Image.new("L", (1500, 1000)).save(tmp_path / "x.png")
    with pytest.raises(BrokenPicture, match=r"1\.5 megapixels, more than .* 1; raise it"):
        read(tmp_path / "x.png", max_megapixels=1.0)
    Image.new("1", (20000, 10000)).save(tmp_path / "x.png")
    with pytest.raises(BrokenPicture, match=r"200\.0 megapixels"):
        read(tmp_path / "x.png")
    with open(tmp_path / "x.png", "rb") as file:
        assert decode(file, Decoding(max_megapixels=201.0)).shape == (10000, 20000, 3)


# ---- outages


def test_a_folder_that_is_away_for_a_moment_breaks_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("adco.data.pictures.OUTAGE_SECONDS", 1.0)
    (tmp_path / "data").mkdir()
    jpeg(tmp_path / "data/x.jpg")
    pictures = FolderPictures(tmp_path / "data", ["x.jpg", "y.jpg"])
    with pytest.raises(BrokenPicture):  # the folder is there, this file is not
        pictures.read(1)
    (tmp_path / "data").rename(tmp_path / "away")
    with pytest.raises(RunFailed, match=r"cannot read .*x\.jpg for 1 s .*file server is away"):
        pictures.read(0)


def test_a_machine_without_file_numbers_breaks_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("adco.data.pictures.OUTAGE_SECONDS", 0.0)
    jpeg(tmp_path / "x.jpg")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(RunFailed, match="Too many open files"):
            read(tmp_path / "x.jpg")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_both_renderers_of_a_run_refuse_and_take_the_same(tmp_path):
    for i in range(16):
        jpeg(tmp_path / f"{i}.jpg")
    torn = tmp_path / "3.jpg"
    torn.write_bytes(torn.read_bytes()[:900] + b"\xff\xd9")
    for augment in ("fast", "pil"):
        words = ["--augment", augment, "--bad_images_max", 1, "--epochs", 1, "--val_split", 0]
        ended = run_main("main_adco.py", *TINY, "--data", tmp_path, *words, cwd=tmp_path)
        assert ended.returncode == 0 and "broken picture 3.jpg: torn" in ended.stderr
    ended = run_main(
        "main_adco.py", *TINY, "--data", tmp_path, "--dry_run", 1, "--val_split", 0, cwd=tmp_path
    )
    assert ended.returncode == 2 and "3.jpg (torn" in ended.stderr


# ---- channels


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", ">u4"])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_an_array_is_scaled_by_the_range_of_its_type(tmp_path, kind, channels):
    ramp = np.stack([np.roll(RAMP, shift) for shift in range(channels)], axis=2)
    range_ = np.iinfo(kind)
    values = np.rint(range_.min + ramp * (range_.max - range_.min)).clip(range_.min, range_.max)
    for order in "CF":
        np.save(tmp_path / "x.npy", np.array(values.astype(kind), order=order))
        found = read(tmp_path / "x.npy", channels=channels)
        assert found.dtype == np.uint8 and np.abs(found - np.rint(255 * ramp)).max() <= 1


def test_an_array_without_channels_is_gray(tmp_path):
    np.save(tmp_path / "x.npy", TRUE.astype(np.uint8))
    for channels in (1, 3):
        found = read(tmp_path / "x.npy", channels=channels)
        assert found.shape == (32, 64, channels) and (found == TRUE[:, :, None]).all()


@pytest.mark.parametrize("layout", ["pages", "separate", "contig"])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_the_planes_of_a_tiff_are_its_channels(tmp_path, kind, layout):
    tifffile = pytest.importorskip("tifffile")
    values = RNG.integers(0, np.iinfo(kind).max + 1, (5, 9, 12), dtype=kind)
    how = {} if layout == "pages" else {"planarconfig": layout}
    stored = values.transpose(1, 2, 0) if layout == "contig" else values
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="minisblack", **how)
    true = np.rint(values / np.iinfo(kind).max * 255).transpose(1, 2, 0)
    assert (read(tmp_path / "x.tif", channels=5) == true).all()
    with pytest.raises(BrokenPicture, match=r"5 channel\(s\), not the 4 of --channels"):
        read(tmp_path / "x.tif", channels=4)


def test_pages_that_pillow_wrote_are_channels_and_are_too_many_for_gray(tmp_path):
    pages = RNG.integers(0, 256, (5, 9, 12), dtype=np.uint8)
    first, *others = map(Image.fromarray, pages)
    first.save(tmp_path / "x.tif", save_all=True, append_images=others)
    assert (read(tmp_path / "x.tif", channels=5) == pages.transpose(1, 2, 0)).all()
    with pytest.raises(BrokenPicture, match="5 pages, not the 1 channel"):
        read(tmp_path / "x.tif", channels=1)
    assert (read(tmp_path / "x.tif") == pages[0][:, :, None]).all()  # as ever


def test_without_tifffile_a_tiff_of_planes_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    Image.new("L", (9, 9)).save(tmp_path / "x.tif")
    assert read(tmp_path / "x.tif", channels=1).shape == (9, 9, 1)
    with pytest.raises(BrokenPicture, match="python3 -m pip install tifffile"):
        read(tmp_path / "x.tif", channels=5)


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "gray.jpg", "x.npy", "deep.png"])
def test_one_channel_is_pillows_gray(tmp_path, name):
    path, pixels = tmp_path / name, RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    if name == "x.npy":
        np.save(path, pixels)
    elif name == "deep.png":
        Image.fromarray(np.arange(0, 65536, 600, dtype=np.uint16).reshape(10, 11)).save(path)
    else:
        Image.fromarray(pixels).convert("L" if name == "gray.jpg" else "RGB").save(path)
    colour, gray = read(path), read(path, channels=1)
    assert gray.shape == (*colour.shape[:2], 1)
    assert (gray[..., 0] == np.array(Image.fromarray(colour).convert("L"))).all()


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("CMYK", 4), ("LA", 2)])
def test_other_numbers_of_channels_are_taken_as_they_are(tmp_path, mode, channels):
    pixels = RNG.integers(0, 256, (9, 12, channels), dtype=np.uint8)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.fromarray(pixels, mode).save(path)
    if mode != "CMYK":  # that one needs tifffile, as below
        assert (read(path, channels=channels) == pixels).all()
    with pytest.raises(BrokenPicture, match=rf"{channels} channel\(s\), not the 6 of --channels"):
        read(path, channels=6)


def test_arrays_that_are_no_pictures_are_broken(tmp_path):
    for array, why in (
        (RAMP, r"numbers \(float64\) have no known range; save 8"),
        (np.zeros((4, 4), np.int64), r"numbers \(int64\) have no known range"),
        (np.zeros(9, np.uint8), r"an array \[9\]; expected"),
        (np.zeros((0, 4), np.uint8), r"an array \[0, 4\]"),
        (np.zeros((2, 2, 2), np.uint8), r"2 channel\(s\), not the 3"),
    ):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(BrokenPicture, match=why):
            read(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.zeros((1500, 1000), np.uint8))
    with pytest.raises(BrokenPicture, match=r"1\.5 megapixels"):
        read(tmp_path / "x.npy", max_megapixels=1.0)
    whole = (tmp_path / "x.npy").read_bytes()
    for kept in (3, 40, 5000):
        (tmp_path / "x.npy").write_bytes(whole[:kept])
        with pytest.raises(BrokenPicture):
            read(tmp_path / "x.npy")


@pytest.mark.parametrize("channels", [1, 5])
def test_pictures_of_any_channels_are_turned_by_their_tag(tmp_path, channels):
    tifffile = pytest.importorskip("tifffile")
    planes = RNG.integers(0, 256, (channels, 9, 12), dtype=np.uint8)
    tags = [(0x0112, "H", 1, 6, True)]
    tifffile.imwrite(tmp_path / "x.tif", planes, photometric="minisblack", extratags=tags)
    assert read(tmp_path / "x.tif", channels=channels).shape == (9, 12, channels)
    found = read(tmp_path / "x.tif", channels=channels, exif=True)
    assert (found == np.rot90(planes, -1, axes=(1, 2)).transpose(1, 2, 0)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_the_ground(tmp_path, mode):
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2] = (200, 200, 200, 255)
    clear[2] = (200, 200, 200, 51)  # a fifth of it
    image = Image.fromarray(clear)
    if mode == "P":
        image = Image.fromarray(np.repeat([[0], [0], [1], [1]], 4, 1).astype(np.uint8), "P")
        image.putpalette([200] * 3 + [90] * 3)
        image.info["transparency"] = 1
    elif mode == "LA":
        image = image.convert("LA")
    image.save(tmp_path / "x.png")
    for ground, level in (("white", 255), ("black", 0)):
        found = read(tmp_path / "x.png", ground=ground)
        between = level if mode == "P" else 0.2 * 200 + 0.8 * level
        assert (found[:2] == 200).all() and (found[3] == level).all()
        assert np.abs(found[2] - between).max() <= 1
        assert (read(tmp_path / "x.png", ground=ground, channels=1) == found[..., :1]).all()
    with Image.open(tmp_path / "x.png") as image:
        assert (read(tmp_path / "x.png") == np.array(image.convert("RGB"))).all()
