"""Views: what is drawn, and that both renderers show it."""

import tracemalloc
from collections import Counter
from math import log

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as VF
from PIL import Image
from sklearn.datasets import load_sample_image

from adco.data import fast_render, pil_render, views
from adco.data.decoder import Decoding
from adco.data.loader import CheckViews, EpochBatches, TrainingLoader, TrainingViews, check_loader
from adco.data.pictures import ArrayPictures, FolderPictures
from adco.data.views import JITTER, Draw, Recipe, as_batch, draw_view, normalised, view_rng
from adco.pretrain.options import PRESETS, PretrainConfig
from ops.arguments import parse
from ops.distributed import ALONE, World
from ops.errors import InputError

FULL = Recipe()
RNG = np.random.default_rng(0)
PHOTOS = [load_sample_image(name)[::2, ::2].copy() for name in ("china.jpg", "flower.jpg")]
SMALL = RNG.integers(0, 256, (12, 28, 28, 3), dtype=np.uint8)


def draws(recipe: Recipe, number: int = 4000) -> list[Draw]:
    return [draw_view(recipe, 500, 375, view_rng(0, 1, index, 0)) for index in range(number)]


DRAWS = draws(FULL)


def assert_uniform(values, low: float, high: float):
    """All values in [low, high], with the mean and the spread of a uniform distribution."""
    values, width = np.array(values), high - low
    assert low <= values.min() and values.max() <= high
    assert values.mean() == pytest.approx((low + high) / 2, abs=0.03 * width)
    assert values.std() == pytest.approx(width / 12**0.5, rel=0.05)


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other)


# ---- what is drawn


def test_the_draws_of_a_seed_never_change():
    """A resumed run goes on with the views of the program that began it."""
    plain, changed = (draw_view(FULL, 500, 375, view_rng(0, 1, index, 0)) for index in (1, 16))
    assert plain == Draw((121, 49, 329, 308), jitter=(), gray=False, sigma=0.0, flip=False)
    assert changed == Draw(
        box=(95, 86, 174, 230),
        jitter=(
            ("contrast", 0.8022139972726069),
            ("hue", -0.0006504552941754005),
            ("saturation", 1.2129730382889474),
            ("brightness", 1.2196836455391562),
        ),
        gray=True,
        sigma=1.1892753832478802,
        flip=True,
    )


@pytest.mark.parametrize("number", range(4))
def test_jitter_factors_are_uniform(number):
    name, half = JITTER[number], FULL.jitter[number]
    middle = 0 if name == "hue" else 1
    factors = [dict(draw.jitter)[name] for draw in DRAWS if draw.jitter]
    assert_uniform(factors, middle - half, middle + half)


def test_jitter_comes_in_every_order_equally_often():
    orders = Counter(tuple(name for name, _ in draw.jitter) for draw in DRAWS if draw.jitter)
    assert len(orders) == 24
    expected = sum(orders.values()) / 24
    assert sum((n - expected) ** 2 / expected for n in orders.values()) < 50  # chi2(23), p 0.001


def test_sigma_is_uniform_where_there_is_blur():
    assert_uniform([draw.sigma for draw in DRAWS if draw.sigma], *FULL.blur_sigma)


@pytest.mark.parametrize(
    ("part", "share"), [("jitter", 0.8), ("gray", 0.2), ("sigma", 0.5), ("flip", 0.5)]
)
def test_chances_are_those_of_the_recipe(part, share):
    assert np.mean([bool(getattr(draw, part)) for draw in DRAWS]) == pytest.approx(share, abs=0.03)


def test_crops_have_uniform_area_and_log_uniform_shape():
    recipe = Recipe(min_scale=0.2, max_scale=0.4)  # always fits
    boxes = np.array([draw.box for draw in draws(recipe)], dtype=float)
    left, top, width, height = boxes.T
    assert_uniform(width * height / (500 * 375), 0.198, 0.402)  # whole pixels
    assert_uniform(np.log(width / height), log(3 / 4) - 0.01, log(4 / 3) + 0.01)
    assert_uniform((left + 0.5) / (500 - width + 1), 0, 1)
    assert_uniform((top + 0.5) / (375 - height + 1), 0, 1)


def test_crops_lie_inside_pictures_of_any_shape():
    for width, height in ((1, 1), (3, 400), (400, 3), (28, 28)):
        for index in range(50):
            left, top, w, h = draw_view(FULL, width, height, view_rng(0, 0, index, 0)).box
            assert 0 <= left <= left + w <= width and 0 <= top <= top + h <= height and w * h


@pytest.mark.parametrize("changed", range(4))
def test_seed_epoch_picture_and_view_each_change_the_draw(changed):
    position = [0, 1, 2, 3]
    here, again = (draw_view(FULL, 500, 375, view_rng(*position)) for _ in range(2))
    position[changed] += 1
    assert here == again != draw_view(FULL, 500, 375, view_rng(*position))


# ---- the two renderers


@pytest.mark.parametrize("size", [224, 96])
@pytest.mark.parametrize("photo", PHOTOS)
def test_fast_render_differ_from_pillow_by_less_than_two_levels(photo, size):
    size_of = photo.shape[1::-1]
    for draw in (draw_view(FULL, *size_of, view_rng(0, 0, index, 0)) for index in range(40)):
        fast, pil = fast_render.render(photo, draw, size), pil_render.render(photo, draw, size)
        assert difference(fast, pil).mean() < 2, draw


@pytest.mark.parametrize("factor", [-1.0, -0.4, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("number", range(4))
def test_each_colour_operation_agrees_with_pillow(number, factor):
    name, value = JITTER[number], factor * FULL.jitter[number] + (number < 3)
    fast = fast_render.JITTER[name](PHOTOS[0], value)
    pil = np.array(getattr(VF, f"adjust_{name}")(Image.fromarray(PHOTOS[0]), value))
    assert difference(fast, pil).mean() < 0.3


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.0, 1.5, 2.0])
def test_blur_has_the_variance_that_was_drawn_in_each_direction(sigma):
    kernel = fast_render.blur_kernel(sigma)
    places = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum() == pytest.approx(1)
    assert (kernel * places**2).sum() == pytest.approx(sigma**2)


@pytest.mark.parametrize("box", [(20, 30, 250, 150), (100, 50, 60, 40), (5, 5, 310, 60)])
def test_resizing_agrees_with_pillow_to_a_level(box):
    draw = Draw(box, (), gray=False, sigma=0.0, flip=False)
    fast = fast_render.render(PHOTOS[0], draw, 96)
    assert difference(fast, pil_render.render(PHOTOS[0], draw, 96)).max() <= 1


@pytest.mark.parametrize("shape", [(200, 300), (210, 80), (60, 61), (96, 96)])
def test_check_views_are_the_centre_of_the_resized_picture(shape):
    photo = np.ascontiguousarray(PHOTOS[1][: shape[0], : shape[1]])
    whole = VF.center_crop(VF.resize(Image.fromarray(photo), 110), [96, 96])
    assert (pil_render.check_view(photo, 96) == np.array(whole)).all()


@pytest.mark.parametrize("size", [28, 224])
def test_normalised_is_torchvisions_to_tensor_and_normalize(size):
    pixels = RNG.integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    expected = [VF.normalize(VF.to_tensor(view), views.MEAN, views.STD) for view in pixels]
    found = normalised(as_batch(list(pixels)))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-6, rtol=0)
    # Rounded once, and the same in both layouts.
    for dtype in (torch.bfloat16, torch.float16):
        for layout in (torch.channels_last, torch.contiguous_format):
            assert torch.equal(normalised(as_batch(list(pixels)), dtype, layout), found.to(dtype))


# ---- batches


def test_a_part_of_pictures_in_memory_shares_their_pixels():
    pictures = ArrayPictures(SMALL, np.arange(len(SMALL)))
    part = pictures.part(np.array([7, 3, 9])).part(np.array([2, 0]))
    assert part.array is pictures.array and part.labels.tolist() == [9, 7] and len(part) == 2
    assert (part.read(0) == SMALL[9]).all()


def training_views(augment: str, size: int = 28) -> TrainingViews:
    return TrainingViews(ArrayPictures(SMALL), [Recipe(size), Recipe(size // 2)], 0, augment)


@pytest.mark.parametrize("augment", ["fast", "pil"])
def test_a_view_does_not_depend_on_its_batch(augment):
    dataset = training_views(augment)
    positions = [(1, index) for index in (7, 3, 11, 0)]
    together, _ = dataset.__getitems__(positions)
    for i, position in enumerate(positions):
        alone, _ = dataset.__getitems__([position])
        for batch, (view,) in zip(together, alone, strict=True):
            torch.testing.assert_close(batch[i], view, atol=1e-6, rtol=0)


def test_both_renderers_are_given_the_same_draws():
    fast, pil = (
        TrainingViews(ArrayPictures(np.stack(PHOTOS)), [FULL, FULL], 3, augment).__getitems__(
            [(2, 1)]
        )[0]
        for augment in ("fast", "pil")
    )
    for one, other in zip(fast, pil, strict=True):
        assert (one.float() - other.float()).abs().mean() < 2


def test_loader_processes_give_the_views_of_one_process():
    def first_batch(workers):
        batches = EpochBatches(len(SMALL), 4, World(), seed=0)
        return next(TrainingLoader(training_views("fast"), batches, workers, False).epoch(0))

    for one, other in zip(first_batch(0), first_batch(2), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [0, 1, 4, 5])
def test_an_epoch_taken_up_inside_is_the_tail_of_the_epoch_and_reads_nothing_else(workers, first):
    read = []

    class Noted(ArrayPictures):
        def read(self, index):
            read.append(index)
            return super().read(index)

    dataset = TrainingViews(Noted(SMALL), [Recipe(28)], seed=0)
    loader = TrainingLoader(dataset, EpochBatches(len(SMALL), 2, World(), 0), workers, False)
    whole = [views[0] for views in loader.epoch(3)]
    in_order = read[:]
    read.clear()
    tail = [views[0] for views in loader.epoch(3, first)]
    assert len(loader) == len(whole)
    torch.testing.assert_close(tail, whole[first:], atol=0, rtol=0)
    if not workers:  # what is read in other processes is not noted here
        assert read == in_order[2 * first :]


def test_check_views_come_with_their_labels():
    pictures = ArrayPictures(SMALL, np.arange(len(SMALL)))
    batch, labels = CheckViews(pictures, 28, whole=True).__getitems__([5, 2])
    assert labels.tolist() == [5, 2]
    assert torch.equal(batch, as_batch([SMALL[5], SMALL[2]]))


@pytest.mark.parametrize("shape", [(3, 4000), (4000, 3), (40, 900)])
def test_very_long_pictures_have_the_same_view_in_little_memory(shape, monkeypatch):
    photo = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    whole = pil_render.check_view(photo, 32)
    monkeypatch.setattr(pil_render, "MOST_PIXELS", 0)
    assert difference(pil_render.check_view(photo, 32), whole).max() <= 1
    tracemalloc.start()
    pil_render.check_view(np.zeros((60000, 1, 3), np.uint8), 224)
    assert tracemalloc.get_traced_memory()[1] < 1e8
    tracemalloc.stop()


def test_a_picture_of_the_views_size_is_cropped_or_taken_whole():
    pictures = ArrayPictures(PHOTOS[1][None, :96, :96], [0])
    cropped, whole = (CheckViews(pictures, 96, whole=w).__getitems__([0])[0] for w in (0, 1))
    small = VF.center_crop(VF.resize(Image.fromarray(PHOTOS[1][:96, :96]), 110), [96, 96])
    assert torch.equal(cropped, as_batch([np.array(small)]))
    assert torch.equal(whole, as_batch([PHOTOS[1][:96, :96]]))
    for config in (PretrainConfig(dataset="folder"), parse(PretrainConfig, [], PRESETS)):
        assert config.eval_crop == 1
    assert parse(PretrainConfig, ["--dataset", "digits"], PRESETS).eval_crop == 0


def test_another_renderer_is_another_configuration():
    fast, pil = (PretrainConfig(augment=augment).changes_numbers() for augment in ("fast", "pil"))
    assert fast != pil


# ---- files

TURNED = Image.Exif()
TURNED[0x0112] = 6  # orientation: turned by 90 degrees
FILES = {
    "plain.jpg": ("RGB", dict(quality=90)),
    "full_colour.jpg": ("RGB", dict(subsampling=0)),
    "progressive.jpg": ("RGB", dict(progressive=True)),
    "turned.jpg": ("RGB", dict(exif=TURNED)),
    "gray.jpg": ("L", {}),
    "print.jpg": ("CMYK", {}),
    "plain.png": ("RGB", {}),
    "clear.png": ("RGBA", {}),
    "palette.png": ("P", {}),
    "deep.png": ("I;16", {}),
    "bits.png": ("1", {}),
    "palette.gif": ("P", {}),
    "plain.webp": ("RGB", {}),
}


@pytest.mark.parametrize("name", FILES)
def test_files_have_pillows_pixels(name, tmp_path):
    mode, options = FILES[name]
    picture = Image.fromarray(PHOTOS[1])
    if mode == "I;16":
        picture = Image.fromarray(PHOTOS[1][..., 0].astype(np.uint16) * 257)
    picture.convert(mode).save(tmp_path / name, **options)
    pictures = FolderPictures(tmp_path, [name])
    pixels = pictures.read(0)
    assert pixels.dtype == np.uint8
    expected = PHOTOS[1][..., :1].repeat(3, 2)
    if mode != "I;16":
        with Image.open(tmp_path / name) as image:
            expected = np.array(image.convert("RGB"))
    assert (pixels == expected).all()


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_torn_jpeg_is_an_error_that_names_it(kept, tmp_path):
    path = tmp_path / "torn.jpg"
    Image.fromarray(PHOTOS[0]).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match=r"torn\.jpg"):
        FolderPictures(tmp_path, ["torn.jpg"]).read(0)


def order(seed: int, epoch: int, images: int = 4, world: World = ALONE) -> list[list[int]]:
    """The pictures of 41 in each batch of an epoch, whole batches only."""
    batches = EpochBatches(41, images * world.size, world, seed, least=images)
    batches.epoch = epoch
    found = list(batches)
    assert len(found) == len(batches) and {e for batch in found for e, _ in batch} == {epoch}
    return [[index for _, index in batch] for batch in found]


def test_seed_and_epoch_make_the_order_of_whole_batches():
    orders = [order(*place) for place in ((0, 1), (1, 1), (0, 2), (0, -1), (0, -2))]
    assert all(len(one) == 10 and len({i for batch in one for i in batch}) == 40 for one in orders)
    assert len({str(one) for one in orders}) == 5 and orders[0] == order(0, 1)


def test_processes_share_out_batches_and_pictures_to_score():
    shares = [order(3, 1, 4, World(rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*shares, strict=True)] == order(3, 1, 8)
    views = CheckViews(ArrayPictures(np.zeros((7, 8, 8, 3), np.uint8), np.arange(7)), 8)
    loaders = [check_loader(views, 2, 0, World(rank, 3)) for rank in range(3)]
    seen = [label for loader in loaders for _, labels in loader for label in labels.tolist()]
    assert sorted(seen) == list(range(7))


def test_view_and_epoch_each_change_what_is_shown_and_a_whole_epoch_follows_a_part():
    dataset = TrainingViews(ArrayPictures(SMALL), [Recipe(16), Recipe(16)], 0)
    ((first, second), _), ((other, _), _) = (dataset.__getitems__([(epoch, 1)]) for epoch in (0, 1))
    assert not torch.equal(first, second) and not torch.equal(first, other)
    loader = TrainingLoader(dataset, EpochBatches(len(SMALL), 2, World(), 0), 0, False)
    lengths = [len(list(loader.epoch(*place))) for place in ((0, 3), (1,))]
    assert lengths == [len(loader) - 3, len(loader)]


# ---- channels


def planes(photo: np.ndarray, channels: int) -> np.ndarray:
    """A picture of so many channels, which differ."""
    return np.stack([np.roll(photo[..., i % 3], 7 * i, 1) for i in range(channels)], axis=2)


@pytest.mark.parametrize("size", [224, 96])
@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_both_renderers_show_the_same_of_any_channels(channels, size):
    photo = planes(PHOTOS[0], channels)
    size_of = photo.shape[1::-1]
    for draw in (draw_view(FULL, *size_of, view_rng(0, 0, index, 0)) for index in range(20)):
        fast, pil = fast_render.render(photo, draw, size), pil_render.render(photo, draw, size)
        assert fast.shape == pil.shape == (size, size, channels)
        assert difference(fast, pil).mean() < 2, draw


@pytest.mark.parametrize("renderer", [fast_render, pil_render])
def test_brightness_and_contrast_are_those_of_each_channel(renderer):
    photo = planes(PHOTOS[1], 5)[:96, :96]
    jitter = (("brightness", 0.8), ("hue", 0.1), ("contrast", 1.3), ("saturation", 0.7))
    draw = Draw((0, 0, 96, 96), jitter, gray=True, sigma=0.0, flip=True)
    true = np.floor(photo * 0.8)
    true = np.clip(1.3 * true - 0.3 * np.rint(true.mean(axis=(0, 1))), 0, 255)[:, ::-1]
    assert difference(renderer.render(photo, draw, 96), true.astype(int)).max() <= 1


def test_a_view_of_any_channels_to_score_is_that_of_each_channel():
    photo = planes(PHOTOS[1], 5)
    found = pil_render.check_view(photo, 96)
    for i in range(5):
        alone = pil_render.check_view(np.repeat(photo[..., i : i + 1], 3, axis=2), 96)
        assert (found[..., i] == alone[..., 0]).all()


def test_other_channels_are_normalised_by_the_mean_of_the_three():
    mean, std = np.mean(views.MEAN), np.mean(views.STD)
    for channels in (1, 5):
        batch = torch.randint(0, 256, (3, channels, 8, 8), dtype=torch.uint8)
        torch.testing.assert_close(normalised(batch), (batch / 255 - mean) / std)


def test_batches_have_the_channels_of_the_pictures(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", planes(PHOTOS[0], 5))
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    names = [*(f"{i}.npy" for i in range(3)), "broken.npy"]
    pictures = FolderPictures(tmp_path, names, decoding=Decoding(channels=5))
    (one, other), broken = TrainingViews(pictures, [Recipe(16), Recipe(16)], 0).__getitems__(
        [(0, 0), (0, 2)]
    )
    assert one.shape == other.shape == (2, 5, 16, 16) and not broken
    checks = CheckViews(pictures, 16, skip_broken=True)
    assert checks.__getitems__([1, 3])[0].shape == (1, 5, 16, 16)
    assert checks.__getitems__([3])[0].shape == (0, 5, 16, 16)
