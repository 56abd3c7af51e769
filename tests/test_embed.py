"""Features as a file and as an array: the right rows, the same on any number of processes."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as VF

import adco
from adco.data.folder import read_folder
from adco.data.views import MEAN, STD
from adco.encoder import build_trunk
from ops.errors import InputError, RunFailed
from tests.conftest import ROOT
from tests.support.pictures import trunk_file
from tests.support.scripts import assert_refused, files_limited_to, run_main

SMALL = ("--image_size", 32, "-b", 10, "-j", 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of pre-training, and its model in eval mode."""
    model = adco.AdCo("resnet10", dim=8)
    model(list(torch.randn(2, 8, 3, 32, 32)))
    path = tmp_path_factory.mktemp("embed") / "checkpoint.pth.tar"
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"arch": "resnet10", "epoch": 1, "state_dict": weights}, path)
    return str(path), model.encoder_q.eval()


def embedded(checkpoint, data, out, *words, options=SMALL):
    """The arrays that the command writes."""
    ended = run_main("adco/embed.py", checkpoint, data, out, *options, *words, cwd=out.parent)
    assert ended.returncode == 0, ended.stderr
    assert sorted(out.parent.glob(f"{out.name}*")) == [out]
    return dict(np.load(out)) if out.suffix == ".npz" else ended


@torch.no_grad()
def plainly(network, path) -> np.ndarray:
    """Features [d] of one picture, without any of our code but the network."""
    picture = VF.resize(Image.open(path).convert("RGB"), 37)
    pixels = VF.to_tensor(VF.center_crop(picture, [32, 32]))
    return network(VF.normalize(pixels, MEAN, STD)[None])[0].numpy()


def headless(encoder):
    layers = [module for name, module in encoder.named_children() if name != "fc"]
    return torch.nn.Sequential(*layers, torch.nn.Flatten())


@pytest.mark.parametrize("of", ["trunk", "head"])
def test_rows_are_the_features_of_the_pictures_in_the_order_of_their_names(
    model, digit_folder, tmp_path, of
):
    checkpoint, encoder = model
    found = embedded(checkpoint, digit_folder, tmp_path / "x.npz", "--of", of)
    names = read_folder(digit_folder / "train").names
    assert found["name"].tolist() == names
    assert found["label"].tolist() == [name.split("/")[0] for name in names]
    network = headless(encoder) if of == "trunk" else encoder
    true = np.stack([plainly(network, digit_folder / "train" / name) for name in names])
    assert found["features"].dtype == np.float32
    np.testing.assert_allclose(found["features"], true, atol=1e-4)
    val = embedded(checkpoint, digit_folder, tmp_path / "val.npz", "--split", "val")
    assert val["name"].tolist() == read_folder(digit_folder / "val").names


def test_a_head_may_end_in_a_norm_without_scale(digit_folder, tmp_path):
    """As those of SimSiam and MoCo v3 do."""
    encoder = build_trunk("resnet10")
    norm = torch.nn.BatchNorm1d(6, affine=False)
    hidden = [torch.nn.Linear(512, 9, bias=False), torch.nn.BatchNorm1d(9), torch.nn.ReLU()]
    encoder.fc = torch.nn.Sequential(*hidden, torch.nn.Linear(9, 6), norm)
    norm.running_mean.fill_(2)
    weights = {f"module.encoder.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({"arch": "resnet10", "state_dict": weights}, tmp_path / "x.pth")
    files = [digit_folder / "val" / name for name in read_folder(digit_folder / "val").names]
    found = adco.embed(tmp_path / "x.pth", files, of="head", image_size=32)
    true = np.stack([plainly(encoder.eval(), path) for path in files])
    np.testing.assert_allclose(found, true, atol=1e-4)


def test_rows_of_a_node_with_a_folder_of_its_own_are_missed(tmp_path):
    module = sys.modules["adco.embed"]
    parts = module.Parts(tmp_path / "x.npz.part", 4, batch_size=2, width=3)
    parts.folder.mkdir()
    parts.file.touch()
    parts.write(1, torch.ones(2, 3), np.array([2, 3]))  # the first batch is elsewhere
    with pytest.raises(RunFailed, match="a folder that all nodes share"):
        module.finish(parts, None, tmp_path / "x.npz")
    assert parts.path(1).exists() and not (tmp_path / "x.npz").exists()


def test_what_cannot_be_forwarded_leaves_nothing_behind(digit_folder, tmp_path):
    encoder = build_trunk("resnet10")
    encoder.fc = torch.nn.Linear(100, 6)  # the trunk gives 512
    weights = {f"module.encoder.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({"arch": "resnet10", "state_dict": weights}, tmp_path / "x.pth")
    words = ["x.pth", digit_folder, "x.npz", "--of", "head"]
    assert run_main("adco/embed.py", *words, cwd=tmp_path).returncode
    assert not list(tmp_path.glob("x.npz*"))


def test_a_head_of_other_layers_is_refused(digit_folder, tmp_path):
    encoder = build_trunk("resnet10")
    encoder.fc = torch.nn.Sequential(torch.nn.Linear(512, 9), torch.nn.LayerNorm(9))
    weights = {f"module.encoder.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({"arch": "resnet10", "state_dict": weights}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="no head on its trunk that is known"):
        adco.embed(tmp_path / "x.pth", np.zeros((2, 32, 32, 3), np.uint8), of="head")


def test_all_formats_hold_the_same_numbers(model, digit_folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    npz, *_ = (
        embedded(model[0], digit_folder, tmp_path / f"x.{kind}", "--of", "head")
        for kind in ("npz", "csv", "parquet")
    )
    with open(tmp_path / "x.csv", newline="") as file:
        titles, *lines = csv.reader(file)
    assert titles == ["name", "label", *(f"f{i}" for i in range(8))]
    assert [line[:2] for line in lines] == np.stack([npz["name"], npz["label"]], 1).tolist()
    assert (np.array([line[2:] for line in lines], np.float32) == npz["features"]).all()
    table = parquet.read_table(tmp_path / "x.parquet")
    assert table["name"].to_pylist() == npz["name"].tolist()
    assert table["label"].to_pylist() == npz["label"].tolist()
    assert (np.array(table["features"].to_pylist(), np.float32) == npz["features"]).all()


def test_two_processes_write_the_bytes_of_one(model, digit_folder, tmp_path):
    for nproc in (1, 2):
        embedded(model[0], digit_folder, tmp_path / f"{nproc}.npz", "--nproc", nproc)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


def test_what_was_stopped_or_killed_goes_on_to_the_same_bytes(model, digit_folder, tmp_path):
    options, data = ("--image_size", 224, "-b", 1, "-j", 0), digit_folder / "val"
    words, parts = [model[0], data, tmp_path / "x.npz", *options], tmp_path / "x.npz.part"
    command = [sys.executable, "-m", "adco.embed", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = 0
    for request, code in (signal.SIGTERM, 75), (signal.SIGKILL, -9):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        while len(list(parts.glob("*.rows"))) == done:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(request)
        said = process.communicate()[0].decode()
        assert process.returncode == code
        assert code < 0 or "stopped by SIGTERM: the same command goes on" in said
        done, before = len(list(parts.glob("*.rows"))), done
        assert before < done < 15
    # Other options would mix two kinds of rows.
    ended = run_main("adco/embed.py", *words, "--of", "head", cwd=tmp_path)
    assert_refused(ended, "is of another of: remove it first")
    ended = run_main("adco/embed.py", *words, "--max_megapixels", 1, cwd=tmp_path)
    assert_refused(ended, "is of another max_megapixels: remove it first")
    # The rows that are there are taken as they are.
    kept = shutil.copytree(parts, tmp_path / "y.npz.part")
    with open(kept / "features", "r+b") as file:
        file.write(np.full(512, 7, "<f4").tobytes())
    other = embedded(model[0], data, tmp_path / "y.npz", options=options)["features"]
    embedded(model[0], data, tmp_path / "x.npz", options=options)
    whole = embedded(model[0], data, tmp_path / "z.npz", options=options)["features"]
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "z.npz").read_bytes()
    assert (other[0] == 7).all() and (other[1:] == whole[1:]).all()


def test_a_broken_picture_has_a_row_of_nan_and_is_named(model, digit_folder, tmp_path):
    data = shutil.copytree(digit_folder, tmp_path / "data")
    broken = sorted((data / "train/1").iterdir())[3]
    broken.write_bytes(b"nothing")
    ended = embedded(model[0], data, tmp_path / "x.csv")
    assert f"nan: 1/{broken.name}: not a picture" in ended.stderr
    assert "48 rows of 512, 1 of them nan" in ended.stdout
    with open(tmp_path / "x.csv", newline="") as file:
        nan = [line[0] for line in csv.reader(file) if line[2:] == ["nan"] * 512]
    assert nan == [f"1/{broken.name}"]
    with pytest.raises(InputError, match=broken.name):
        adco.embed(model[0], data / "train", image_size=32)


def test_a_full_disk_is_one_sentence_and_leaves_what_is_there(model, digit_folder, tmp_path):
    words = [model[0], digit_folder / "val", tmp_path / "x.npz", *SMALL, "-b", 5]
    with files_limited_to(9000):  # a batch is 10 kB
        ended = run_main("adco/embed.py", *words, cwd=tmp_path)
    assert ended.returncode == 70 and "NOT WRITTEN" in ended.stderr and "make room" in ended.stderr
    assert not (tmp_path / "x.npz").exists()
    (tmp_path / "y.npz.part").write_text("no folder")
    ended = run_main("adco/embed.py", *words[:2], tmp_path / "y.npz", cwd=tmp_path)
    assert ended.returncode == 70 and "NOT WRITTEN" in ended.stderr


def test_pictures_that_are_all_broken_are_refused(model, tmp_path):
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data/0.npy", np.zeros((9, 9, 5), np.uint8))
    ended = run_main("adco/embed.py", model[0], tmp_path / "data", "x.csv", *SMALL, cwd=tmp_path)
    assert ended.returncode == 2 and "none of the 1 pictures can be read" in ended.stderr
    assert "nan: 0.npy: it has 5 channel(s), not the 3 of --channels" in ended.stderr
    assert not list(tmp_path.glob("x*"))


def test_in_python_folders_files_arrays_and_modules_give_the_same_rows(
    model, digit_folder, tmp_path
):
    checkpoint, encoder = model
    folder = digit_folder / "val"
    files = [folder / name for name in read_folder(folder).names]
    images = [Image.open(path) for path in files]
    arrays = np.stack([np.array(image) for image in images])
    true = np.stack([plainly(headless(encoder), path) for path in files])
    encoder.train()
    for source in (checkpoint, encoder, headless(encoder)):
        for pictures in (folder, files, images, arrays, list(arrays), arrays[..., :1]):
            found = adco.embed(source, pictures, image_size=32, batch_size=4)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, true, atol=1e-4)
    assert encoder.training and encoder.layer1.training
    encoder.eval()
    adco.embed(encoder, arrays, image_size=32)
    assert not encoder.training and not encoder.layer1.training
    assert adco.embed(checkpoint, arrays, of="head", image_size=32).shape == (15, 8)
    for wrong, why in (([], "no pictures"), ([np.zeros((4, 4))], r"number 0.*known range")):
        with pytest.raises(InputError, match=why):
            adco.embed(checkpoint, wrong)


class Own(torch.nn.Module):
    """An encoder of one's own, which is more than its children one after the other."""

    def __init__(self):
        super().__init__()
        self.body, self.top = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 4)

    def forward(self, pictures):
        return self.top(self.body(pictures).relu().mean((2, 3)))


def test_in_python_networks_of_ones_own_are_taken_as_they_are(model):
    pixels, own = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8), Own()
    flat = torch.nn.Flatten()  # no weights
    assert adco.embed(flat, pixels, image_size=8).shape == (3, 192)
    rows = adco.embed(own, pixels, image_size=8)
    assert (adco.embed(adco.AdCo(own), pixels, of="head", image_size=8) == rows).all()
    for network, how in ((adco.AdCo(own), {}), (model[0], {"of": "tail"})):
        with pytest.raises(InputError, match=r"'head'|expected trunk or head"):
            adco.embed(network, pixels, image_size=8, **how)


@pytest.mark.parametrize("channels", [1, 5])
def test_pictures_have_the_channels_of_the_checkpoint(tmp_path, channels):
    model = adco.AdCo("resnet10", dim=8, channels=channels)
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    content = {"arch": "resnet10", "epoch": 1, "state_dict": weights, "channels": channels}
    torch.save(content, tmp_path / "checkpoint")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 40, channels), dtype=np.uint8)
    (tmp_path / "data").mkdir()
    for i, picture in enumerate(pixels):
        np.save(tmp_path / f"data/{i}.npy", picture)
    found = embedded(tmp_path / "checkpoint", tmp_path / "data", tmp_path / "x.npz")
    rows = adco.embed(tmp_path / "checkpoint", pixels, image_size=32)
    np.testing.assert_allclose(found["features"], rows, atol=1e-5)
    assert "label" not in found
    words = [tmp_path / "checkpoint", tmp_path / "data", tmp_path / "y.npz", "--channels", 3]
    assert_refused(run_main("adco/embed.py", *words, cwd=tmp_path), "conv1.weight")


def test_what_cannot_be_done_is_refused_before_any_work(model, digit_folder, tmp_path, monkeypatch):
    (tmp_path / "there.npz").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    headless = trunk_file(tmp_path / "trunk.pth.tar")
    cases = [
        ([model[0], digit_folder, "there.npz"], "expected a new file .npz, .csv, .parquet"),
        ([model[0], digit_folder, "x.txt"], "expected a new file"),
        ([model[0], digit_folder, "nowhere/x.npz"], "in an existing folder"),
        ([model[0], digit_folder, "x.parquet"], "python3 -m pip install pyarrow"),
        ([model[0], digit_folder / "val", "x.npz", "--split", "val"], "has no val"),
        ([headless, digit_folder, "x.npz", "--of", "head"], "no head on its trunk"),
        (["gone.pth.tar", digit_folder, "x.npz"], "gone.pth.tar"),
    ]
    for words, *expected in cases:
        assert_refused(run_main("adco/embed.py", *words, cwd=tmp_path), *expected)
    assert not list(tmp_path.glob("x*"))
