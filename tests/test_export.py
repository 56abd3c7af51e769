"""Exports: the right names and arrays, equal outputs, and refusals that write nothing."""

import pickle
import pickletools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from adco import AdCo, export
from adco.encoder import Trunk, build_encoder, read_trunk
from ops.checkpoint import with_module
from tests.support.scripts import files_limited_to

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {1: 3, 2: 4, 3: 6, 4: 3}  # blocks of a ResNet-50
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def encoder():
    """A ResNet-50 with its head, whose BatchNorm has seen pictures."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet50", dim=8, mlp=True)
    with torch.no_grad():
        encoder.train()(torch.randn(4, 3, 64, 64))
    return encoder.eval()


@pytest.fixture(scope="module")
def source(encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "input.pth.tar"
    weights = {f"module.encoder_q.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({"epoch": 7, "arch": "resnet50", "state_dict": weights}, path)
    return path


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(encoder, pictures):
    return Trunk(encoder)(pictures)


def exported(source, to, *options):
    out = source.with_name(f"{to}{''.join(options)}.out")
    assert export.main([str(source), str(out), "--to", to, *options]) == 0
    return out


def assert_equal_outputs(exported, encoder, pictures):
    expected = features(encoder, pictures)
    torch.testing.assert_close(exported(pictures), expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_torchvision_computes_the_same_features(encoder, source, pictures):
    resnet = torchvision.models.resnet50()
    resnet.fc = nn.Identity()
    resnet.load_state_dict(torch.load(exported(source, "torchvision"), weights_only=True))
    assert_equal_outputs(resnet.eval(), encoder, pictures)


@torch.no_grad()
def test_timm_computes_the_same_features(encoder, source, pictures):
    timm = pytest.importorskip("timm")
    path = str(exported(source, "timm"))
    resnet = timm.create_model("resnet50", num_classes=0, checkpoint_path=path)
    assert_equal_outputs(resnet.eval(), encoder, pictures)


@torch.no_grad()
def test_safetensors_give_the_same_features(encoder, source, pictures):
    from safetensors.torch import load_file

    resnet = torchvision.models.resnet50()
    resnet.fc = nn.Identity()
    resnet.load_state_dict(load_file(exported(source, "safetensors")))
    assert_equal_outputs(resnet.eval(), encoder, pictures)


@torch.no_grad()
def test_torch_hub_gives_the_same_features(encoder, source, pictures):
    hub = torch.hub.load(str(ROOT), "adco_resnet50", source="local", weights=str(source))
    assert_equal_outputs(hub, encoder, pictures)


def test_the_safetensors_header_says_what_the_weights_are(source):
    from safetensors import safe_open

    with safe_open(exported(source, "safetensors"), "pt") as file:
        header = file.metadata()
    assert (header["arch"], header["epoch"]) == ("resnet50", "7")
    assert header["commit"] and header["licence"]


def expected_names() -> dict[str, str]:
    """detectron2's names of a ResNet-50 trunk -> torchvision's, by rule."""

    def norm(theirs, ours):
        return {f"{theirs}.{leaf}": f"{ours}.{leaf}" for leaf in NORM}

    names = {"stem.conv1.weight": "conv1.weight", **norm("stem.conv1.norm", "bn1")}
    for layer, blocks in LAYERS.items():
        for block in range(blocks):
            theirs, ours = f"res{layer + 1}.{block}", f"layer{layer}.{block}"
            for i in (1, 2, 3):
                names[f"{theirs}.conv{i}.weight"] = f"{ours}.conv{i}.weight"
                names |= norm(f"{theirs}.conv{i}.norm", f"{ours}.bn{i}")
        first, ours = f"res{layer + 1}.0", f"layer{layer}.0.downsample"
        names[f"{first}.shortcut.weight"] = f"{ours}.0.weight"
        names |= norm(f"{first}.shortcut.norm", f"{ours}.1")
    return names


@pytest.fixture(scope="module", params=["root", "folder"])
def converted(request, source):
    """What the published command writes, run from the root and from inside detection/."""
    out = source.with_name(f"{request.param}.pkl")
    folder = ROOT if request.param == "root" else ROOT / "detection"
    script = ROOT / "detection" / "convert-pretrain-to-detectron2.py"
    subprocess.run(
        [sys.executable, script.relative_to(folder), source, out], cwd=folder, check=True
    )
    return pickle.loads(out.read_bytes())


def test_the_converter_writes_detectron2s_names(converted):
    assert set(converted["model"]) == set(expected_names())
    assert (converted["__author__"], converted["matching_heuristics"]) == ("AdCo", True)


def test_the_converter_keeps_every_array(converted, encoder):
    weights = encoder.state_dict()
    for theirs, ours in expected_names().items():
        array = converted["model"][theirs]
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, weights[ours].numpy(), err_msg=theirs)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint of this program with a resnet10 for small pictures."""
    model = AdCo("resnet10", dim=8, stem="small")
    torch.nn.init.ones_(model.encoder_k.bn1.bias)
    path = tmp_path_factory.mktemp("small") / "small.pth.tar"
    config, state = '{"stem": "small"}', with_module(model.state_dict())
    torch.save({"epoch": 1, "arch": "resnet10", "state_dict": state, "config": config}, path)
    return path


def refusal(capsys, *arguments) -> str:
    """The one line on stderr of an export that ends with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        export.main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_stem_for_small_pictures_is_refused_where_nobody_could_load_it(small, capsys):
    out = small.with_name("out")
    assert "--to safetensors" in refusal(capsys, small, out, "--to=detectron2")
    assert not out.exists()


def test_the_key_encoder_is_exported_on_demand(small):
    from safetensors.torch import load_file

    weights = load_file(exported(small, "safetensors", "--encoder=key"))
    assert torch.equal(weights["bn1.bias"], torch.ones(64))


def test_a_checkpoint_of_this_program_carries_its_licence_and_stem(small):
    from safetensors import safe_open

    with safe_open(exported(small, "safetensors"), "pt") as file:
        header = file.metadata()
    assert (header["licence"], header["stem"]) == ("MIT", "small")


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_an_encoder_of_more_channels_is_read_again_and_refused_where_nobody_could(
    stem, tmp_path, capsys
):
    model = AdCo("resnet10", dim=8, stem=stem, channels=5)
    (embedded,) = model([torch.randn(2, 5, 32, 32)])
    assert embedded.shape == (2, 8)
    source = tmp_path / "five.pth.tar"
    config = f'{{"stem": "{stem}", "channels": 5}}'
    state = {"arch": "resnet10", "state_dict": with_module(model.state_dict()), "config": config}
    torch.save(state, source)
    read = read_trunk(str(exported(source, "safetensors")))
    assert (read.channels, read.stem) == (5, stem)
    assert torch.equal(read.build().conv1.weight, model.encoder_q.conv1.weight)
    assert "use --to" in refusal(capsys, source, tmp_path / "out", "--to=torchvision")


def test_a_wrong_architecture_is_one_line_and_exit_code_2(source, capsys):
    out = source.with_name("out")
    assert "--arch resnet50" in refusal(capsys, source, out, "--arch=resnet18")


def test_no_checkpoint_is_one_line_and_exit_code_2(tmp_path, capsys):
    path = tmp_path / "notes.txt"
    path.write_text("weights follow")
    assert "no checkpoint" in refusal(capsys, path, tmp_path / "out")


def test_a_folder_that_does_not_exist_is_one_line_and_exit_code_2(source, tmp_path, capsys):
    assert "does not exist" in refusal(capsys, source, tmp_path / "none" / "out")


HUB = """
import sys
import torch
{before}
torch.hub.load({root!r}, "adco_resnet50", source="local", weights={weights!r})
{after}
import ops
assert ops.theirs == 3, ops
assert "adco" not in sys.modules and {root!r} not in sys.path
files = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
assert not [name for name in files if name.startswith(({root!r} + "/ops", {root!r} + "/adco"))]
"""


@pytest.mark.parametrize("first", ["import ops.inner; held = ops", ""])
def test_torch_hub_leaves_the_users_own_modules_alone(source, tmp_path, first):
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "__init__.py").write_text("theirs = 3\n")
    (tmp_path / "ops" / "inner.py").write_text("")
    after = 'assert sys.modules["ops"] is held' if first else "import ops.inner"
    code = HUB.format(before=first, after=after, root=str(ROOT), weights=str(source))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_the_detectron2_pickle_has_public_names_and_writable_arrays(source):
    data = exported(source, "detectron2").read_bytes()
    strings, named = [], set()
    for code, argument, _ in pickletools.genops(data):
        assert code.proto <= 4
        strings += [argument] * isinstance(argument, str)
        if code.name == "STACK_GLOBAL":
            named.add(".".join(strings[-2:]))
    assert "numpy.ndarray" in named
    arrays = pickle.loads(data)["model"].values()
    assert all(type(array) is np.ndarray and array.flags.writeable for array in arrays)
    assert not any("core" in name for name in named | set(strings)), named


def test_a_folder_in_place_of_the_file_is_one_line_and_exit_code_2(source, tmp_path, capsys):
    assert "is a folder; give the file" in refusal(capsys, source, tmp_path)


def test_a_full_disk_is_one_line_and_leaves_nothing(small, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop, files_limited_to(1000):
        export.main([str(small), str(tmp_path / "out"), "--to", "safetensors"])
    assert stop.value.code == 70
    assert "NOT SAVED" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
