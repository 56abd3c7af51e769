"""Broken pictures: replaced, named once, counted, and too many of them."""

import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from adco.data.loader import CheckViews, EpochBatches, TrainingLoader, TrainingViews, check_loader
from adco.data.pictures import FolderPictures
from adco.data.views import Recipe
from adco.encoder import build_trunk
from adco.pretrain.health import BadPictures
from adco.pretrain.options import PretrainConfig
from adco.probe.features import extract_features
from adco.probe.knn import knn_accuracies
from ops.distributed import World
from ops.errors import InputError
from tests.support.scripts import assert_refused, run_main

RNG = np.random.default_rng(0)
GOOD = [f"good_{i:02d}.jpg" for i in range(20)]
RECIPES = [Recipe(16), Recipe(12)]


def chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def photo(path) -> bytes:
    """The file of a small picture of noise."""
    Image.fromarray(RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


def truncated_jpeg(path):
    path.write_bytes(photo(path)[:300])


def empty_file(path):
    path.write_bytes(b"")


def text_file(path):
    path.write_text("not a picture at all\n" * 20)


def vanished_file(path):
    """Listed, and gone when it is read."""


def broken_png(path):
    whole = bytearray(photo(path))
    middle = len(whole) // 2
    whole[middle : middle + 50] = bytes(50)
    path.write_bytes(whole)


def header_only_png(path):
    path.write_bytes(photo(path)[:33])


def size_zero_png(path):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 8, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b""))


def bomb(path):
    """A few bytes that ask for 40 gigabytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**17, 2**17, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))


BROKEN = {
    "truncated.jpg": truncated_jpeg,
    "empty.jpg": empty_file,
    "text.jpg": text_file,
    "vanished.jpg": vanished_file,
    "broken.png": broken_png,
    "header_only.png": header_only_png,
    "size_zero.png": size_zero_png,
    "bomb.png": bomb,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """20 sound pictures, and one of each kind that is not."""
    root = tmp_path_factory.mktemp("mixed")
    for name in GOOD:
        photo(root / name)
    for name, make in BROKEN.items():
        make(root / name)
    return root


def pictures(folder, names) -> FolderPictures:
    return FolderPictures(folder, names, [0] * len(names), ["all"])


def mixed(folder) -> FolderPictures:
    return pictures(folder, sorted([*GOOD, *BROKEN]))


def loader(pictures, workers=0, batch=4, augment="fast", skip=True, world=None) -> TrainingLoader:
    views = TrainingViews(pictures, RECIPES, 3, augment, skip)
    world = world or World()
    batches = EpochBatches(len(pictures), batch * world.size, world, seed=3, least=batch)
    return TrainingLoader(views, batches, workers, pin_memory=False)


# ---- one picture


@pytest.mark.parametrize("augment", ["fast", "pil"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_replaced_and_named_with_a_reason(folder, name, augment):
    some = pictures(folder, [*GOOD, name])
    views, broken = TrainingViews(some, RECIPES, 0, augment, True).__getitems__([(0, 20), (0, 0)])
    assert [batch.shape for batch in views] == [(2, 3, 16, 16), (2, 3, 12, 12)]
    assert list(broken) == [name]
    assert broken[name] and "\n" not in broken[name] and " at 0x" not in broken[name]


@pytest.mark.parametrize("augment", ["fast", "pil"])
@pytest.mark.parametrize("name", BROKEN)
def test_with_error_a_broken_picture_stops_with_its_path(folder, name, augment):
    views = TrainingViews(pictures(folder, [name]), RECIPES, 0, augment)
    with pytest.raises(InputError, match="cannot read the picture") as caught:
        views.__getitems__([(0, 0)])
    assert str(folder / name) in str(caught.value)
    assert "remove or replace it" in str(caught.value)


def test_the_stand_in_follows_from_seed_epoch_and_index(folder):
    some = pictures(folder, [*GOOD, "empty.jpg"])

    def stand_in(seed, epoch):
        views = TrainingViews(some, [Recipe(20)], seed, skip_broken=True)
        return views.__getitems__([(epoch, 20)])[0][0]

    assert torch.equal(stand_in(0, 0), stand_in(0, 0))
    assert not torch.equal(stand_in(0, 0), stand_in(1, 0))
    views = TrainingViews(some, [Recipe(20)], 0, skip_broken=True)
    chosen = {views._picture(epoch, 20, {}).tobytes() for epoch in range(-10, 10)}
    assert len(chosen) > 5  # other pictures stand in, not other views of one


def test_a_stand_in_does_not_look_like_its_own_appearance_in_the_epoch(folder):
    views = TrainingViews(pictures(folder, ["empty.jpg", GOOD[0]]), RECIPES, 0, skip_broken=True)
    (batch, _), _ = views.__getitems__([(0, 0), (0, 1)])
    stand_in, own = batch  # there is one picture only that can stand in
    assert not torch.equal(stand_in, own)


def test_where_everything_is_broken_it_ends_in_one_sentence(folder):
    views = TrainingViews(pictures(folder, list(BROKEN)), RECIPES, 0, skip_broken=True)
    with pytest.raises(InputError, match=r"truncated\.jpg is broken, and so are all"):
        views.__getitems__([(0, 0)])


def test_a_lack_of_memory_is_not_the_pictures_fault(folder, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr("adco.data.pictures.decode", no_memory)
    views = TrainingViews(pictures(folder, GOOD), RECIPES, 0, skip_broken=True)
    with pytest.raises(MemoryError):
        views.__getitems__([(0, 0)])


def test_a_name_that_is_no_text_can_be_printed_and_saved(tmp_path):
    some = pictures(tmp_path, ["caf\udce9.jpg"])
    assert some.name(0) == r"caf\xe9.jpg"


# ---- batches


def test_views_and_news_do_not_depend_on_the_workers(folder):
    seen = {}
    for workers in (0, 1, 3):
        training = loader(mixed(folder), workers)
        steps = [(views, training.take_newly_broken()) for views in training.epoch(5)]
        seen[workers] = steps
    for workers in (1, 3):
        for (views, news), (alone, expected) in zip(seen[workers], seen[0], strict=True):
            assert list(news.items()) == list(expected.items())
            torch.testing.assert_close(views, alone, atol=1e-6, rtol=0)
    assert {name for _, news in seen[0] for name in news} == set(BROKEN)


def test_news_are_of_the_batches_handed_out_and_not_of_those_read_ahead(folder):
    training = loader(mixed(folder), workers=1)
    epoch = training.epoch(0)
    next(epoch)
    alone = loader(mixed(folder))
    next(alone.epoch(0))
    assert training.take_newly_broken() == alone.take_newly_broken()
    assert training.take_newly_broken() == {}
    list(alone.epoch(0))
    assert set(alone.take_newly_broken()) == set(BROKEN)  # of all batches, not of the last


def test_a_batch_of_nothing_but_broken_pictures_is_replaced_whole(folder):
    some = pictures(folder, [*BROKEN, *GOOD])
    positions = [(0, index) for index in range(len(BROKEN))]
    views, broken = TrainingViews(some, RECIPES, 0, skip_broken=True).__getitems__(positions)
    assert len(views[0]) == len(BROKEN) and views[0].isfinite().all()
    assert set(broken) == set(BROKEN)


@pytest.mark.parametrize("first", [0, 2, 6])
def test_an_epoch_taken_up_inside_has_the_same_stand_ins(folder, first):
    whole = list(loader(mixed(folder)).epoch(1))
    training = loader(mixed(folder), workers=2)
    tail = list(training.epoch(1, first))
    torch.testing.assert_close(tail, whole[first:], atol=1e-6, rtol=0)


def test_with_error_a_loader_process_ends_in_the_same_sentence(folder):
    training = loader(pictures(folder, ["text.jpg"] * 4), workers=1, skip=False)
    with pytest.raises(InputError, match=r"text\.jpg: not a picture in a format"):
        next(training.epoch(0))


RUN = [
    *("--dataset", "folder", "--recipe", "published", "--arch", "resnet10"),
    *("--image_size", "16", "--cluster", "16"),
    *("--mem_t", "0.1", "--memory_lr", "0.1", "-b", "8", "-j", "1", "--epochs", "1"),
    *("--report_epochs", "0"),
]


@pytest.mark.parametrize("nproc", [1, 2])
def test_with_error_a_run_ends_in_one_sentence_that_names_the_picture(folder, tmp_path, nproc):
    words = [*RUN, "--data", folder, "--bad_images", "error", "--nproc", nproc, "-j", nproc]
    ended = run_main("main_adco.py", *words, cwd=tmp_path)
    assert_refused(ended, "main_adco.py: error: cannot read the picture", str(folder))


def test_a_run_goes_on_with_as_many_broken_pictures_as_it_may_have(folder, tmp_path):
    ended = run_main("main_adco.py", *RUN, "--data", folder, "--bad_images_max", 1, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


# ---- scores


def test_check_views_leave_broken_pictures_out(folder):
    some = FolderPictures(folder, ["empty.jpg", GOOD[0], "bomb.png", GOOD[1]], [0, 1, 2, 3])
    batch, labels = CheckViews(some, 16, skip_broken=True).__getitems__([0, 1, 2, 3])
    assert batch.shape == (2, 3, 16, 16) and labels.tolist() == [1, 3]
    batch, labels = CheckViews(some, 16, skip_broken=True).__getitems__([0, 2])
    assert batch.shape == (0, 3, 16, 16) and labels.shape == (0,)


def test_a_score_copes_with_batches_that_come_back_empty(folder):
    names = [GOOD[0], *BROKEN, GOOD[1]]
    some = FolderPictures(folder, names, list(range(len(names))))
    trunk = build_trunk("resnet10").eval()
    views = CheckViews(some, 32, skip_broken=True)
    pairs = check_loader(views, 3, 0, World())
    features = extract_features(trunk, pairs, len(some))
    assert features.labels.tolist() == [0, len(names) - 1]
    (found,) = knn_accuracies([features], features, len(names), [200], 0.07, World())
    assert found == (2, 2, 2)


def test_a_score_of_nothing_is_zero(folder):
    some = FolderPictures(folder, list(BROKEN), [0] * len(BROKEN))
    views = CheckViews(some, 32, skip_broken=True)
    pairs = check_loader(views, 3, 0, World())
    features = extract_features(build_trunk("resnet10"), pairs, len(some))
    (found,) = knn_accuracies([features], features, 1, [200], 0.07, World())
    assert found == (0, 0, 0) and found.acc1 == 0
    # A process may have no batch at all.
    assert extract_features(build_trunk("resnet10"), [], 0).rows.shape == (0, 512)


# ---- the count


def test_every_broken_picture_is_told_once():
    bad = BadPictures(0.5, 10)
    (sentence,) = bad.add({"a.jpg": "the file is empty"})
    assert "a.jpg" in sentence and "the file is empty" in sentence
    (sentence,) = bad.add({"b.jpg": "torn", "a.jpg": "the file is empty"})
    assert "b.jpg" in sentence
    assert bad.add({"a.jpg": "gone"}) == []
    assert bad.known == {"a.jpg": "the file is empty", "b.jpg": "torn"}


def test_what_a_checkpoint_knew_is_not_told_again():
    bad = BadPictures(0.5, 10, known={"a.jpg": "torn"})
    assert bad.add({"a.jpg": "torn"}) == [] and len(bad.known) == 1


def test_more_than_the_limit_stops_with_a_list(tmp_path):
    bad = BadPictures(0.01, 200)
    bad.add({"b.jpg": "torn"})
    bad.add({"a.jpg": "the file is empty"})
    assert not bad.complaint(tmp_path)  # 2 of 200 are not more than 1 %
    assert not any(tmp_path.iterdir())
    bad.add({"c.jpg": "torn"})
    complaint = bad.complaint(tmp_path)
    for words in ("3 of 200", "--bad_images_max 0.01", "first: b.jpg (torn)", str(tmp_path)):
        assert words in complaint
    lines = (tmp_path / "bad_pictures.txt").read_text().splitlines()
    assert lines == ["a.jpg\tthe file is empty", "b.jpg\ttorn", "c.jpg\ttorn"]


def test_a_folder_that_cannot_be_written_does_not_hide_the_message(tmp_path):
    bad = BadPictures(0, 10, known={"a.jpg": "torn"})
    for folder in (None, tmp_path / "gone"):
        assert re.search(r"1 of 10 .*\(torn\); remove them or raise", bad.complaint(folder))


@pytest.mark.parametrize("limit", [-0.1, 1.5, float("nan")])
def test_the_limit_is_a_share(limit):
    with pytest.raises(InputError, match="bad_images_max"):
        PretrainConfig(bad_images_max=limit)


def test_what_is_done_about_broken_pictures_may_change_when_a_run_goes_on():
    strict = PretrainConfig(bad_images="error", bad_images_max=0)
    assert strict.changes_numbers() == PretrainConfig().changes_numbers()
