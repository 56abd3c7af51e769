"""What adco.report says of a run."""

import json

import pytest

from adco.report import newest_run, table
from ops.errors import InputError


def scores(*epochs: int) -> dict[str, list[dict]]:
    return {"knn": [{"epoch": epoch, "accuracy": 70.0 + epoch} for epoch in epochs]}


@pytest.mark.parametrize(
    ("epochs", "random", "pretrained"), [((0, 1, 2), "70.0 %", "72.0 %"), ((1, 2), None, "72.0 %")]
)
def test_only_a_score_before_the_first_epoch_is_one_of_random_weights(
    tmp_path, epochs, random, pretrained
):
    rows = dict(row.split("  ", 1) for row in table(tmp_path, scores(*epochs)).splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows.get("kNN accuracy, random weights") == random
    assert rows["kNN accuracy, pre-trained"] == pretrained


def test_a_run_without_scores_is_told_without_them(tmp_path):
    assert "kNN" not in table(tmp_path, {})


def test_a_run_without_labels_is_told_by_the_rank_of_its_features(tmp_path):
    ranks = [{"epoch": 0, "rank": 3.0}, {"epoch": 1, "rank": 9.25}, {"epoch": 2, "rank": None}]
    said = table(tmp_path, {"rank": ranks})
    assert "effective rank, random weights  3.0\n" in said
    assert "effective rank, pre-trained     9.2\n" in said and "kNN" not in said


def test_runs_of_other_scripts_are_no_pretraining_runs(tmp_path):
    for name, options in (("pretrain", {"memory_lr": 3.0}), ("lincls", {"head": "knn"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"config": options}))
        (tmp_path / name / "metrics.jsonl").touch()
    assert newest_run(tmp_path) == tmp_path / "pretrain"
    with pytest.raises(InputError, match="no pre-training run"):
        newest_run(tmp_path / "lincls")
