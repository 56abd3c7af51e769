"""What a probe is trained and scored on: Places205, list files, parts of train, views, options."""

from itertools import chain
from math import cos, pi

import numpy as np
import pytest
import torch
from PIL import Image

from adco.data.datasets import share_of_each_class
from adco.data.list_files import load_places
from adco.data.loader import EpochBatches
from adco.data.pictures import ArrayPictures
from adco.probe.data import ProbeViews, load_probe_sets, probe_recipe, scoring_loader
from adco.probe.options import PROBE_PRESETS, ProbeConfig
from adco.probe.run import run
from ops.arguments import parse
from ops.distributed import World
from ops.errors import InputError
from tests.support.pictures import COLOURS, class_folders, paint, small_config, trunk_file
from tests.support.scripts import assert_refused, run_main

ROOT = "data/vision/torralba/deeplearning/images256"
LISTS = "trainvalsplit_places205"


def as_view(picture):
    """uint8 [3, H, W]"""
    return torch.tensor(np.asarray(picture)).permute(2, 0, 1)


def places(folder, train_lines=None):
    """Places205's layout with two pictures a class; some paths have spaces, some begin with /."""
    rng = np.random.default_rng(0)
    lines = {"train": [], "val": []}
    for label, colour in enumerate(COLOURS.values()):
        for split in lines:
            for i in range(2):
                name = f"{split}/a/living room {label}/picture {i}.jpg"
                paint(folder / ROOT / name, colour, rng, size=40)
                lines[split].append(f"{'/' if i else ''}{name} {label}")
    (folder / LISTS).mkdir()
    for split, text in lines.items():
        text = train_lines if train_lines is not None and split == "train" else text
        (folder / LISTS / f"{split}_places205.csv").write_text("\n".join(text) + "\n")
    return folder


# ---- Places205 and list files


def test_places_has_205_classes_and_reads_paths_with_spaces_or_a_leading_slash(tmp_path):
    splits = load_places(str(places(tmp_path)))
    assert len(splits.train.classes) == 205
    assert splits.val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert splits.train.read(1).shape == (40, 40, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../../../../../secret.jpg 3", "no picture inside the data folder"),
        ("/../x.jpg 3", "no picture inside the data folder"),
        ("a/b/../../../x.jpg 3", "no picture inside the data folder"),
        ("a/picture.jpg", "expected a path, a space and a label from 0 to 204"),
        ("a/picture.jpg 205", "expected a path, a space and a label from 0 to 204"),
        ("a/not there.jpg 3", r"1 of 1 pictures .* a/not there\.jpg"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, message):
    with pytest.raises(InputError, match=message):
        load_places(str(places(tmp_path, [line])))


@pytest.mark.parametrize("end", [" ", "\t", "  \r", "\t\r\n"])
def test_a_line_may_end_in_blanks(tmp_path, end):
    line = load_places(str(places(tmp_path))).train.file_names()[0] + " 7"
    assert load_places(str(places(tmp_path / "b", [line + end]))).train.labels.tolist() == [7]


def test_an_absolute_path_in_a_list_stays_below_the_pictures(tmp_path):
    outside = tmp_path / "outside.jpg"
    paint(outside, (1, 2, 3), np.random.default_rng(0))
    with pytest.raises(InputError, match="are not in"):
        load_places(str(places(tmp_path, [f"{outside} 1"])))


def test_places_without_its_layout_is_refused(tmp_path):
    with pytest.raises(InputError, match="no pictures of Places205"):
        load_places(str(tmp_path))


def test_places_is_scored_on_squares_of_its_pictures(tmp_path):
    config = small_config(tmp_path, "random", dataset="Place205", image_size=28)
    wide = np.zeros((10, 64, 3), np.uint8)
    wide[:, 32:] = 255  # half black, half white
    pictures = ArrayPictures(wide[None], [7])
    ((view,), label), *_ = scoring_loader(pictures, config, World())
    square = Image.fromarray(wide).resize((32, 32), Image.Resampling.BILINEAR)
    assert label.item() == 7
    assert torch.equal(view, as_view(square.crop((2, 2, 30, 30))))


def test_places_is_probed_from_end_to_end(tmp_path, capsys):
    trunk = trunk_file(tmp_path / "trunk.pth.tar")
    config = small_config(
        places(tmp_path), trunk, dataset="Place205", sgdr=1, lr=5.0, epochs=2, print_freq=1,
        batch_size=4,
    )  # fmt: skip
    run(config, World(), torch.device("cpu"))
    halfway = 2.5 * (1 + cos(pi * 0.5 / 12))
    output = capsys.readouterr().out
    assert "Epoch: [0][1/2]\tTime" in output and f"lr {halfway:.6g}\t" in output
    assert " * Acc@1 " in output and "of 6)" in output


# ---- parts of train


def test_a_share_of_train_has_that_share_of_each_class_and_at_least_one_picture():
    labels = np.repeat([0, 1, 2], [100, 30, 2])
    chosen = share_of_each_class(labels, 0.1, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [10, 3, 1]
    assert chosen.tolist() == share_of_each_class(labels, 0.1, seed=0).tolist()


def test_the_held_out_part_and_the_rest_make_up_train(tmp_path):
    config = small_config(class_folders(tmp_path), "random")
    sets = load_probe_sets(config, 0.25)
    together = sets.train.file_names() + sets.held_out.file_names()
    assert len(sets.train) == 18 and len(set(together)) == len(together) == 24
    assert np.bincount(sets.held_out.labels).tolist() == [2, 2, 2]


def test_a_train_list_takes_paths_and_bare_names(tmp_path):
    folder = class_folders(tmp_path / "pictures")
    (tmp_path / "list.txt").write_text("azure/azure_1.png\nred_2.png\ntrain/green/green_0.png\n")
    config = small_config(folder, "random", train_list=str(tmp_path / "list.txt"))
    assert load_probe_sets(config, 0).train.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("red/red_99.png", r"1 pictures .* red/red_99\.png"),
        ("../val/red/red_0.png", "inside the data folder"),
        (" ", "names no picture"),
    ],
)
def test_a_train_list_that_does_not_fit_is_refused(tmp_path, line, message):
    folder = class_folders(tmp_path / "pictures")
    (tmp_path / "list.txt").write_text(line + "\n")
    config = small_config(folder, "random", train_list=str(tmp_path / "list.txt"))
    with pytest.raises(InputError, match=message):
        load_probe_sets(config, 0)


def test_train_and_val_with_other_classes_are_refused(tmp_path):
    folder = class_folders(tmp_path)
    (folder / "val" / "red").rename(folder / "val" / "rot")
    with pytest.raises(InputError, match="only in one: red, rot"):
        load_probe_sets(small_config(folder, "random"), 0)


# ---- batches and views


def test_the_processes_share_out_every_batch_whatever_their_number():
    def steps(size):
        ranks = [list(EpochBatches(11, 4, World(r, size), seed=3)) for r in range(size)]
        return [list(chain(*parts)) for parts in zip(*ranks, strict=True)]

    assert steps(1) == steps(2) == steps(3)
    assert [len(step) for step in steps(1)] == [4, 4, 3]
    assert sorted(chain(*steps(1))) == [(0, index) for index in range(11)]


@pytest.mark.parametrize(("least", "sizes"), [(1, [4, 4, 3]), (2, [4, 4])])
def test_a_batch_that_gives_a_process_too_few_pictures_is_left_out(least, sizes):
    batches = EpochBatches(11, 4, World(1, 2), seed=3, least=least)
    assert batches.sizes == sizes and len(list(batches)) == len(sizes)


def test_an_epoch_without_a_batch_is_refused():
    with pytest.raises(InputError, match="3 pictures do not fill a batch of 2 for each of 2"):
        EpochBatches(3, 4, World(1, 2), seed=3, least=2)


def test_a_random_crop_shows_the_picture_at_full_resolution_and_pads_a_small_one():
    pixels = np.arange(20 * 20 * 3, dtype=np.uint8).reshape(1, 20, 20, 3)
    config = small_config(".", "random", randcrop=1, image_size=8, flip=0)
    views = ProbeViews(ArrayPictures(pixels, [0]), probe_recipe(config), True, 0)
    (view,), _ = views.__getitems__([(0, 0)])
    windows = [
        as_view(Image.fromarray(pixels[0, y : y + 8, x : x + 8]))
        for x in range(13)
        for y in range(13)
    ]
    assert sum(torch.equal(view, window) for window in windows) == 1

    # A small picture lies anywhere inside the window.
    config = small_config(".", "random", randcrop=1, image_size=31, flip=0)
    views = ProbeViews(ArrayPictures(pixels, [0]), probe_recipe(config), True, 0)
    places = set()
    for epoch in range(100):
        (view,), _ = views.__getitems__([(epoch, 0)])
        filled = view.sum(0) > 0
        rows, columns = filled.any(1).nonzero().flatten(), filled.any(0).nonzero().flatten()
        assert len(rows) >= 19 and len(columns) >= 19  # black at the edge of the picture itself
        places.add((int(rows[0]), int(columns[0])))
    assert {p[0] for p in places} == {p[1] for p in places} == set(range(12))


def test_strong_views_have_colour_and_blur_and_plain_ones_have_none():
    plain = probe_recipe(ProbeConfig(pretrained="random"))
    strong = probe_recipe(ProbeConfig(pretrained="random", train_strong=1))
    assert (plain.jitter_p, plain.gray_p, plain.blur_p, plain.min_scale) == (0, 0, 0, 0.08)
    assert (strong.jitter_p, strong.gray_p, strong.blur_p, strong.min_scale) == (0.8, 0.2, 0.5, 0.2)


# ---- learning rates and options


def test_sgdr_1_is_a_cosine_of_period_24_over_30_epochs():
    config = ProbeConfig(pretrained="random", epochs=30, sgdr=1)
    rates = [config.rate(e / 2, lr=5) for e in range(60)]
    assert rates == pytest.approx([2.5 * (1 + cos(pi * e / 24)) for e in range(60)])
    assert rates[24] == pytest.approx(0) and rates[48] == pytest.approx(5)


def test_sgdr_2_is_that_of_torch():
    from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

    config = ProbeConfig(pretrained="random", sgdr=2, sgdr_t0=3, sgdr_t_mult=2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5)
    theirs = CosineAnnealingWarmRestarts(optimizer, T_0=3, T_mult=2)
    for epoch in np.arange(0, 25, 0.25):
        theirs.step(epoch)
        assert config.rate(epoch, lr=5) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_the_published_schedules_hold_still_within_an_epoch():
    cosine = ProbeConfig(pretrained="random")
    assert cosine.rate(50.9, 10) == cosine.rate(50, 10) == pytest.approx(0.01 + 0.5 * 9.99)
    steps = ProbeConfig(pretrained="random", cos=0)
    rates = [steps.rate(epoch, 10) for epoch in (14.9, 15, 25, 30)]
    assert rates == pytest.approx([10, 1, 0.1, 0.01])


def test_the_published_commands_are_understood_in_both_spellings():
    first = parse(ProbeConfig, ["--data=d", "--dist-url=tcp://localhost:1", "--pretrained=x"])
    assert (first.lr, first.epochs, first.batch_size, first.weight_decay) == (10, 100, 256, 0)
    assert (first.final_lr, first.schedule, first.cos) == (0.01, (15, 25, 30), 1)
    second = parse(
        ProbeConfig, ["--dataset=Place205", "--sgdr=1", "--lr=5", "--pretrained", "x", "d"]
    )
    assert (second.sgdr, second.lr, second.data) == (1, 5, "d")
    assert parse(ProbeConfig, ["-e", "--resume", "x", "--sgdr-t0=3"]).evaluate == 1


def test_fine_tuning_and_small_data_sets_have_defaults_of_their_own_and_given_options_win():
    argv = ["--pretrained", "x", "--dataset", "digits", "--trainable", "all", "--epochs", "3"]
    config = parse(ProbeConfig, argv, PROBE_PRESETS)
    assert (config.lr, config.final_lr, config.image_size, config.epochs) == (0.5, 0, 28, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(), "nothing to score"),
        (dict(pretrained="x", lr_sweep=(1.0, 1.0)), "twice"),
        (dict(pretrained="x", lr_sweep=(1.0,), trainable="all"), "needs a frozen trunk"),
        (dict(pretrained="x", head="knn", evaluate=1), "trains no linear head"),
        (dict(pretrained="x", holdout=1.0), "holdout"),
        (dict(pretrained="x", train_fraction=0.0), "train_fraction"),
    ],
)
def test_options_that_cannot_work_together_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ProbeConfig(**options)


def test_a_file_that_is_no_checkpoint_ends_in_one_sentence_and_code_2(tmp_path):
    (tmp_path / "file.pth.tar").write_bytes(b"PK\x03\x04 cut off")
    argv = ["--dataset", "digits", "--pretrained", str(tmp_path / "file.pth.tar")]
    ended = run_main("lincls.py", *argv, cwd=tmp_path)
    assert_refused(ended, "lincls.py: error: ")
