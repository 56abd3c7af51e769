"""Pictures in tar shards: the same run as from their folder, from disk and over HTTP."""

import shutil
import tarfile
import unicodedata
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest

from adco.data.datasets import Splits, load_splits, scan_folder, splits_of
from adco.data.loader import EpochBatches, TrainingLoader, TrainingViews
from adco.data.pictures import BrokenPicture, FolderPictures
from adco.data.shards import INDEX
from adco.data.views import Recipe
from adco.pretrain.options import PretrainConfig
from ops.distributed import World, once_per_node
from ops.errors import InputError, RunFailed
from tests.support.gloo import in_processes
from tests.support.pictures import class_folders
from tests.support.scripts import TINY, assert_refused, files_limited_to, losses, pretrain, run_main
from tests.support.web import served


def packed(data: Path, out: Path, *words) -> Path:
    ended = run_main("adco/pack.py", data, out, *words, cwd=data)
    assert ended.returncode == 0, ended.stderr
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    return packed(folder, tmp_path_factory.mktemp("packed") / "out", "--shard_mb", 0.02)


@pytest.fixture
def copy(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "copy")


@pytest.fixture(scope="module")
def web(shards):
    with served(shards.parent) as server:
        yield server


def assert_same_pictures(found: Splits, expected: Splits) -> None:
    assert found.identity() == expected.identity()
    for one, other in ((found.train, expected.train), (found.val, expected.val)):
        if other is None:
            assert one is None
            continue
        assert one.file_names() == other.file_names() and list(one.classes) == list(other.classes)
        assert np.array_equal(one.labels, other.labels)
        for i in range(len(other)):
            assert np.array_equal(one.read(i), other.read(i)), other.name(i)
        last = np.array([len(other) - 1])
        assert np.array_equal(one.part(last).read(0), other.read(len(other) - 1))


# ---- packing


def test_packed_pictures_are_those_of_the_folder_in_order(folder, shards, web):
    expected = load_splits("folder", str(folder))
    for place in (str(shards), f"{web.url}/out/"):
        assert_same_pictures(load_splits("tar", place), expected)
    # By any name of a data set of files: a run goes on from either.
    assert_same_pictures(load_splits("ImageNet", str(shards)), expected)


def test_names_of_any_kind_are_kept_and_pictures_need_no_class(folder, tmp_path):
    source, data = folder / "train/red/red_0.png", tmp_path / "data"
    data.mkdir()
    for name in ("a.b.c.PNG", "caf\udce9.png", unicodedata.normalize("NFD", "\u00e9.png")):
        shutil.copy(source, data / name)
    out = packed(data, tmp_path / "out")
    assert_same_pictures(load_splits("tar", str(out)), load_splits("folder", str(data)))


def test_shards_have_webdatasets_layout(folder, shards):
    pictures, met = load_splits("folder", str(folder)).train, []
    paths = sorted(shards.glob("train-*.tar"))
    assert len(paths) > 1
    for path in paths:
        with tarfile.open(path) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]
        for (name, content), (label_name, label) in zip(members[::2], members[1::2], strict=True):
            key, ending = name.split(".")
            assert (label_name, ending) == (f"{key}.cls", "png")
            assert content == pictures.path(int(key)).read_bytes()
            assert int(label) == pictures.labels[int(key)]
            met.append(int(key))
    assert sorted(met) == list(range(len(pictures))) != met  # each shard is a sample of all


def test_packing_is_whole_or_not_at_all_and_can_be_started_again(folder, tmp_path):
    out = tmp_path / "out"
    with files_limited_to(20_000):
        ended = run_main("adco/pack.py", folder, out, cwd=tmp_path)
    assert ended.returncode == 70 and "NOT PACKED" in ended.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out.partial").mkdir()  # of a process that was killed
    (tmp_path / "out.partial/train-000099.tar").touch()
    packed(folder, out)
    assert sorted(p.name for p in out.iterdir()) == [INDEX, "train-000000.tar", "val-000000.tar"]
    assert_refused(run_main("adco/pack.py", folder, out, cwd=tmp_path), "expected", "new folder")
    assert_refused(run_main("adco/pack.py", folder, "s3://b/x", cwd=tmp_path), "to the store")


# ---- training


def test_losses_are_those_of_the_folder_and_a_run_goes_on_from_shards(
    folder, shards, web, tmp_path
):
    for name in ("whole", "tar"):
        (tmp_path / name).mkdir()
    words = ("--save_freq", 1)
    whole = pretrain(tmp_path / "whole", folder, *words)
    over_http = ("--dataset", "tar", "-j", 3)
    tar = pretrain(tmp_path / "tar", f"{web.url}/out", *words, *over_http)
    assert losses(tar) == losses(whole)
    # Begun on the folder, interrupted after an epoch: the same command, with the shards as --data.
    begun = shutil.copytree(tmp_path / "whole", tmp_path / "begun")
    for path in begun.rglob("checkpoint_*"):
        if path.name != "checkpoint_0000.pth.tar":
            path.unlink()
    assert losses(pretrain(begun, shards, *words, "--resume", "auto")) == losses(whole)


def views_of(world, place: str) -> list:
    """Sums of this process's views of an epoch of shards."""
    config = PretrainConfig(dataset="tar", data=place)
    return sums_of(splits_of(config, on_one_node(world)).train, world)


def sums_of(pictures, world) -> list:
    batches = EpochBatches(len(pictures), 8, world, seed=1)
    loader = TrainingLoader(TrainingViews(pictures, [Recipe(8)], 1), batches, 0, False)
    return [view.double().sum() for batch in loader.epoch(2) for view in batch]


def test_two_processes_see_the_pictures_of_the_folder(folder, web):
    pictures = load_splits("folder", str(folder)).train
    expected = [sums_of(pictures, World(rank, 2)) for rank in range(2)]
    assert in_processes(views_of, 2, f"{web.url}/out") == expected


def test_blocks_are_shuffled_inside_shards_in_random_order(shards, folder, tmp_path):
    pictures = load_splits("tar", str(shards)).train
    by_shard, order, again = (
        pictures.block_order(size, np.random.default_rng(7)) for size in (1, 5, 5)
    )
    met, starts = pictures.places[by_shard, 0].numpy(), pictures.places[by_shard, 1].numpy()
    assert 1 < len(set(met)) == 1 + np.count_nonzero(np.diff(met)) and sorted(met) != list(met)
    assert all(np.diff(starts)[np.diff(met) == 0] > 0)
    assert np.array_equal(order, again) and not np.array_equal(order, by_shard)
    for first in range(0, 24, 5):
        assert sorted(order[first : first + 5]) == sorted(by_shard[first : first + 5])
    words = [*TINY, "--shuffle_block", 5, "--epochs", 1, "--ad_init", 0, "--knn_freq", 0]
    ended = run_main("main_adco.py", *words, "--data", folder, cwd=tmp_path)
    assert_refused(ended, "shuffle_block=5", "packed")
    ended = run_main("main_adco.py", *words, "--data", shards, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


# ---- what can go wrong


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda out: (out / INDEX).unlink(), INDEX),
        (lambda out: (out / INDEX).write_bytes(b"PK"), "expected"),
        (lambda out: np.savez(out / INDEX, x=1), "train_names"),
        (lambda out: (out / "train-000001.tar").unlink(), r"1 of .* missing: .*train-000001\.tar"),
        (lambda out: (out / "val-000000.tar").write_bytes(b""), r"torn .*val-000000\.tar"),
    ],
)
def test_shards_that_are_not_whole_are_refused_by_name(copy, change, message):
    change(copy)
    with served(copy) as server:
        for place in (str(copy), server.url):
            with pytest.raises(InputError, match=message) as refusal:
                load_splits("tar", place)
            assert len(str(refusal.value)) < 500


def test_what_cannot_be_asked_for_a_range_is_refused(web, monkeypatch):
    monkeypatch.setattr(web, "ranges", False)
    with pytest.raises(InputError, match="whole files only"):
        load_splits("tar", f"{web.url}/out")
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(InputError, match="install gcsfs"):
        load_splits("tar", "gs://bucket/out")


def test_a_lost_connection_is_tried_again(web, folder):
    pictures = load_splits("tar", f"{web.url}/out").train
    web.drops = 2  # aiohttp itself tries again once
    expected = load_splits("folder", str(folder)).train
    assert np.array_equal(pictures.read(3), expected.read(3)) and web.drops == 0


def test_a_shard_that_goes_or_is_torn_meanwhile_ends_the_run_by_name(copy, monkeypatch):
    monkeypatch.setattr("adco.data.pictures.OUTAGE_SECONDS", 0.0)
    pictures = load_splits("tar", str(copy)).train
    (copy / "train-000000.tar").write_bytes(b"x" * 600)
    with pytest.raises(RunFailed, match=r"train-000000\.tar ends .*--resume auto"):
        [pictures.read(i) for i in range(len(pictures))]
    shutil.rmtree(copy)
    with pytest.raises(RunFailed, match=r"train-00.*No such file"):
        pictures.read(0)


def test_other_bytes_than_were_packed_break_their_picture(copy):
    shard = bytearray((copy / "train-000000.tar").read_bytes())
    shard[600] ^= 1  # in the first picture
    (copy / "train-000000.tar").write_bytes(shard)
    pictures, broken = load_splits("tar", str(copy)).train, []
    for i in range(len(pictures)):
        try:
            pictures.read(i)
        except BrokenPicture as error:
            broken.append(error.reason)
    assert broken == ["its bytes in train-000000.tar are not those that were packed"]


# ---- once a node


def on_one_node(world: World) -> World:
    return World(world.rank, world.size, world.rank, world.size)


def listed(world, folder: Path) -> list:
    """The names that this process sees, and how often it has listed."""
    calls = []

    def names():
        calls.append(1)
        return scan_folder(folder).file_names()

    return [once_per_node(names, on_one_node(world)), len(calls)]


def refused(world, folder: Path) -> str:
    try:
        once_per_node(lambda: scan_folder(folder), on_one_node(world))
    except InputError as error:
        return str(error)


def test_a_node_lists_once_and_an_error_in_it_is_everybodys(folder, tmp_path):
    (first, once), (second, never) = in_processes(listed, 2, folder / "train")
    assert first == second == scan_folder(folder / "train").file_names()
    assert (once, never) == (1, 0)
    one, other = in_processes(refused, 2, tmp_path)
    assert one == other and one.startswith("no pictures in")


def test_names_are_handed_to_a_spawned_loader_process_without_a_copy(tmp_path):
    few, many = (FolderPictures(tmp_path, ["a/0.png"] * number) for number in (1, 50_000))
    assert many.name(49_999) == few.name(0) == "a/0.png"
    assert len(ForkingPickler.dumps(many)) < len(ForkingPickler.dumps(few)) + 1000
    part = many.part(np.arange(40_000))
    assert len(ForkingPickler.dumps(part)) < len(ForkingPickler.dumps(few)) + 1000
