"""--recipe auto: options that follow from the pictures, told, kept, and given ones that win."""

import json
from contextlib import nullcontext

import pytest
import torch

from adco.negatives import NegativeBank
from adco.pretrain.options import CHOSEN, PRESETS, PretrainConfig
from adco.pretrain.recipe import choices, with_recipe
from adco.pretrain.resume import check_kind
from ops import checkpoint
from ops.arguments import parse
from ops.distributed import World
from ops.errors import InputError
from tests.support.game import assert_same
from tests.support.pictures import class_folders
from tests.support.scripts import pretrain, run_main

SMALL = ("--dataset=folder", "--arch=resnet10", "--epochs=2", "-b8", "-j0", "--report_epochs=0")


def parsed(*words) -> PretrainConfig:
    config = parse(PretrainConfig, [str(word) for word in words], PRESETS)
    return config.with_global_batch(1, 1)


def chosen(config, num_pictures: int = 20_000, side: int = 300) -> dict:
    return {name: value for name, value, _ in choices(config, num_pictures, side)}


def test_imagenet_and_the_published_recipe_leave_nothing_to_be_chosen(tmp_path):
    published = PretrainConfig()
    for words in ([], ["--recipe", "published", "--dataset", "folder"]):
        config = parsed(*words)
        assert with_recipe(config, World()) == (config, None, [])
        for name in CHOSEN:
            assert getattr(config, name) == getattr(published, name), name
    # And the other way round.
    auto = parsed("--recipe", "auto")
    assert all(getattr(auto, name) is None for name in CHOSEN)


def test_choices_follow_from_size_number_batch_and_epochs():
    config = parsed("--dataset", "folder", "--epochs", 100)
    large, small = chosen(config), chosen(config, side=32)
    assert (large["image_size"], large["stem"], large["blur"]) == (224, "imagenet", 1)
    assert (small["image_size"], small["stem"], small["blur"]) == (32, "small", 0)
    timm = parsed("--dataset", "folder", "--arch", "timm:convnext_atto")
    assert chosen(timm, side=32)["stem"] == "imagenet"
    # The rate follows the batch, the key encoder the number of steps.
    small = chosen(parsed("--dataset", "folder", "-b", 32))  # those of the study
    assert (large["lr"], large["lr_final"], small["lr"]) == (0.06, 0.0006, 0.015)
    assert chosen(parsed("--dataset", "folder", "-b", 2))["lr_final"] < small["lr_final"]
    few = chosen(parsed("--dataset", "folder", "--epochs", 10))["moco_m"]
    many = chosen(parsed("--dataset", "folder", "--epochs", 1000))["moco_m"]
    assert 0.99 <= few < large["moco_m"] < many <= 0.999
    # Adversaries that are asked for have a bank of a size that follows the pictures.
    learned = parsed("--dataset", "folder", "--negatives", "learned")
    assert chosen(learned)["cluster"] == 1024 and chosen(learned, 200_000)["cluster"] == 16384
    assert chosen(learned, 450)["cluster"] == 256 and chosen(learned, 100)["cluster"] <= 100
    started = parsed("--dataset", "folder", "--negatives", "learned", "--init_steps", 9)
    assert chosen(learned)["adversaries_from"] > 0 == chosen(started)["adversaries_from"]
    assert chosen(learned)["memory_lr"] == "auto" and 0 < chosen(learned)["refresh"] < 256
    fixed = parsed("--dataset", "folder", "--ad_init", 0)
    assert chosen(fixed)["adversaries_from"] == 0


def test_choices_work_at_the_ends_of_what_there_is():
    one = parsed("--dataset", "folder", "--epochs", 1, "-b", 64)
    # A quarter of the run fills the bank; where there are too few steps, nothing plays.
    assert chosen(one, 512)["cluster"] == 128 and chosen(one, 100)["negatives"] == "batch"
    assert chosen(one, 1, side=1)["image_size"] == 16
    learned = parsed("--dataset", "folder", "--negatives", "learned")
    assert chosen(learned, 1)["cluster"] == 1
    vit = parsed("--dataset", "folder", "--arch", "timm:vit_tiny_patch16_224")
    sizes = {side: chosen(vit, side=side)["image_size"] for side in (5, 100, 250)}
    assert sizes == {5: 32, 100: 96, 250: 224}


def test_pictures_of_which_none_can_be_read_are_told_before_anything_else(tmp_path):
    class_folders(tmp_path / "data")
    config = parsed("--dataset", "folder", "--data", tmp_path / "data", "--channels", 5)
    with pytest.raises(InputError, match=r"none of the pictures .* not the 5 of --channels"):
        with_recipe(config, World())


def test_late_adversaries_begin_when_keys_have_filled_them_or_are_refused(digit_folder, tmp_path):
    words = ["--negatives", "learned", "--adversaries_from", 0.01, "--knn_freq", 0]
    (tmp_path / "run").mkdir()
    run = pretrain(tmp_path / "run", digit_folder, *words, "--cluster", 64, "--mem_wd", 0)
    begun, W = NegativeBank(64, 128).W, checkpoint.load(run / checkpoint.LAST)["Memory_Bank"]["W"]
    cosines = torch.nn.functional.cosine_similarity(begun, W, dim=0)
    assert cosines.abs().max() < 0.7  # no column is the random one any more
    ended = run_main(
        "main_adco.py", *SMALL, "--data", digit_folder, *words, "--cluster", 10**6, cwd=tmp_path
    )
    assert ended.returncode == 2 and "would never play in" in ended.stderr


def test_a_lazy_command_tells_and_keeps_what_was_chosen_and_goes_on(tmp_path):
    data = class_folders(tmp_path / "data")
    words = [*SMALL, "--data", data, "--lr", 0.01, "--resume", "auto"]
    ended = run_main("main_adco.py", *words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "recipe: --negatives " in ended.stdout and "recipe: --lr " not in ended.stdout
    (file,) = tmp_path.rglob("config.json")
    config = json.loads(file.read_text())["config"]
    assert config["lr"] == 0.01 and not any(config[name] is None for name in CHOSEN)
    again = run_main("main_adco.py", *words, cwd=tmp_path)
    assert "resumed from" in again.stdout


KINDS = {
    "queue": "--negatives queue",
    "simclr": "--negatives simclr",
    "late": "--negatives learned --memory_lr auto --refresh 2 --adversaries_from 0.5",
}


@pytest.mark.parametrize("words", KINDS.values(), ids=KINDS)
def test_every_kind_of_negatives_goes_on_to_the_same_numbers(words, digit_folder, tmp_path):
    words = [*words.split(), "--save_freq", 1, "--knn_freq", 0, "--amp", "none"]
    for name in ("whole", "again"):
        (tmp_path / name).mkdir()
    whole = pretrain(tmp_path / "whole", digit_folder, *words)
    resume = ["--resume", whole / "checkpoint_0000.pth.tar"]
    again = pretrain(tmp_path / "again", digit_folder, *words, *resume)
    ours, theirs = (checkpoint.load(run / checkpoint.LAST) for run in (whole, again))
    assert_same(theirs["state_dict"], ours["state_dict"])
    assert_same(theirs["Memory_Bank"], ours["Memory_Bank"])
    # Where a bank plays, it is no longer the random one.
    begun = NegativeBank(len(ours["Memory_Bank"]["W"].T), 128, seed=0).W
    assert torch.equal(begun, ours["Memory_Bank"]["W"]) == ("simclr" in words)


def test_a_data_sets_own_defaults_and_a_runs_file_win_over_the_recipe(tmp_path):
    cifar = parsed("--dataset", "cifar10", "--recipe", "published")
    assert (cifar.image_size, cifar.cluster) == (32, PretrainConfig().cluster)
    # A run of a version without recipes had the published numbers where its file says nothing.
    old = tmp_path / "config.json"
    old.write_text(
        json.dumps({"command": [], "config": {"dataset": "folder", "lr": 0.2, "stem": "small"}})
    )
    config = parsed("--config", old)
    assert (config.lr, config.stem, config.cluster) == (0.2, "small", PretrainConfig().cluster)
    assert config.recipe == "published"
    # What a recipe has chosen stays in the file's run, unless the recipe is asked again.
    run = dict(dataset="folder", recipe="auto", lr=0.01, cluster=32, refresh=2, mem_t=0.03)
    lines = [f"recipe: --{name} 1 (why)" for name in ("cluster", "refresh", "adversaries_from")]
    old.write_text(json.dumps({"recipe": lines, "config": {**run, "adversaries_from": 0.25}}))
    assert (parsed("--config", old).cluster, parsed("--config", old, "-b8").lr) == (32, 0.01)
    assert parsed("--config", old, "--recipe", "auto").cluster is None
    published = parsed("--config", old, "--recipe", "published")
    assert (published.cluster, published.adversaries_from, published.lr) == (65536, 0, 0.01)


def test_a_bank_is_not_taken_from_a_run_without_one():
    of_batch = {"config": json.dumps({"negatives": "batch"})}
    for kind, refused in (("batch", False), ("simclr", False), ("queue", True), ("learned", True)):
        with pytest.raises(InputError, match="has no bank") if refused else nullcontext():
            check_kind(of_batch, "file", parsed("--negatives", kind))
    check_kind({"config": "none"}, "of another program", parsed("--negatives", "batch"))
    with pytest.raises(InputError, match="has no bank"):
        check_kind({"Memory_Bank": {}}, "published", parsed("--negatives", "batch"))


def test_no_more_columns_are_refreshed_than_there_are_keys():
    config = parsed("--dataset", "digits", "-b", 8, "--refresh", 9)
    with pytest.raises(InputError, match="refresh=9"):
        config.images_per_process(1)
