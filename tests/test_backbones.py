"""Models of timm as backbones: trained, read again, scored, exported; and what is refused."""

import json
from functools import cache

import numpy as np
import pytest
import torch

import adco
from adco import export
from adco.encoder import Trunk, build_encoder, build_trunk, check_sides, read_trunk
from adco.probe.features import extract_features
from ops.checkpoint import with_module
from ops.errors import InputError
from tests.support.pictures import class_folders
from tests.support.scripts import assert_refused, run_main

timm = pytest.importorskip("timm")
VIT, CONVNEXT = "timm:test_vit", "timm:test_convnext"
RESNET, RESNET10 = "timm:resnet10t", "resnet10"


@cache
def model(arch: str, channels: int = 3) -> adco.AdCo:
    torch.manual_seed(0)
    return adco.AdCo(arch, dim=8, channels=channels).eval()


def saved(path, arch: str, **config) -> str:
    """A checkpoint of this program."""
    encoders = model(arch, config.get("channels", 3))
    state = {"arch": arch, "epoch": 3, "state_dict": with_module(encoders.state_dict())}
    torch.save({**state, "config": json.dumps({"image_size": 64, **config})}, path)
    return str(path)


def pictures(number: int = 3, channels: int = 3, side: int = 64) -> torch.Tensor:
    return torch.randn(number, channels, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(arch: str, channels: int = 3) -> torch.Tensor:
    return Trunk(model(arch, channels).encoder_q)(pictures(channels=channels))


@pytest.mark.parametrize("arch", [VIT, CONVNEXT, RESNET])
@pytest.mark.parametrize("kind", ["ours", "timm's, with a classifier", "DINO's"])
@torch.no_grad()
def test_a_trunk_of_timm_is_read_from_the_files_of_every_program(arch, kind, tmp_path):
    path = tmp_path / "file.pth"
    if kind == "ours":
        saved(path, arch)
    else:
        theirs = timm.create_model(arch.removeprefix("timm:")).state_dict()
        own = model(arch).encoder_q.trunk.state_dict()
        content = {**theirs, **own}
        if kind == "DINO's":
            both = {"student": "module.backbone.", "teacher": "backbone."}
            shift = {"student": 0, "teacher": 1}
            content = {w: {at + n: v + shift[w] for n, v in own.items()} for w, at in both.items()}
        torch.save(content, path)
    read = read_trunk(str(path), arch=arch)
    said = []
    read.tell_left_out(said.append)
    assert bool(read.classifier()) == (kind == "timm's, with a classifier")
    assert said  # the head, the key encoder, the teacher
    found = Trunk(read.build().eval())(pictures())
    torch.testing.assert_close(found, features(arch), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arch", "channels"), [(VIT, 5), (CONVNEXT, 3), (RESNET, 3), (RESNET10, 5)]
)
@torch.no_grad()
def test_exports_compute_the_same_features(arch, channels, tmp_path):
    source, batch = saved(tmp_path / "run.pth", arch, channels=channels), pictures(3, channels)
    expected = features(arch, channels)
    for to in ("safetensors", "timm", "hub"):
        assert export.main([source, str(tmp_path / to), "--to", to]) == 0

    hub = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    again = Trunk(read_trunk(str(tmp_path / "safetensors")).build().eval())
    name, layers = ("resnet18", {"layers": [1, 1, 1, 1]}) if arch == RESNET10 else (arch[5:], {})
    sizes = {"dynamic_img_size": True} if arch == VIT else {}
    plain = timm.create_model(
        name, num_classes=0, in_chans=channels, checkpoint_path=str(tmp_path / "timm"),
        **layers, **sizes,
    ).eval()  # fmt: skip
    for found in (hub(batch), again(batch), plain(batch)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_onnx_computes_the_same_features_for_any_number_of_pictures(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    out = tmp_path / "encoder.onnx"
    assert export.main([saved(tmp_path / "run.pth", VIT), str(out), "--to", "onnx"]) == 0
    session = ort.InferenceSession(str(out))
    for number in (1, 3):
        (found,) = session.run(None, {"pictures": pictures(3)[:number].numpy()})
        np.testing.assert_allclose(found, features(VIT)[:number], rtol=0, atol=1e-5)


def test_the_hub_folder_has_a_model_card(tmp_path, capsys):
    source = saved(tmp_path / "run.pth", VIT, lr=0.125)
    with pytest.raises(SystemExit) as stop:
        export.main([source, str(tmp_path / "hub"), "--to=hub", "--push=no one/at all"])
    assert stop.value.code == 70
    assert "NOT PUSHED as no one/at all" in capsys.readouterr().err
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "license: mit" in card and "lr: 0.125" in card and "**epoch:** 3" in card
    # What timm says of its own weights of that name is not said of these.
    about = json.loads((tmp_path / "hub" / "config.json").read_text())["pretrained_cfg"]
    assert (about["license"], about["paper_ids"], about["tag"]) == ("mit", "arXiv:2011.08435", "")
    assert not about.get("test_input_size") and about["crop_pct"] == 0.875
    files = {path.name for path in (tmp_path / "hub").iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors"}
    assert_refused(
        run_main("adco/export.py", source, "hub", "--to=hub", cwd=tmp_path),
        "is a folder; give the file to write",
    )


@pytest.mark.parametrize("to", ["torchvision", "detectron2"])
def test_a_model_of_timm_is_refused_where_only_resnets_are_taken(to, tmp_path):
    source = saved(tmp_path / "run.pth", VIT)
    assert_refused(run_main("adco/export.py", source, "out", "--to", to, cwd=tmp_path), "use --to")
    assert not (tmp_path / "out").exists()


def test_torch_hub_takes_every_architecture(tmp_path):
    for arch in (VIT, RESNET10):
        source = saved(tmp_path / "run.pth", arch)
        hub = torch.hub.load(str(export.Path(export.__file__).parents[1]), "adco_encoder",
                             source="local", weights=source)  # fmt: skip
        with torch.no_grad():
            torch.testing.assert_close(hub(pictures()), features(arch), rtol=0, atol=1e-6)


def test_unknown_names_and_sizes_are_one_sentence():
    with pytest.raises(InputError, match="try convnext_atto"):
        build_trunk("timm:convnext_ato")
    with pytest.raises(InputError, match="--stem imagenet"):
        build_trunk(VIT, "small")
    with pytest.raises(InputError, match="takes no pictures of 65 pixels"):
        check_sides(build_trunk(VIT), 3, [64, 65])


def test_a_batch_of_broken_pictures_has_no_features():
    encoder = model(VIT).encoder_q
    views = [(torch.zeros(n, 3, 64, 64, dtype=torch.uint8), torch.arange(n)) for n in (2, 0, 1)]
    found = extract_features(encoder, views, 4, unit=False)
    assert found.rows.shape == (3, encoder.inplanes) and found.labels.tolist() == [0, 1, 0]
    assert (found.rows[0] == found.rows[2]).all()


@pytest.mark.parametrize("name", ["edgenext_xx_small", "legacy_seresnet18"])
def test_nothing_in_a_backbone_draws_at_random(name):
    trunk = build_trunk(f"timm:{name}").train()
    rates = {"drop_path_rate": 0.1} if name == "edgenext_xx_small" else {}
    regularised = timm.create_model(name, num_classes=0, **rates)
    batch = pictures(2)
    assert torch.equal(trunk(batch), trunk(batch))
    assert not torch.equal(regularised(batch), regularised(batch))


def test_keys_are_shuffled_only_where_batchnorm_could_tell_them():
    for arch, shuffled in ((VIT, False), (RESNET, True)):
        encoders = model(arch)
        with torch.no_grad():
            (whole,), (parts,) = (encoders.embed_keys([pictures(4)], steps) for steps in (1, 2))
        torch.testing.assert_close(parts, whole)
        assert encoders.num_shuffles == shuffled


def test_the_head_is_as_wide_and_as_deep_as_told():
    head = build_encoder(RESNET10, 8, mlp=2, mlp_width=16, mlp_bn=True).fc
    names, shapes = [type(module).__name__ for module in head], [(16, 512), (16, 16), (8, 16)]
    assert names == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]
    assert [tuple(x.shape) for x in head.parameters() if x.ndim == 2] == shapes


def test_a_vit_is_trained_and_scored(tmp_path):
    class_folders(tmp_path / "data")
    words = ("--dataset=folder", "--data=data", "-j0", "--image_size=32", "-b8", "--epochs=1")
    run = (
        "--report_epochs=0",
        "--cluster=16",
        "--arch",
        VIT,
        "--optimizer=adamw",
        "--mlp=2",
        "--mlp_bn=1",
    )
    result = run_main("main_adco.py", *words, *run, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (last,) = tmp_path.rglob("checkpoint_last.pth.tar")
    for head in ("linear", "knn", "logistic"):
        run = ("--pretrained", last, "--head", head, "--knn_k", "5")
        result = run_main("lincls.py", *words, *run, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert VIT in result.stdout
