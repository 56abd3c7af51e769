"""Saved heads and resumed probes: like is compared with like, and nothing computed is lost."""

import json
import shutil

import pytest
import torch

from ops import checkpoint
from ops.errors import RunFailed
from ops.files import RunFiles, json_bytes, write_whole
from tests.support.pictures import class_folders, trunk_file
from tests.support.scripts import assert_refused, files_limited_to, run_main

SMALL = [
    *("--dataset", "folder", "--image_size", "32", "-b", "10", "-j", "0", "--min_scale", "0.5"),
    *("--device", "cpu", "--lr", "0.05"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with pictures, a trunk, and a probe of one epoch."""
    folder = class_folders(tmp_path_factory.mktemp("probe"))
    trunk_file(folder / "trunk.pth")
    assert probe(folder, "--pretrained", "trunk.pth", "--epochs", "1").returncode == 0
    shutil.copy(next(folder.rglob("checkpoint.pth.tar")), folder / "one.pth.tar")
    return folder


def probe(folder, *words, cwd=None):
    return run_main("lincls.py", *SMALL, "--data", folder, *words, cwd=cwd or folder)


def results(folder) -> dict:
    (path,) = folder.rglob("results.json")
    return json.loads(path.read_text())


def changed(made, tmp_path, **keys) -> str:
    """The probe's checkpoint with other content under some keys; without those that are None."""
    state = checkpoint.load(made / "one.pth.tar") | keys
    checkpoint.save({k: v for k, v in state.items() if v is not None}, tmp_path / "changed.pth")
    return str(tmp_path / "changed.pth")


def published(made, tmp_path, names=("weight", "bias"), layer="fc.", **keys) -> str:
    """The same as the published program writes it."""
    ours = dict.fromkeys(("config", "data", "classes", "heads", "peaks", "best"))
    weights = checkpoint.load(made / "one.pth.tar")["state_dict"]
    weights = {n.replace("module.fc.", f"module.{layer}"): w for n, w in weights.items()}
    return changed(made, tmp_path, **{**ours, "state_dict": weights, **keys})


# ---- a saved head


def renamed(made, tmp_path, names: dict[str, str]):
    """The same pictures in class folders of other names."""
    for split in ("train", "val"):
        for old in ("azure", "green", "red"):
            target = tmp_path / "data" / split / names.get(old, old)
            shutil.copytree(made / split / old, target)
    return tmp_path / "data"


def test_a_saved_head_is_scored_by_the_names_of_its_classes(made, tmp_path):
    # As if it had been trained on folders in another order.
    state = checkpoint.load(made / "one.pth.tar")
    order = [2, 0, 1]
    for name in ("module.fc.weight", "module.fc.bias"):
        state["state_dict"][name] = state["state_dict"][name][order]
    state["classes"] = [state["classes"][i] for i in order]
    checkpoint.save(state, tmp_path / "mixed.pth")
    assert probe(made, "-e", "--resume", tmp_path / "mixed.pth", cwd=tmp_path).returncode == 0
    assert results(tmp_path)["right1"] == round(0.15 * state["best_acc1"])


def test_a_saved_head_of_other_classes_is_refused_naming_them(made, tmp_path):
    data = renamed(made, tmp_path, {"green": "lime"})
    result = probe(data, "-e", "--resume", made / "one.pth.tar", cwd=tmp_path)
    assert_refused(result, "only there 'green'", "only here 'lime'")


def test_a_saved_head_without_names_warns(made, tmp_path):
    result = probe(made, "-e", "--resume", published(made, tmp_path), cwd=tmp_path)
    assert result.returncode == 0 and "the order of the class folders" in result.stderr


@pytest.mark.parametrize("layer", ["fc.", "fc.1."])
def test_published_heads_are_scored_and_taken_up(made, tmp_path, layer):
    path = published(made, tmp_path, layer=layer)
    before = checkpoint.load(made / "one.pth.tar")
    assert probe(made, "-e", "--resume", path, cwd=tmp_path).returncode == 0
    assert results(tmp_path)["right1"] == round(0.15 * before["best_acc1"])
    shutil.rmtree(tmp_path / "train_log")
    result = probe(made, "--resume", path, "--epochs", "2", "--dropout", "0.2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "fresh" not in result.stderr


def test_the_score_of_a_published_probe_is_the_one_to_beat(made, tmp_path):
    # 14.7 pictures: what a mean over unequal batches may say of 15.
    path = published(made, tmp_path, best_acc1=torch.tensor([98.0]))
    words = ("--resume", path, "--epochs", "2", "--lr", "1e-6", "--final_lr", "0")
    assert probe(made, *words, cwd=tmp_path).returncode == 0
    best = checkpoint.load(next(tmp_path.rglob("model_best.pth.tar")))  # of before the resume
    last = checkpoint.load(next(tmp_path.rglob("checkpoint.pth.tar")))
    assert last["best_acc1"] == 100 and last["best"]["epoch"] == 0
    fc = checkpoint.load(path)["state_dict"]["module.fc.weight"]
    assert torch.equal(last["best"]["weights"]["0.weight"], fc)
    assert torch.equal(best["state_dict"]["module.fc.weight"], fc) and best["epoch"] == 1
    assert not torch.equal(last["state_dict"]["module.fc.weight"], fc)


# ---- a probe that goes on


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--weight_decay", "0.5"], "weight_decay was 0.0, here it is 0.5"),
        (["--lr_sweep", "7", "8"], "lr_sweep was [], here it is [7.0, 8.0]"),
        (["--holdout", "0.5"], "holdout was 0.0, here it is 0.5"),
        (["--train_fraction", "0.5", "--seed", "3"], "seed was 0, here it is 3"),
        (["--sgdr", "1"], "sgdr was 0, here it is 1"),
    ],
)
def test_a_probe_goes_on_with_its_own_options_only(made, tmp_path, words, sentence):
    words = ("--resume", made / "one.pth.tar", "--epochs", "2", *words)
    assert_refused(probe(made, *words, cwd=tmp_path), sentence)


def test_the_epochs_of_a_probe_are_raised_and_not_lowered(made, tmp_path):
    words = ("--resume", made / "one.pth.tar", "--epochs", "2", "-p", "3")
    assert probe(made, *words, cwd=tmp_path).returncode == 0
    longer = next(tmp_path.rglob("model_1.pth.tar"))
    state = checkpoint.load(longer)
    checkpoint.save({**state, "epoch": 0}, longer)
    again = probe(made, "--resume", longer, "--epochs", "1", cwd=tmp_path)
    assert_refused(again, "epochs was 2, here it is 1")


def test_a_probe_goes_on_with_its_own_pictures_wherever_they_lie(made, tmp_path):
    moved = renamed(made, tmp_path, {})
    words = ("--resume", made / "one.pth.tar", "--epochs", "2")
    assert probe(moved, *words, cwd=tmp_path).returncode == 0
    (moved / "val" / "red" / "red_0.png").rename(moved / "val" / "red" / "another.png")
    assert_refused(probe(moved, *words, cwd=tmp_path), "val was 15")


def test_what_the_pictures_are_stands_in_config_and_results(made):
    (config,) = made.glob("train_log/**/config.json")
    data = json.loads(config.read_text())["data"]
    assert data == results(made)["data"] == checkpoint.load(made / "one.pth.tar")["data"]
    assert (data["train"]["pictures"], data["val"]["classes"]) == (24, 3)


def test_the_optimizer_is_as_plain_torch_writes_it(made):
    (group,) = checkpoint.load(made / "one.pth.tar")["optimizer"]["param_groups"]
    assert group["initial_lr"] == 0.05
    assert group["fused"] is None and group["foreach"] is None


# ---- numbers that are not finite


def test_features_that_are_not_finite_are_refused(made, tmp_path):
    state = checkpoint.load(made / "trunk.pth")
    state["state_dict"]["module.encoder_q.layer4.0.bn2.weight"].fill_(3e38)
    checkpoint.save(state, tmp_path / "large.pth")
    for words in (["--head", "knn"], ["--head", "linear"], ["--head", "logistic"]):
        result = probe(made, "--pretrained", tmp_path / "large.pth", *words, cwd=tmp_path)
        assert_refused(result, "features that are not finite")


@pytest.mark.parametrize("words", [["--lr", "1e38"], ["--lr_sweep", "0.1", "1e38"]])
def test_a_loss_that_is_not_finite_ends_the_run_with_70(made, tmp_path, words):
    result = probe(made, "--pretrained", "trunk.pth", "--epochs", "3", *words, "-p", "1")
    assert result.returncode == 70 and "lr 1e+38" in result.stderr, result.stderr


def test_json_has_no_numbers_that_are_not_finite():
    text = json_bytes({"a": float("nan"), "b": [1, (float("-inf"), 2.5)], "c": "x"}).decode()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1, [None, 2.5]],
        "c": "x",
    }


# ---- full disks


def test_a_full_disk_loses_no_score_and_ends_with_70(made, tmp_path):
    with files_limited_to(100_000):
        result = probe(made, "--pretrained", made / "trunk.pth", "--epochs", "2", cwd=tmp_path)
    assert result.returncode == 70
    assert "NOT SAVED" in result.stderr and " * Acc@1" in result.stdout
    assert "checkpoint.pth.tar" in result.stderr.splitlines()[-1]
    assert results(tmp_path)["total"] == 15
    assert not list(tmp_path.rglob("*.partial"))


def test_what_could_not_be_written_is_tried_again_with_the_next_file(tmp_path):
    told = []
    files = RunFiles(told.append)
    with files_limited_to(10):
        files.write({tmp_path / "run" / "large": b"x" * 100, tmp_path / "run" / "small": b""})
        with pytest.raises(RunFailed, match="large"):
            files.check()
    shutil.rmtree(tmp_path / "run")
    files.write({tmp_path / "run" / "next": json_bytes({})})
    files.check()
    assert (tmp_path / "run" / "large").read_bytes() == b"x" * 100 and len(told) == 1


def test_a_write_that_is_broken_off_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_whole(tmp_path / "x", "text where bytes belong")
    assert not list(tmp_path.iterdir())


def test_a_rate_below_the_final_one_runs_with_a_word(made, tmp_path):
    words = ("--pretrained", made / "trunk.pth", "--epochs", "1", "--lr", "0.001")
    result = probe(made, *words, cwd=tmp_path)
    assert result.returncode == 0
    assert result.stderr.count("rises to final_lr 0.01") == 1
