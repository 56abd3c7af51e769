"""What a folder of pictures may hold, and what becomes of it."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

import adco.embed
from adco.data.datasets import described, from_folders, load_splits, scan_folder, warnings_about
from adco.data.decoder import Decoding
from adco.data.folder import read_folder
from adco.data.identity import check_same_everywhere, difference, identity
from adco.data.pictures import FolderPictures
from adco.embed import EmbedConfig
from adco.pretrain import run as pretraining
from adco.pretrain.options import PretrainConfig
from adco.probe import run as probe
from ops.distributed import Flags
from ops.errors import InputError
from tests.support.gloo import in_processes
from tests.support.pictures import class_folders, small_config, trunk_file
from tests.support.scripts import TINY, assert_refused, pretrain, records, run_main


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


def folder_of(root, *names):
    for i, name in enumerate(names):
        picture(root / name, i)
    return root


TWO = ("a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png")


@pytest.mark.parametrize(
    "name, what",
    [
        (".Trash-1000/0.png", "1 hidden folder"),
        ("a/.thumbnails/0.png", "1 hidden folder"),
        ("a/._0.png", "1 hidden file"),
        ("a/@eaDir/0.png", "1 @eaDir"),
        ("#recycle/0.png", "1 #recycle"),
        ("__MACOSX/a/0.png", "1 __MACOSX"),
        ("a/photo.HEIC", "1 .heic (pip install pillow-heif"),
        ("a/0.cr2", "1 .cr2"),
        ("c/0.nef", "1 folder(s) without pictures (c)"),
        ("a/scan", "1 without an ending"),
        ("features.hdf", "1 .hdf"),
        ("b/movie.mpeg", "1 .mpeg"),
        ("stray.png", "1 picture(s) beside the class folders (stray.png)"),
    ],
)
def test_what_is_left_out_is_counted_and_changes_no_class(tmp_path, name, what):
    pictures = scan_folder(folder_of(tmp_path, *TWO, name))
    assert described(pictures).startswith("5 pictures in 2 classes, 2 to 3 each; left out: ")
    assert what in described(pictures)
    assert pictures.file_names() == list(TWO) and pictures.labels.tolist() == [0, 0, 1, 1, 1]


def test_as_many_pictures_beside_folders_as_in_them_are_a_set_without_classes(tmp_path):
    pictures = scan_folder(folder_of(tmp_path, *TWO, "0.png", "1.png", "2.png"))
    assert described(pictures) == "8 pictures without classes"


def test_what_is_no_regular_file_is_no_picture(tmp_path):
    folder_of(tmp_path, *TWO)
    os.mkfifo(tmp_path / "a/pipe.png")
    (tmp_path / "a/gone.png").symlink_to("nowhere.png")
    (tmp_path / "a/x.png").symlink_to("y.png")
    (tmp_path / "a/y.png").symlink_to("x.png")
    (tmp_path / "b/huge.h5").touch()
    os.truncate(tmp_path / "b/huge.h5", 2**35)
    found = read_folder(tmp_path)
    assert found.names == list(TWO)
    assert found.left_out == {"special file": 1, "broken link": 3, ".h5": 1}


def test_each_folder_is_entered_once_under_its_own_name(tmp_path):
    folder_of(tmp_path, *TWO)
    for name in ("0_link", "b/up", "z"):
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "0_copy").symlink_to(tmp_path / "b")
    found = read_folder(tmp_path)
    assert found.names == list(TWO) and found.left_out == {"repeated folder": 4}


def test_pictures_behind_links_are_read(tmp_path):
    folder_of(tmp_path / "elsewhere", *TWO)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to(tmp_path / "elsewhere")
    assert len(from_folders(tmp_path / "data", False).train) == len(TWO)


def test_folders_of_runs_are_never_data(tmp_path):
    folder_of(tmp_path, *TWO, "train_log/x/curves.png", "old/run/curves.png")
    (tmp_path / "old/run/run.lock").touch()
    found = read_folder(tmp_path, tmp_path / "train_log")
    assert found.names == list(TWO) and found.left_out == {"run folder": 1, "log folder": 1}


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path):
    folder_of(tmp_path, *TWO)
    for folder in [*tmp_path.parents][:3]:
        folder.chmod(0o755)
    tmp_path.chmod(0o755)
    (tmp_path / "b").chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"cannot list .*/b': Permission denied"):
            read_folder(tmp_path)
        with pytest.raises(InputError, match=r"cannot read .*/b'.* Permission denied"):
            load_splits("ImageNet", str(tmp_path / "b"))
    finally:
        os.seteuid(0)


def test_classes_two_levels_down_are_named(tmp_path):
    pictures = scan_folder(folder_of(tmp_path, "a/abbey/0.png", "a/attic/0.png", "b/bar/0.png"))
    (warning,) = warnings_about(pictures)
    assert "the 2 folders a, b" in warning and "3 folders such as a/abbey" in warning
    names = (unicodedata.normalize("NFD", f"{top}\u00e9/deep/0.png") for top in "ab")
    assert warnings_about(scan_folder(folder_of(tmp_path / "accents", *names)))
    assert not warnings_about(scan_folder(folder_of(tmp_path / "flat", *TWO)))


def test_names_that_would_reach_the_terminal_are_quoted(tmp_path):
    name = "a/new\nline\x1b[31m.png"
    pictures = FolderPictures(folder_of(tmp_path, name), [name])
    assert pictures.name(0) == r"a/new\nline\x1b[31m.png"


# ---- identity


def test_the_identity_does_not_depend_on_where_or_how_the_folder_lies(tmp_path):
    one = folder_of(tmp_path / "one", *TWO, "b/caf\u00e9.png")
    other = folder_of(tmp_path / "other", *reversed(TWO))
    picture(other / "b" / unicodedata.normalize("NFD", "caf\u00e9.png"))
    here, there = (identity({"train": scan_folder(root)}) for root in (one, other))
    assert here == there and difference(here, there) == ""


@pytest.mark.parametrize("change", ["name", "class", "label", "number"])
def test_another_name_class_label_or_number_is_another_identity(tmp_path, change):
    data = folder_of(tmp_path, *TWO)
    before = identity({"train": scan_folder(data)})
    source, target = {
        "name": ("a/0.png", "a/00.png"), "class": ("a", "aa"), "label": ("a/1.png", "b/3.png"),
        "number": ("a/1.png", "../gone.png"),
    }[change]  # fmt: skip
    (data / source).rename(data / target)
    after = identity({"train": scan_folder(data)})
    assert difference(before, after).startswith("train was 5 pictures in 2 classes")
    assert difference(None, after) == ""  # a run that does not say


def test_data_sets_in_memory_have_an_identity():
    digits = load_splits("digits", "").identity()
    with pytest.raises(InputError, match="channels=5: digits has 3, or 1 as gray"):
        load_splits("digits", "", decoding=Decoding(channels=5))
    assert digits["train"]["pictures"] == 4000 and digits == load_splits("digits", "").identity()


def test_a_run_of_other_data_is_not_taken_up_and_one_that_moved_is(tmp_path):
    first = class_folders(tmp_path / "first")
    words = [*TINY, "--resume", "auto", "--epochs", 1, "--knn_freq", 0]
    run = pretrain(tmp_path, first, "--resume", "auto", "--epochs", 1, "--knn_freq", 0)
    other = shutil.copytree(first, tmp_path / "other")
    (other / "train/red/red_0.png").rename(other / "train/azure/red_0.png")
    ended = run_main("main_adco.py", *words, "--data", other, cwd=tmp_path)
    assert "made otherwise (train was 24 pictures in 3 classes" in ended.stderr
    assert len(list(tmp_path.rglob("metrics.jsonl"))) == 2
    moved = first.rename(tmp_path / "moved")
    steps = len(records(run, "train"))
    ended = run_main("main_adco.py", *words, "--data", moved, cwd=tmp_path)
    assert "resumed from" in ended.stdout and len(records(run, "train")) == steps
    # By its path: with a word.
    last = run / "checkpoint_last.pth.tar"
    words = [*TINY, "--resume", last, "--data", other, "--epochs", 2, "--knn_freq", 0]
    ended = run_main("main_adco.py", *words, cwd=tmp_path)
    assert ended.returncode == 0 and "was made of other data" in ended.stderr


def of_each_process(world, root) -> str:
    try:
        check_same_everywhere(
            identity({"train": scan_folder(root / str(world.rank))}), Flags(world)
        )
    except InputError as error:
        return str(error)
    return ""


def test_processes_that_see_other_data_are_refused(tmp_path):
    folder_of(tmp_path, *(f"0/{name}" for name in TWO))
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    assert in_processes(of_each_process, 2, tmp_path) == ["", ""]
    (tmp_path / "1/a/0.png").rename(tmp_path / "1/b/9.png")
    first, second = in_processes(of_each_process, 2, tmp_path)
    assert first.startswith("process 1 has other data: train was 5") and "process 0" in second


def refused_commands(world, root, trunk) -> list[str]:
    """What a probe, an embedding and a pre-training say, with a folder of its own or an option of
    its own on each process.
    """
    data, out, told = [root / str(world.rank), root / "0"], str(root / "x.npz"), []
    lr, small = 0.1 * (1 + world.rank), dict(device="cpu", image_size=32, workers=0)
    tiny = dict(small, dataset="folder", arch="resnet10", cluster=32, batch_size=4, epochs=1,
                knn_freq=0, ad_init=0, save_path=str(root))  # fmt: skip
    for command, config in (
        (probe, small_config(data[0], trunk)),
        (adco.embed, EmbedConfig(checkpoint=trunk, data=str(data[0]), out=out, **small)),
        (pretraining, PretrainConfig(data=str(data[0]), **tiny)),
        (pretraining, PretrainConfig(data=str(data[1]), lr=lr, **tiny)),
    ):
        try:
            command.run(config, world, torch.device("cpu"))
        except InputError as error:
            told.append(str(error))
    return told


def test_every_command_compares_the_data_of_its_processes(tmp_path):
    trunk = trunk_file(tmp_path / "trunk.pth")
    class_folders(tmp_path / "0", 4, 2)
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    (tmp_path / "1/train/red/red_0.png").rename(tmp_path / "1/train/azure/red_0.png")
    for told in in_processes(refused_commands, 2, tmp_path, trunk):
        assert len(told) == 4, told
        assert all("has other data: train was 12 pictures" in sentence for sentence in told[:3])
        assert "has other options: lr " in told[3]
    assert not list(tmp_path.rglob("config.json"))


def test_the_runs_own_folder_in_the_data_is_no_class(tmp_path):
    data = folder_of(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(8)))
    for _ in range(2):
        run = pretrain(data, data, "--epochs", 1, "--resume", "auto")
        picture(run / "curves.png")
    ended = run_main("main_adco.py", *TINY, "--data", data, "--epochs", 1, cwd=data)
    assert "train: 14 pictures in 2 classes, 7 to 7 each; left out: 1 log folder" in ended.stdout


# ---- several folders, and lists


def test_several_folders_are_one_set_wherever_they_lie(tmp_path):
    one, other = (folder_of(tmp_path / name, *TWO) for name in ("one", "other"))
    splits = load_splits("folder", (str(one), str(other)))
    train = splits.train
    assert train.file_names()[4:6] == ["0/b/2.png", "1/a/0.png"] and splits.val is None
    assert train.labels.tolist() == 2 * [0, 0, 1, 1, 1] and train.classes == ["a", "b"]
    assert (train.read(6) == FolderPictures(other, ["a/1.png"]).read(0)).all()
    part = train.part(np.array([9, 1]))
    assert (part.read(0) == FolderPictures(other, ["b/2.png"]).read(0)).all()
    (other / "a/1.png").unlink()
    with pytest.raises(InputError, match=f"{other}/a/1.png"):
        train.read(6)
    picture(other / "a/1.png")
    moved = other.rename(tmp_path / "moved")
    again = load_splits("folder", (str(one), str(moved)))
    assert again.identity() == splits.identity()


def test_folders_with_other_classes_are_one_set_without_labels(tmp_path):
    one, other = folder_of(tmp_path / "one", *TWO), folder_of(tmp_path / "other", "x.png", "y.png")
    train = load_splits("folder", (str(one), str(other))).train
    assert (len(train), train.labels) == (7, None)
    assert "folders do not have the same classes" in warnings_about(train)[0]


def test_classes_of_several_folders_are_the_same_however_accents_are_stored(tmp_path):
    for form in ("NFC", "NFD"):
        names = ("\u00e9cole/0.png", "zoo/0.png", "zoo/1.png")
        folder_of(tmp_path / form, *(unicodedata.normalize(form, name) for name in names))
    train = load_splits("folder", tuple(str(tmp_path / form) for form in ("NFC", "NFD"))).train
    assert train.classes == ["zoo", "\u00e9cole"] and train.labels.tolist() == 2 * [0, 0, 1]
    assert train.read(5).shape and not warnings_about(train)


def test_val_of_several_folders_is_that_of_all(tmp_path):
    for name in ("one", "other"):
        class_folders(tmp_path / name)
    splits = load_splits("folder", (str(tmp_path / "one"), str(tmp_path / "other")))
    assert (len(splits.train), len(splits.val)) == (48, 30) and splits.labelled is splits.train
    shutil.rmtree(tmp_path / "other/val")
    splits = load_splits("folder", (str(tmp_path / "one"), str(tmp_path / "other")))
    assert splits.val is None and splits.labelled is None


@pytest.mark.parametrize("second", ["", "/a", "/../one"])
def test_a_folder_that_holds_another_is_refused(tmp_path, second):
    one = folder_of(tmp_path / "one", *TWO)
    for folders in ((f"{one}", f"{one}{second}"), (f"{one}{second}", f"{one}")):
        with pytest.raises(InputError, match="of which none holds another"):
            load_splits("folder", folders)


def test_pretraining_takes_the_pictures_of_a_list_alone(tmp_path):
    data = [class_folders(tmp_path / name) for name in ("one", "other")]
    lines = ["0/red/red_1.png", *(f"{data[1]}/train/{c}/{c}_{i}.png" for i in range(5)
             for c in ("red", "green"))]  # fmt: skip
    (tmp_path / "list.txt").write_text("\n".join(lines))
    words = [*TINY, "--epochs", 1, "--list", tmp_path / "list.txt", "--data", *data]
    ended = run_main("main_adco.py", *words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "train: 11 pictures in 3 classes, 0 to 6 each" in ended.stdout
    assert "val: 30 pictures in 3 classes" in ended.stdout
    (tmp_path / "list.txt").write_text(f"{data[1]}/val/red/red_0.png")
    assert_refused(run_main("main_adco.py", *words, cwd=tmp_path), "correct the list")


def test_a_class_without_pictures_in_val_is_refused_by_name(tmp_path):
    data = class_folders(tmp_path / "data")
    for path in (data / "val/red").iterdir():
        path.rename(path.with_suffix(".heic"))
    ended = run_main("main_adco.py", *TINY, "--data", data, cwd=tmp_path)
    assert_refused(ended, "only in one: red", "5 .heic")
