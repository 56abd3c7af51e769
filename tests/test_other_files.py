"""Trunks in the files of other programs: where they lie, what is left out, and what is refused."""

import datetime
import json
from argparse import Namespace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from adco import NegativeBank
from adco.encoder import build_trunk, read_trunk
from ops import checkpoint
from ops.errors import InputError
from tests.support.scripts import assert_refused, run_main


@cache
def fresh() -> dict[str, torch.Tensor]:
    return build_trunk("resnet10").state_dict()


def weights(shift: float = 0.0) -> dict[str, torch.Tensor]:
    """A resnet10 without its head; `shift` tells two of them apart."""
    return {n: value + shift for n, value in fresh().items() if not n.startswith("fc.")}


def below(prefix: str, shift: float = 0.0) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in weights(shift).items()}


def head(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{layer}.weight": torch.ones(4, 4) for layer in (0, 3)}


def by_place(prefix: str, shift: float = 0.0) -> dict[str, torch.Tensor]:
    trunk = build_trunk("resnet10")
    trunk.load_state_dict(weights(shift), strict=False)
    trunk = nn.Sequential(*list(trunk.children())[:-1])
    return {prefix + name: value for name, value in trunk.state_dict().items()}


def optimizer() -> dict:
    """As torch keeps it: tensors by number, which no name leads to."""
    return {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}


KEY = ("--encoder", "key", "--arch", "resnet10")
# Program: (what its file holds, whether it also has a key encoder).
FILES = {
    "SimSiam": (
        {"epoch": 9, "state_dict": below("module.encoder.") | head("module.encoder.fc.")
         | head("module.predictor."), "optimizer": optimizer()}, False),
    "MoCo-v3": (
        {"arch": "resnet10", "state_dict": below("module.base_encoder.")
         | head("module.base_encoder.fc.") | below("module.momentum_encoder.", 1)
         | head("module.predictor."), "optimizer": optimizer(), "scaler": {}}, True),
    "Lightning": (
        {"state_dict": below("model.backbone.") | head("model.projector."), "loops": {},
         "hyper_parameters": {"lr": 1}, "optimizer_states": [optimizer()]}, False),
    "lightly": (
        {"state_dict": by_place("backbone.") | head("projection_head.layers.")}, False),
    "lightly MoCo": (
        {"state_dict": by_place("backbone.") | by_place("backbone_momentum.", 1)}, True),
    "DINO": (
        {"student": below("module.backbone.") | head("module.head.mlp."),
         "teacher": below("backbone.", 1), "optimizer": optimizer(), "epoch": 3}, True),
    "BYOL": (below("online_encoder.net.") | below("target_encoder.net.", 1), True),
    "compiled": ({"model": below("_orig_mod.")}, False),
    "compiled by parts": (
        {n.replace("layer2.", "layer2._orig_mod."): v for n, v in weights().items()}, False),
    "wrapped twice": ({"state_dict": below("module.module.")}, False),
    "an encoder wrapped inside": ({"model": below("encoder.module.") | head("head.")}, False),
    "two names of one trunk": (below("online_net.0.") | below("backbone."), False),
    "an average beside": ({"state_dict": weights(), "state_dict_ema": weights(1)}, True),
}  # fmt: skip


def written(tmp_path, content):
    torch.save(content, tmp_path / "input.pth")
    return str(tmp_path / "input.pth")


@pytest.mark.parametrize("program", FILES)
def test_a_trunk_is_read_from_the_files_of_every_program(tmp_path, program):
    content, has_key = FILES[program]
    path = written(tmp_path, content)
    encoders = {"query": 0.0, "key": 1.0} if has_key else {"query": 0.0}
    for encoder, shift in encoders.items():
        found = read_trunk(path, encoder, arch="resnet10").build().state_dict()
        for name, value in weights(shift).items():
            assert torch.equal(found[name], value), name
    if not has_key:
        with pytest.raises(InputError, match="no weights of a key encoder"):
            read_trunk(path, "key", arch="resnet10")


def test_what_is_left_out_is_said(tmp_path):
    path = written(tmp_path, FILES["MoCo-v3"][0])
    result = run_main("adco/export.py", path, "out.pth", cwd=tmp_path)
    line = "left out: fc (2 tensors), momentum_encoder (72), predictor (2)\n"
    assert line in result.stdout, result.stdout


def test_an_encoder_that_is_not_there_is_refused(tmp_path):
    path = written(tmp_path, {"state_dict": below("module.encoder.")})
    result = run_main("adco/export.py", path, "o.pth", *KEY, cwd=tmp_path)
    assert_refused(result, "no weights of a key encoder", "module.encoder")
    assert not (tmp_path / "o.pth").exists()


def test_a_teacher_alone_is_taken_on_demand(tmp_path):
    path = written(tmp_path, {"teacher": below("backbone.")})
    with pytest.raises(InputError, match=r"adco\.export --encoder takes the other"):
        read_trunk(path, arch="resnet10")
    assert torch.equal(
        read_trunk(path, "key", "resnet10").weights["bn1.weight"], weights()["bn1.weight"]
    )


def test_of_several_trunks_none_is_guessed(tmp_path):
    path = written(tmp_path, below("left.") | below("right.", 1))
    with pytest.raises(InputError, match=r"several trunks, below 'left\., right\.'"):
        read_trunk(path, arch="resnet10")


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet152"])
def test_a_wrong_architecture_is_told_in_five_lines(tmp_path, arch):
    path = written(tmp_path, below("module.some_project.online_branch.backbone."))
    result = run_main("adco/export.py", path, "o.pth", "--arch", arch, cwd=tmp_path)
    assert_refused(result, "missing: layer1.", "--arch")
    assert len(result.stderr) <= 500


def test_a_file_without_a_trunk_is_told_in_five_lines(tmp_path):
    vit = {f"module.blocks.{i}.attention.projection.weight": torch.ones(2) for i in range(300)}
    result = run_main("adco/export.py", written(tmp_path, vit), "o.pth", cwd=tmp_path)
    assert_refused(result, "no weights of a query encoder", "module.blocks.0")
    assert len(result.stderr) <= 500


@pytest.mark.parametrize("words", [[], ["--arch", "resnet50"]])
def test_an_architecture_that_nobody_has_names_those_there_are(tmp_path, words):
    path = written(tmp_path, {"arch": "convnext_tiny", "state_dict": weights()})
    result = run_main("adco/export.py", path, "o.pth", *words, cwd=tmp_path)
    assert_refused(result, "convnext_tiny", "resnet10, resnet18", "wide_resnet101_2")


def test_our_safetensors_are_read_with_architecture_and_stem(tmp_path):
    trunk = build_trunk("resnet10", "small").state_dict()
    state = {
        "arch": "resnet10",
        "epoch": 7,
        "config": json.dumps({"stem": "small"}),
        "state_dict": trunk,
    }
    words = (written(tmp_path, state), tmp_path / "encoder.bin", "--to", "safetensors")
    assert run_main("adco/export.py", *words, cwd=tmp_path).returncode == 0
    found = read_trunk(str(tmp_path / "encoder.bin"))
    assert (found.arch, found.stem, found.epoch, found.ours) == ("resnet10", "small", 7, True)
    assert torch.equal(found.build().conv1.weight, trunk["conv1.weight"])


def test_safetensors_of_other_programs_are_read_and_damaged_ones_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file(below("model."), path, {"format": "pt"})
    assert read_trunk(str(path), arch="resnet10").build()
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="damaged"):
        read_trunk(str(path), arch="resnet10")


@pytest.mark.parametrize("name", ["bn1.running_var", "layer4.0.conv2.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, name):
    broken = dict(weights())
    broken[name] = broken[name].clone()
    broken[name].view(-1)[0] = float("inf")
    broken["arch"] = "resnet10"
    result = run_main("adco/export.py", written(tmp_path, broken), "o.pth", cwd=tmp_path)
    assert_refused(result, "not finite", name)


# ---- files that torch will not open


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(2), np.int64(7), np.bool_(True)])
def test_numbers_of_numpy_are_read(tmp_path, number):
    torch.save({"arch": "resnet10", "acc": number}, tmp_path / "x.pth")
    assert checkpoint.load(tmp_path / "x.pth")["acc"] == number


def test_numbers_of_numpy_1_are_read(tmp_path):
    torch.save({"acc": np.float64(0.5)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "x.pth").read_bytes().replace(b"numpy._core", b"numpy.core")
    (tmp_path / "x.pth").write_bytes(data)
    assert checkpoint.load(tmp_path / "x.pth")["acc"] == 0.5


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"args": Namespace(lr=1)}, "argparse.Namespace"),
        ({"when": datetime.date(2020, 2, 2)}, "datetime.date"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_a_type_that_is_not_opened_is_named_with_the_way_out(tmp_path, content, name):
    path = written(tmp_path, content)
    result = run_main("adco/export.py", path, "o.pth", cwd=tmp_path)
    assert_refused(result, name, "weights_only=False", "state_dict alone")


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE html>\n<html><head><title>Quota exceeded</title>",
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a",
        "\u6587\u4ef6\u4e0d\u5b58\u5728" * 50,
    ],
)
def test_a_page_of_text_is_told_as_such(tmp_path, text):
    (tmp_path / "model.pth").write_text(text, encoding="utf-8")
    result = run_main("adco/export.py", "model.pth", "o.pth", cwd=tmp_path)
    assert_refused(result, "text that begins", text.split()[0][:30])


def test_a_head_and_a_bank_that_are_not_finite_are_refused():
    for module in (nn.Linear(3, 2), NegativeBank(4, 3)):
        state = {name: value.clone() for name, value in module.state_dict().items()}
        name = next(iter(state))
        state[name].view(-1)[1] = float("nan")
        with pytest.raises(InputError, match=f"not finite, in {name}"):
            checkpoint.load_strictly(module, state, "a file")
