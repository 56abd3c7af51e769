"""The probe's scores, its frozen trunk, its heads side by side, and its checkpoints."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adco.encoder import build_trunk, read_trunk
from adco.probe import logistic
from adco.probe.data import ProbeRun, load_probe_sets
from adco.probe.features import Features, directions
from adco.probe.knn import knn_accuracies
from adco.probe.linear import HeadTraining
from adco.probe.metrics import Accuracy, accuracies, count_right
from adco.probe.run import run
from ops import checkpoint
from ops.distributed import World
from ops.errors import InputError
from ops.journal import Journal
from ops.launch import launch
from tests.support.pictures import class_folders, run_each, run_folder, small_config, trunk_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = class_folders(tmp_path_factory.mktemp("colours"))
    return folder, trunk_file(folder / "trunk.pth.tar")


def results(config):
    return json.loads((run_folder(config) / "results.json").read_text())


def head_training(config):
    """The heads of a probe before the first epoch, and the trunk below them."""
    return HeadTraining(
        ProbeRun(
            config=config,
            encoder=read_trunk(config.pretrained).build(),
            sets=load_probe_sets(config, config.holdout),
            world=World(),
            device=CPU,
            journal=Journal(None),
        )
    )


def trained_heads(config):
    """The heads after a run, [heads, classes, d]."""
    probe = head_training(config)
    probe.start_training()
    while probe.epoch < config.epochs:
        probe.train_epoch()
    return torch.stack([head.weight.detach() for head in probe.model.heads])


def separable(num_classes=4, each=15, d=6):
    """Features of one direction a class, with little noise: any classifier reaches 100 %."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), each)
    rows = np.eye(num_classes, d)[labels] + 0.05 * rng.standard_normal((len(labels), d))
    return Features(directions(torch.tensor(rows)), torch.tensor(labels))


# ---- known answers


@pytest.mark.parametrize("head", ["linear", "knn", "logistic"])
def test_classes_of_one_colour_each_are_told_apart_completely(pictures, tmp_path, head):
    folder, trunk = pictures
    config = small_config(folder, trunk, head=head, knn_k=(3,), epochs=6, save_path=str(tmp_path))
    run(config, World(), CPU)
    found = results(config)
    assert (found["right1"], found["total"]) == (15, 15)


def test_a_separable_set_of_features_reaches_all_right_by_knn_and_logistic():
    features = separable()
    assert knn_accuracies([features], features, 4, (5,), 0.07, World())[0].right1 == 60
    classifier = logistic.zeros(4, features.rows)
    logistic.fit_(classifier, [features], 100.0, World())
    assert logistic.accuracy(classifier, features, World()).right1 == 60


def test_the_logistic_regression_is_that_of_scikit_learn(monkeypatch):
    from sklearn.linear_model import LogisticRegression

    monkeypatch.setattr("adco.probe.features.BLOCK", 16)
    rng = np.random.default_rng(1)
    rows, labels = rng.standard_normal((90, 5)), rng.integers(0, 3, 90)
    theirs = LogisticRegression(C=0.7, tol=1e-8, max_iter=2000).fit(rows, labels)
    rows, labels = torch.tensor(rows), torch.tensor(labels)
    shares = [Features(rows[part], labels[part]) for part in (slice(50), slice(50, 90), slice(0))]
    ours, at_once = logistic.zeros(3, rows), []
    ours.register_forward_pre_hook(lambda _, inputs: at_once.append(len(inputs[0])))
    logistic.fit_(ours, shares, 0.7, World())
    assert max(at_once) == 16  # the scores of all would not fit into memory
    np.testing.assert_allclose(ours.weight.detach(), theirs.coef_, atol=1e-4)


def test_counts_hold_for_fewer_than_five_classes_and_for_scores_that_are_no_numbers():
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0], [float("nan"), 0.0, 0.0]])
    counts = count_right(scores, torch.tensor([0, 0, 0]))
    assert accuracies(counts[None], World()) == [Accuracy(right1=1, right5=2, total=3)]


# ---- the trunk, and heads side by side


def test_the_trunk_is_equal_bit_by_bit_after_a_probe(pictures, tmp_path):
    folder, trunk = pictures
    config = small_config(folder, trunk, save_path=str(tmp_path))
    run(config, World(), CPU)
    after = read_trunk(str(run_folder(config) / "checkpoint.pth.tar")).weights
    before = read_trunk(trunk).weights
    assert before.keys() == after.keys() and any("running_mean" in name for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_trunk_that_moved_is_an_error(pictures):
    folder, trunk = pictures
    probe = head_training(small_config(folder, trunk))
    probe.encoder.layer1[0].bn1.running_mean[0] += 1e-6
    with pytest.raises(RuntimeError, match=r"layer1\.0\.bn1\.running_mean"):
        probe.check_trunk_is_unmoved()


class NoDoubles(TorchDispatchMode):
    """Raises where a number is float64, as MPS does."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        found = function(*arguments, **(keywords or {}))
        assert all(getattr(x, "dtype", None) != torch.float64 for x in tree_leaves(found)), function
        return found


@pytest.mark.parametrize("trainable", ["fc", "all"])
def test_heads_train_where_there_is_no_float64(pictures, trainable):
    folder, trunk = pictures
    probe = head_training(small_config(folder, trunk, trainable=trainable))
    with pytest.raises(AssertionError), NoDoubles():
        torch.zeros(1).double()
    with NoDoubles():
        probe.start_training()
        probe.train_epoch()
        assert probe.score(probe.sets.val, "val")[0].total == 15


def test_ten_heads_in_one_pass_equal_runs_of_their_own(pictures):
    folder, trunk = pictures
    lrs = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
    config = small_config(folder, trunk, dropout=0.2)
    together = trained_heads(replace(config, lr_sweep=lrs))
    for lr, head in zip(lrs, together, strict=True):
        torch.testing.assert_close(
            head, trained_heads(replace(config, lr=lr))[0], atol=1e-5, rtol=1e-5
        )
    assert (together[0] - together[1]).abs().max() > 1e-3


# ---- processes


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory):
    """Results of every protocol with 1, 2 and 3 processes; no batch divides the 21 val pictures."""
    home = tmp_path_factory.mktemp("processes")
    folder = class_folders(home / "pictures", num_train=9, num_val=7, noise=250)
    trunk = trunk_file(home / "trunk.pth.tar")
    first = small_config(folder, trunk, epochs=1, lr=0.02, save_path=str(home / "head"))
    run(first, World(), CPU)
    head = str(run_folder(first) / "checkpoint.pth.tar")
    protocols = {
        "evaluate": dict(resume=head, evaluate=1),
        "knn": dict(head="knn", knn_k=(2, 4), holdout=0.2),
        "logistic": dict(head="logistic"),
        "linear": dict(lr_sweep=(0.3, 1.0)),
        "finetune": dict(trainable="all", lr=0.1, final_lr=0.0, epochs=1),
    }
    found = {}
    for nproc in (1, 3):
        configs = {
            name: small_config(
                folder, trunk, batch_size=8, nproc=nproc, save_path=str(home / name), **options
            )
            for name, options in protocols.items()
        }
        assert launch(partial(run_each, list(configs.values())), configs["knn"]) == 0
        found[nproc] = {
            name: (results(config), run_folder(config)) for name, config in configs.items()
        }
    return found


@pytest.mark.parametrize("protocol", ["evaluate", "knn", "logistic"])
def test_one_and_three_processes_count_the_same_right_pictures(by_processes, protocol):
    counts = [
        [by_processes[nproc][protocol][0][name] for name in ("right1", "right5", "total")]
        for nproc in (1, 3)
    ]
    assert counts[0] == counts[1]
    assert counts[0][2] == 21 and 0 < counts[0][0] < 21


def test_several_processes_train_the_heads_that_one_trains(by_processes):
    one, several = (
        checkpoint.load(by_processes[n]["linear"][1] / "checkpoint.pth.tar")["heads"]
        for n in (1, 3)
    )
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("nproc", [1, 3])
def test_fine_tuning_moves_the_trunk_at_its_own_rate(by_processes, nproc):
    _, folder = by_processes[nproc]["finetune"]
    state = checkpoint.load(folder / "checkpoint.pth.tar")
    assert [group["lr"] for group in state["optimizer"]["param_groups"]] == [0.1, 0.01]
    before = read_trunk(by_processes[1]["knn"][0]["checkpoint"]).weights
    after = read_trunk(str(folder / "checkpoint.pth.tar")).weights
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert not torch.equal(before["bn1.running_mean"], after["bn1.running_mean"])


# ---- checkpoints and results


def test_a_probe_that_goes_on_ends_where_an_unbroken_one_does(pictures, tmp_path):
    folder, trunk = pictures
    options = dict(epochs=4, lr_sweep=(0.3, 1.0), dropout=0.3, holdout=0.25)
    whole = small_config(folder, trunk, **options, save_path=str(tmp_path / "whole"))
    run(whole, World(), CPU)
    last = checkpoint.load(run_folder(whole) / "checkpoint.pth.tar")
    rest = replace(
        whole, resume=str(run_folder(whole) / "model_1.pth.tar"), save_path=str(tmp_path / "rest")
    )
    run(rest, World(), CPU)
    again = checkpoint.load(run_folder(rest) / "checkpoint.pth.tar")
    assert all(torch.equal(last["heads"][name], again["heads"][name]) for name in last["heads"])
    assert results(whole)["chosen"] == results(rest)["chosen"]


def test_checkpoints_have_the_published_names_and_keys(pictures, tmp_path):
    folder, trunk = pictures
    config = small_config(folder, trunk, epochs=22, train_fraction=0.2, save_path=str(tmp_path))
    run(config, World(), CPU)
    names = sorted(p.name for p in run_folder(config).glob("*.pth.tar"))
    kept = [f"model_{epoch}.pth.tar" for epoch in range(2, 22)]
    assert names == sorted(["checkpoint.pth.tar", "model_best.pth.tar", *kept])
    state = checkpoint.load(run_folder(config) / "model_best.pth.tar")
    assert {"epoch", "arch", "state_dict", "best_acc1", "optimizer"} <= state.keys()
    assert state["state_dict"]["module.fc.weight"].shape == (3, 512)


def test_a_saved_head_scores_again_what_it_scored(pictures, tmp_path):
    folder, trunk = pictures
    config = small_config(folder, trunk, epochs=1, lr=0.02, save_path=str(tmp_path))
    run(config, World(), CPU)
    trained, file = results(config), str(run_folder(config) / "model_best.pth.tar")
    run(replace(config, pretrained="", resume=file, evaluate=1), World(), CPU)
    assert results(config)["protocol"] == "linear head as saved"
    assert results(config)["right1"] == trained["right1"]


def test_evaluating_a_file_without_a_classifier_warns_and_scores_a_fresh_one(pictures, capsys):
    folder, trunk = pictures
    run(small_config(folder, trunk, evaluate=1), World(), CPU)
    output = capsys.readouterr()
    assert "holds no classifier" in output.err and " * Acc@1 " in output.out


def test_results_name_score_choice_configuration_checkpoint_and_commit(pictures, tmp_path):
    folder, trunk = pictures
    config = small_config(
        folder, trunk, lr_sweep=(0.02, 1.0), holdout=0.25, epochs=1, save_path=str(tmp_path)
    )
    run(config, World(), CPU)
    found = results(config)
    assert len(found["checkpoint_sha256"]) == 64 and "commit" in found
    assert found["config"]["arch"] == "resnet10" and found["dataset"] == "folder"
    assert found["chosen"]["lr"] in (0.02, 1.0) and len(found["table"]) == 2
    assert found["chosen_on"].startswith("a held-out part of train") and found["total"] == 15


def test_without_a_holdout_the_output_says_that_the_choice_was_made_on_val(
    pictures, tmp_path, capsys
):
    folder, trunk = pictures
    run(small_config(folder, trunk, epochs=1, save_path=str(tmp_path)), World(), CPU)
    assert "chosen on val, as published" in capsys.readouterr().out


def test_neighbours_that_are_not_there_are_told_once(pictures, tmp_path, capsys):
    folder, trunk = pictures
    config = small_config(folder, trunk, head="knn", knn_k=(3, 25, 99), save_path=str(tmp_path))
    run(config, World(), CPU)
    assert capsys.readouterr().err.count("k 99 is above the 24 training pictures") == 1


# ---- bad input


def test_a_head_for_other_classes_is_refused(pictures, tmp_path):
    folder, _ = pictures
    file = tmp_path / "imagenet.pth"
    checkpoint.save(build_trunk("resnet10").state_dict(), file)
    with pytest.raises(InputError, match=r"the 3 classes .*of another shape: bias, weight"):
        run(
            small_config(folder, str(file), evaluate=1, arch="resnet10", save_path=str(tmp_path)),
            World(),
            CPU,
        )


def test_a_folder_without_labels_is_refused(pictures, tmp_path):
    (tmp_path / "flat").mkdir()
    folder, trunk = pictures
    for path in (folder / "train" / "red").iterdir():
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="has no labels to score with"):
        run(small_config(tmp_path / "flat", trunk), World(), CPU)
