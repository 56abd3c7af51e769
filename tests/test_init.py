"""A run that begins with the weights of a file (--init)."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from adco.encoder import build_encoder, build_trunk, read_trunk
from adco.pretrain.game import Game
from adco.pretrain.init import with_init_hash
from adco.pretrain.options import PretrainConfig
from adco.report.runs import read_run
from ops.arguments import parse
from ops.distributed import World
from ops.errors import InputError
from tests.support.scripts import TINY, assert_refused, pretrain, records, run_main

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory):
    """As torchvision and timm save it: names and numbers alone, with a classifier."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("init") / "trunk.pth"
    torch.save(build_trunk("resnet10").state_dict(), path)
    return path


def config_of(data, *words) -> PretrainConfig:
    return with_init_hash(parse(PretrainConfig, [*TINY, "--data", str(data), *map(str, words)]))


def game_of(*words) -> Game:
    return Game(config_of(*words).with_global_batch(1, 1), World(), CPU)


def test_both_encoders_begin_with_the_trunk_and_the_head_of_the_seed(digit_folder, trunk_file):
    plain, game = game_of(digit_folder), game_of(digit_folder, "--init", trunk_file)
    wanted, seeded = torch.load(trunk_file), plain.model.encoder_q.state_dict()
    for encoder in (game.model.encoder_q, game.model.encoder_k):
        for name, value in encoder.state_dict().items():
            source = seeded if name.startswith("fc.") else wanted
            assert torch.equal(value, source[name]), name
    assert torch.equal(game.bank.W, plain.bank.W)
    assert game.beginning == [
        f"both encoders begin with the resnet10 in {trunk_file}",
        "the projection head is fresh",
        "left out: fc (2 tensors)",
    ]


@pytest.mark.parametrize(("dim", "fits"), [(128, True), (64, False)])
def test_a_projection_head_is_taken_where_it_fits(digit_folder, tmp_path, dim, fits):
    weights = build_encoder("resnet10", dim, mlp=True).state_dict()
    state = {f"module.encoder_q.{name}": value for name, value in weights.items()}
    torch.save({"epoch": 7, "arch": "resnet10", "state_dict": state}, tmp_path / "moco.pth")
    game = game_of(digit_folder, "--init", tmp_path / "moco.pth")
    for encoder in (game.model.encoder_q, game.model.encoder_k):
        kept = encoder.state_dict()["fc.2.weight"]
        assert (kept.shape == weights["fc.2.weight"].shape) == fits
        assert torch.equal(kept, weights["fc.2.weight"]) == fits
    assert "after 7 epochs" in game.beginning[0]
    assert game.beginning[1].endswith("the file's too" if fits else "fresh")


def test_a_file_that_does_not_fit_is_refused(tmp_path, digit_folder, trunk_file):
    weights = torch.load(trunk_file)
    small = tmp_path / "small.pth"
    torch.save(build_trunk("resnet10", "small").state_dict(), small)
    torn = tmp_path / "torn.pth"
    torch.save({n: x for n, x in weights.items() if n != "bn1.weight"}, torn)
    named = tmp_path / "named.pth"
    torch.save({"arch": "resnet18", "state_dict": weights}, named)
    cases = [
        ([small], "of another shape: conv1.weight", "--stem"),
        ([torn], "missing: bn1.weight"),
        ([named], "--arch resnet18"),
        ([tmp_path / "gone.pth"], "gone.pth"),
        ([tmp_path / "gone.pth", "--resume", "auto"], "gone.pth"),
        ([trunk_file, "--resume", small], "leave --init out"),
        ([trunk_file, "--init_sha256", "0" * 64], "SHA-256"),
    ]
    for words, *expected in cases:
        words = [*TINY, "--data", digit_folder, "--init", *words]
        assert_refused(run_main("main_adco.py", *words, cwd=tmp_path), *expected)
    # Before the pictures are looked for.
    with pytest.raises(InputError, match="--stem"):
        config_of("nowhere", "--init", small)
    assert not (tmp_path / "train_log").exists()


def test_the_hash_decides_which_run_goes_on(tmp_path, digit_folder, trunk_file):
    first, moved = tmp_path / "first.pth", tmp_path / "moved.pth"
    shutil.copy(trunk_file, first)
    words = ["--epochs", 1, "--knn_freq", 0, "--ad_init", 0, "--resume", "auto", "--init"]

    def start(path) -> str:
        words_ = [*TINY, "--data", digit_folder, *words, path]
        result = run_main("main_adco.py", *words_, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    assert f"both encoders begin with the resnet10 in {first}" in start(first)
    first.rename(moved)
    for path in (moved, first):  # under another name; gone
        assert "resumed from" in start(path)
    torch.save(build_trunk("resnet10").state_dict(), first)
    said = start(first)
    assert "made otherwise (init_sha256" in said and "both encoders begin" in said


def test_a_small_stem_is_that_of_the_file_also_when_it_is_gone(tmp_path, digit_folder):
    file = tmp_path / "small.pth"
    torch.save({"stem": "small", "state_dict": build_trunk("resnet10", "small").state_dict()}, file)
    words = ["--recipe", "auto", "--resume", "auto", "--epochs", 1, "--knn_freq", 0, "--init", file]
    words = [*TINY, "--data", digit_folder, *words]
    assert run_main("main_adco.py", *words, cwd=tmp_path).returncode == 0
    file.unlink()
    again = run_main("main_adco.py", *words, cwd=tmp_path)
    assert "resumed from" in again.stdout, again.stderr


def test_a_run_begun_with_a_file_is_known_by_it_and_scores_its_trunk(
    tmp_path, digit_folder, trunk_file
):
    words = ["--init", trunk_file, "--knn_k", 5, "--epochs", 1]
    run = pretrain(tmp_path, digit_folder, *words)
    first = records(run, "knn")[0]
    kept = json.loads((run / "config.json").read_text())["config"]
    assert first["epoch"] == 0 and kept["init_sha256"] == read_trunk(trunk_file).sha256
    words = ["--dataset", "folder", "--data", digit_folder, "--pretrained", trunk_file, "-j", 0]
    words += ["--arch", "resnet10", "--image_size", 16, "--head", "knn", "--knn_k", 5]
    result = run_main("lincls.py", *words, cwd=tmp_path)
    (found,) = tmp_path.rglob("results.json")
    assert json.loads(found.read_text())["acc1"] == first["accuracy"], result.stdout
    assert "kNN accuracy, weights of --init" in read_run(run).scores()


def test_options_of_a_run_without_a_file_are_unchanged():
    config = PretrainConfig()
    assert with_init_hash(config) == config
    with pytest.raises(InputError, match="leave --init out"):
        replace(config, init="a", resume="b")
