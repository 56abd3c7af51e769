"""main_adco.py as users run it, on tiny real pictures."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adco.data.datasets import load_splits
from adco.data.decoder import Decoding
from ops.checkpoint import LAST
from ops.errors import InputError
from tests.support.scripts import TINY, assert_refused, losses, pretrain, records, run_main

MODES = ["--sym 0", "--sym 1", "--multi_crop 1", "--multi_crop 1 --sym 1"]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory, digit_folder):
    """The run folder of a mode on a number of processes; each is trained once."""

    @cache
    def run(mode: str, nproc: int) -> Path:
        folder = tmp_path_factory.mktemp("run")
        return pretrain(folder, digit_folder, *mode.split(), "--nproc", nproc, "--save_freq", 1)

    return run


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_on_one_and_two_processes(run_of, mode, nproc):
    run = run_of(mode, nproc)
    state = torch.load(run / "checkpoint_last.pth.tar", weights_only=True)
    assert state["epoch"] == 2
    assert all(value.isfinite().all() for value in state["Memory_Bank"].values())
    assert (run / "checkpoint_best.pth.tar").exists() == (state["best_acc"] > 0)
    assert [record["epoch"] for record in records(run, "knn")] == [0, 1, 2]
    assert len(records(run, "epoch")) == 2


def test_the_run_folder_and_its_files_have_the_documented_names(run_of):
    run = run_of("--sym 0", 1)
    assert run.parts[-5:-1] == ("train_log", "folder", "lr_0.03_memlr0.1", "cos_1")
    names = {path.name for path in run.iterdir()}
    assert {"checkpoint_last.pth.tar", "checkpoint_0000.pth.tar", "checkpoint_0001.pth.tar"} < names
    assert any(name.startswith("events.out.tfevents") for name in names)
    kept = json.loads((run / "config.json").read_text())
    assert kept["config"]["cluster"] == 32 and kept["versions"]["torch"] and kept["command"]


def test_one_seed_gives_one_run_whatever_the_workers(tmp_path, digit_folder):
    runs = []
    for workers in (0, 1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        runs.append(losses(pretrain(folder, digit_folder, "-j", workers, "--seed", 7)))
    assert runs[0] == runs[1] == runs[2]
    other = tmp_path / "other"
    other.mkdir()
    assert losses(pretrain(other, digit_folder, "--seed", 8)) != runs[0]


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_run_resumed_after_an_epoch_is_the_uninterrupted_run(
    run_of, tmp_path, digit_folder, nproc
):
    whole = run_of("--sym 0", nproc)
    half = whole / "checkpoint_0000.pth.tar"
    resumed = pretrain(tmp_path, digit_folder, "--resume", half, "--nproc", nproc)
    states = [
        torch.load(run / "checkpoint_last.pth.tar", weights_only=True) for run in (whole, resumed)
    ]
    for part in ("state_dict", "Memory_Bank"):
        for name, value in states[0][part].items():
            assert torch.equal(states[1][part][name], value), name


def test_a_run_of_another_precision_goes_on_in_fp16(run_of, tmp_path, digit_folder):
    half = run_of("--sym 0", 1) / "checkpoint_0000.pth.tar"
    run = pretrain(tmp_path, digit_folder, "--resume", half, "--amp", "fp16")
    assert torch.load(run / "checkpoint_last.pth.tar", weights_only=True)["scaler"]


def test_resume_auto_goes_on_in_the_same_folder_with_the_newest_usable_file(
    run_of, tmp_path, digit_folder
):
    shutil.copytree(run_of("--sym 0", 1).parents[3], tmp_path / "train_log")
    (run,) = (path.parent for path in tmp_path.rglob("metrics.jsonl"))
    (run / "checkpoint_last.pth.tar").write_bytes(b"torn")
    (run / "checkpoint_0001.pth.tar").unlink()
    (run / "checkpoint_best.pth.tar").unlink(missing_ok=True)
    again = pretrain(tmp_path, digit_folder, "--resume", "auto", "--save_freq", 1)
    assert again == run
    assert torch.load(run / "checkpoint_last.pth.tar", weights_only=True)["epoch"] == 2


def test_a_file_that_has_had_its_epochs_is_refused(run_of, tmp_path, digit_folder):
    words = [*TINY, "--data", digit_folder, "--resume", run_of("--sym 0", 1) / LAST]
    for more in ([], ["--epochs", 1], ["--dry_run", 1]):
        ended = run_main("main_adco.py", *words, *more, cwd=tmp_path)
        assert_refused(ended, "has had 2 epochs", "raise --epochs")
    assert not list(tmp_path.iterdir())


def test_the_time_for_pictures_is_no_time_for_saves(tmp_path, digit_folder):
    words = ["--save_minutes", 1e-6, "--knn_freq", 0, "--ad_init", 0, "--epochs", 1]
    (epoch,) = records(pretrain(tmp_path, digit_folder, *words), "epoch")
    assert epoch["data_seconds"] < 0.2 * epoch["seconds"]


def test_start_up_can_go_round_the_bank_more_than_once(tmp_path, digit_folder):
    run = pretrain(tmp_path, digit_folder, "--init_steps", 9, "--epochs", 1)
    assert [record["step"] for record in records(run, "startup")] == [2, 4, 6, 8, 9]


def test_bad_input_is_one_sentence_and_code_2(tmp_path, digit_folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    torn = tmp_path / "torn.pth.tar"
    torn.write_bytes(b"PK nothing")
    a_file = tmp_path / "a_file"
    a_file.write_text("in the way")
    cases = [
        (["--data", "nowhere"], "nowhere"),
        (["--data", empty], "no pictures"),
        (["--data", digit_folder, "-b", 64], "do not fill a batch"),
        (["--data", digit_folder, "--cluster", 0], "cluster=0"),
        (["--data", digit_folder, "--mem_t", 0], "mem_t"),
        (["--data", digit_folder, "-b", 9, "--nproc", 2], "do not split"),
        (["--data", digit_folder, "--dataset", "mnist"], "mnist"),
        (["--data", digit_folder, "--arch", "vgg16"], "vgg16"),
        (["--data", digit_folder, "--resume", "gone.pth.tar"], "gone.pth.tar"),
        (["--data", digit_folder, "--resume", torn], "torn.pth.tar"),
        (["--data", digit_folder, "--save_path", a_file], "run folder"),
        (["--data", digit_folder, "--gpu", 0], "gpu=0"),
        (["--data", digit_folder, "--cluster", 1, "--nproc", 2], "cluster=1: expected 2"),
    ]
    for words, *expected in cases:
        assert_refused(run_main("main_adco.py", *TINY, *words, cwd=tmp_path), *expected)
    assert not (tmp_path / "train_log").exists()
    assert a_file.read_text() == "in the way"


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path, digit_folder):
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        url = f"tcp://localhost:{taken.getsockname()[1]}"
        words = ["--data", digit_folder, "--nproc", 2, "--dist_url", url]
        assert_refused(run_main("main_adco.py", *TINY, *words, cwd=tmp_path), "in use")


# ---- channels


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def channel_folder(root: Path, channels: int) -> Path:
    """train/{a,b} and val/{a,b} of arrays, gray PNGs, and TIFFs of pages, which differ by class."""
    rng = np.random.default_rng(channels)
    for split, count in (("train", 12), ("val", 3)):
        for label, name in enumerate("ab"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (20, 20, channels)) + 127 * label
                path, planes = root / split / name / str(i), pixels.astype(np.uint8)
                if i % 2:
                    np.save(path, planes.astype(np.uint16) * 257)
                else:
                    first, *others = (Image.fromarray(planes[..., c]) for c in range(channels))
                    more = dict(save_all=True, append_images=others) if others else {}
                    first.save(path.with_suffix(".tif" if others else ".png"), **more)
    return root


@pytest.mark.parametrize("channels", [1, 5])
def test_pictures_of_any_channels_are_trained_on_resumed_packed_and_scored(tmp_path, channels):
    data = channel_folder(tmp_path / "data", channels)
    how = ("--channels", channels, "--bad_images", "error", "--save_freq", 1)
    whole = pretrain(made(tmp_path / "whole"), data, *how)
    half, last = whole / "checkpoint_0000.pth.tar", "checkpoint_last.pth.tar"
    assert run_main("adco/pack.py", data, tmp_path / "packed", cwd=tmp_path).returncode == 0
    resumed = pretrain(made(tmp_path / "resumed"), tmp_path / "packed", *how, "--resume", half)
    one, other = (torch.load(run / last, weights_only=True) for run in (whole, resumed))
    for part in ("state_dict", "Memory_Bank"):
        for name, value in one[part].items():
            assert torch.equal(other[part][name], value), name
    assert one["state_dict"]["module.encoder_q.conv1.weight"].shape[1] == channels
    # The probe takes the channels from the checkpoint.
    words = ["--dataset", "folder", "--data", data, "--pretrained", whole / last, "--head", "knn"]
    words += ["--image_size", 16, "-j", 0, "-b", 8, "--knn_k", 3]
    ended = run_main("lincls.py", *words, cwd=tmp_path)
    assert ended.returncode == 0 and "Acc@1 100.000" in ended.stdout, ended
    assert_refused(run_main("lincls.py", *words, "--channels", 3, cwd=tmp_path), "conv1.weight")
    assert run_main("adco/report/__main__.py", whole, cwd=tmp_path).returncode == 0
    assert "data:image/jpeg" in (whole / "report.html").read_text()


def test_data_sets_in_memory_are_gray_where_one_channel_is_wanted():
    digits = load_splits("digits", "", decoding=Decoding(channels=1)).val
    gray, digits.channels = digits.read(3), 3
    assert gray.shape == (28, 28, 1) and (gray == digits.read(3)).all()
    digits.channels = 4
    with pytest.raises(InputError, match=r"number 3: it has 3 channel\(s\), not the 4"):
        digits.read(3)
