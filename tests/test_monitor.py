"""Scores of a run: by labels where there are some, by the rank of held-out features where not."""

import json
from io import BytesIO
from math import isnan

import numpy as np
import pytest
import torch
from PIL import Image

from adco.data.datasets import MOST_HELD_OUT, Splits, hold_out
from adco.data.pictures import ArrayPictures
from adco.pretrain.game import scored_by
from adco.pretrain.monitor import lie, spread
from adco.pretrain.options import DATASET_PRESETS, PRESETS, PretrainConfig
from adco.probe.features import effective_rank
from adco.report.__main__ import ReportConfig, report_run
from ops.arguments import parse
from ops.distributed import World
from ops.errors import InputError
from tests.support.gloo import in_processes
from tests.support.scripts import TINY, events_of, pretrain, records, run_main


def by_definition(rows) -> float:
    """As the paper has it, from the singular values."""
    values = np.linalg.svd(rows.double().numpy(), compute_uv=False)
    shares = values / values.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def test_the_effective_rank_is_that_of_the_paper():
    torch.manual_seed(0)
    rows = torch.relu(torch.randn(300, 40) @ torch.randn(40, 64))
    assert effective_rank(rows, World()) == pytest.approx(by_definition(rows), rel=1e-3)
    # All directions alike, a few of them, one, and none that can be told.
    assert effective_rank(torch.eye(16), World()) == pytest.approx(16)
    few = torch.eye(16)[:3].repeat(5, 1)
    assert effective_rank(few, World()) == pytest.approx(3, rel=1e-5)
    assert effective_rank(torch.ones(9, 16), World()) == pytest.approx(1, rel=1e-5)
    assert isnan(effective_rank(torch.tensor([[1.0, torch.nan]]), World()))


def rank_of_share(world, rows):
    return effective_rank(rows[world.rank :: world.size], world)


def test_processes_find_the_rank_of_all_features_together():
    torch.manual_seed(1)
    rows = torch.randn(33, 8)
    alone = effective_rank(rows, World())
    assert in_processes(rank_of_share, 2, rows) == pytest.approx([alone, alone], rel=1e-9)


def pictures(number: int, num_classes: int = 0) -> ArrayPictures:
    array = np.arange(number, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    labels = np.arange(number) % num_classes if num_classes else None
    return ArrayPictures(array, labels, [*"abcd"[:num_classes]])


def test_pictures_are_held_out_of_training_by_the_seed_and_of_each_class():
    splits = hold_out(Splits(pictures(80, 4), None, None), 0.25, seed=3)
    assert np.bincount(splits.val.labels).tolist() == [5] * 4 and splits.labelled is splits.train
    apart, rest = (part.positions.tolist() for part in (splits.val, splits.train))
    assert sorted(apart + rest) == [*range(80)]
    flat = [hold_out(Splits(pictures(80), None, None), 0.25, seed) for seed in (3, 3, 4)]
    chosen = [split.val.positions.tolist() for split in flat]
    assert chosen[0] == chosen[1] != chosen[2] and len(chosen[0]) == 20
    assert flat[0].labelled is None and len(flat[0].train) == 60


def test_no_more_are_held_out_than_a_score_needs():
    many = ArrayPictures(np.zeros((8 * MOST_HELD_OUT, 1, 1, 3), np.uint8))
    splits = hold_out(Splits(many, None, None), 0.5, seed=0)
    assert len(splits.val) == MOST_HELD_OUT


FOLDER = ["--dataset", "folder"]
LABELLED, FLAT = pictures(40, 4), pictures(40)


@pytest.mark.parametrize(
    ("splits", "words", "score", "num_train"),
    [
        (Splits(LABELLED, LABELLED, LABELLED), "", "knn", 40),
        (Splits(LABELLED, LABELLED, LABELLED), "--monitor rank", "rank", 40),
        (Splits(LABELLED, LABELLED, LABELLED), "--monitor none", "none", 40),
        (Splits(LABELLED, None, None), "", "knn", 36),
        (Splits(LABELLED, None, None), "--val_split 0", "none", 40),
        (Splits(LABELLED, None, None), "--knn_freq 0", "none", 40),
        (Splits(LABELLED, None, None), "--dataset ImageNet", "none", 40),
        (Splits(LABELLED, None, FLAT), "", "rank", 40),
        (Splits(FLAT, None, None), "", "rank", 36),
        (Splits(FLAT, None, FLAT), "", "rank", 40),
    ],
)
def test_the_data_set_decides_which_score_is_taken(splits, words, score, num_train):
    config = parse(PretrainConfig, FOLDER + words.split(), PRESETS)
    splits, found = scored_by(config, splits)
    assert found == score and len(splits.train) == num_train


@pytest.mark.parametrize(
    ("splits", "words", "remedy"),
    [
        (Splits(FLAT, None, None), "--monitor knn", "knn classes too"),
        (Splits(FLAT, None, None), "--monitor rank --val_split 0", "or --val_split 0.1"),
    ],
)
def test_a_score_that_cannot_be_taken_is_refused(splits, words, remedy):
    config = parse(PretrainConfig, FOLDER + words.split(), PRESETS)
    with pytest.raises(InputError, match=remedy):
        scored_by(config, splits)


@pytest.fixture(scope="module")
def flat(tmp_path_factory, digit_folder):
    folder = tmp_path_factory.mktemp("flat")
    for path in digit_folder.glob("train/*/*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_flat_folder_is_scored_by_the_rank_of_its_held_out_features(tmp_path, flat, capsys):
    words = ["--val_split", 0.2, "--save_freq", 1]
    run = pretrain(tmp_path, flat, *words)
    ranks = records(run, "rank")
    assert [record["epoch"] for record in ranks] == [0, 1, 2] and not records(run, "knn")
    # Ten pictures of 48 can lie in ten directions at most.
    assert all(1 < record["rank"] < 10 for record in ranks)
    state = torch.load(run / "checkpoint_best.pth.tar", weights_only=True)
    assert state["best_of"] == "rank"
    assert state["best_acc"] == max(record["rank"] for record in ranks[1:])
    data = json.loads((run / "config.json").read_text())["data"]
    assert [data[part]["pictures"] for part in ("train", "val")] == [38, 10]
    report_run(ReportConfig((str(run),)))
    assert "effective rank, pre-trained" in capsys.readouterr().out

    # The same command goes on; with another share it is another run, and the data are others.
    again = run_main(
        "main_adco.py", *TINY, "--data", flat, *words, "--resume", "auto", cwd=tmp_path
    )
    assert again.returncode == 0 and "resumed from" in again.stdout
    assert "a weaker sign than kNN accuracy" in again.stdout
    other = ["--val_split", 0.4, "--resume", "auto", "--dry_run", 1]
    other = run_main("main_adco.py", *TINY, "--data", flat, *other, cwd=tmp_path)
    assert (
        "val_split was 0.2, here it is 0.4" in other.stdout
        and "train was 38 pictures" in other.stdout
    )


def test_a_best_score_of_another_kind_is_not_compared(tmp_path, digit_folder):
    run = pretrain(tmp_path, digit_folder, "--epochs", 1, "--ad_init", 0)
    assert torch.load(run / "checkpoint_last.pth.tar", weights_only=True)["best_of"] == "knn"
    words = [*TINY, "--data", digit_folder, "--monitor", "rank", "--log_path", "other"]
    again = run_main(
        "main_adco.py", *words, "--resume", run / "checkpoint_best.pth.tar", cwd=tmp_path
    )
    assert "one of 'knn', not 'rank': void" in again.stderr, again.stderr
    (best,) = (tmp_path / "other").rglob("checkpoint_best.pth.tar")
    state = torch.load(best, weights_only=True)
    assert state["best_of"] == "rank" and state["best_acc"] > 0


def test_a_folder_of_classes_without_val_is_scored_by_knn(tmp_path, digit_folder):
    words = ["--val_split", 0.25, "--nproc", 2, "--epochs", 1, "--ad_init", 0]
    run = pretrain(tmp_path, digit_folder / "train", *words)
    assert [record["epoch"] for record in records(run, "knn")] == [0, 1]
    data = json.loads((run / "config.json").read_text())["data"]
    assert [data[part]["pictures"] for part in ("train", "val")] == [36, 12]


def test_data_sets_with_val_keep_all_their_pictures():
    assert PretrainConfig().val_split == 0
    assert {name for name, preset in DATASET_PRESETS.items() if "val_split" in preset} == {
        "folder",
        "tar",
    }


def unit(rows, dim: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim), dim=1)


def test_how_adversaries_lie_is_what_plain_loops_count():
    columns, images = unit(12, 4, 0), unit(9, 4, 1)
    columns[3] = columns[7]  # twins
    labels, tau = torch.arange(9) % 3, 0.1
    cosines = [float(a @ b) for i, a in enumerate(columns) for j, b in enumerate(columns) if i != j]
    near = [
        max(float(a @ b) for j, b in enumerate(columns) if i != j) for i, a in enumerate(columns)
    ]
    shares, among_keys = [], []
    for i, image in enumerate(images):
        weights = [np.exp(float(image @ column) / tau) for column in columns]
        owners = [max(range(9), key=lambda n: float(images[n] @ column)) for column in columns]
        same = [w for w, n in zip(weights, owners, strict=True) if labels[n] == labels[i]]
        shares.append(sum(same) / sum(weights))
        others = {n: np.exp(float(image @ images[n]) / tau) for n in range(9) if n != i}
        same = [w for n, w in others.items() if labels[n] == labels[i]]
        among_keys.append(sum(same) / sum(others.values()))

    found = lie(columns, images, labels, tau)
    assert found["cosine"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert found["twins"] == pytest.approx(np.mean([x > 0.95 for x in near])) and found["twins"] > 0
    assert found["same_class"] == pytest.approx(np.mean(shares), rel=1e-4)
    assert found["same_class_keys"] == pytest.approx(np.mean(among_keys), rel=1e-4)
    assert "same_class" not in lie(columns, images, None, tau)


def test_attention_is_spread_over_as_many_columns_as_share_it():
    attention = torch.zeros(50)
    attention[:8] = 3.0
    found = spread(attention)
    assert found["dead"] == pytest.approx(0.84) and found["effective"] == pytest.approx(8)
    assert spread(torch.ones(50)) == {"dead": 0, "effective": pytest.approx(50)}


def test_a_run_says_how_its_adversaries_lie(digit_folder, tmp_path):
    run = pretrain(tmp_path, digit_folder, "--epochs", "2", "--knn_freq", "1")
    pictures, adversaries = records(run, "embedding"), records(run, "adversaries")
    assert [record["epoch"] for record in pictures] == [0, 1, 2]
    assert [record["epoch"] for record in adversaries] == [1, 2]
    assert "turned" not in pictures[0] and all(record["turned"] > 0 for record in pictures[1:])
    assert all(record["effective"] > 1 for record in adversaries)
    assert all(-1 <= record["cosine"] <= 1 for record in adversaries)
    # In TensorBoard: how near they come to pictures, and what the encoder saw first.
    shown = [value for event in events_of(run) for value in event.summary.value]
    near = [value.histo for value in shown if value.tag == "adversaries/nearest"]
    (seen,) = (value.image for value in shown if value.tag == "views/pixels")
    assert [histogram.num for histogram in near] == [33, 33]
    picture = np.asarray(Image.open(BytesIO(seen.encoded_image_string)))
    assert picture.shape == (2 * 18 + 2, 8 * 18 + 2, 3) and picture.std() > 20


def test_a_look_changes_nothing(digit_folder, tmp_path):
    run = pretrain(tmp_path, digit_folder, "--epochs", 2, "--knn_freq", 1, "--mlp_bn", 1)
    state = torch.load(run / "checkpoint_last.pth.tar", weights_only=True)["state_dict"]
    counts = {int(x) for name, x in state.items() if "encoder_q" in name and "num_batches" in name}
    assert len(counts) == 1  # BatchNorm of the head has met the same batches as the trunk's
