"""What adco.report says of runs: which ones it finds, what is wrong with them, and its pages."""

import json
import re
from math import exp
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.preprocessing import normalize

from adco.pretrain.options import PretrainConfig
from adco.pretrain.saving import Reports
from adco.report import embedded, newest_run
from adco.report.__main__ import main, table
from adco.report.diagnosis import diagnose
from adco.report.embedded import attention, nearest, shares
from adco.report.pages import grouped, varying
from adco.report.runs import Run, probe_scores, read_run, runs_below
from ops.errors import InputError
from tests.support.scripts import pretrain, records, run_main

HEALTHY = dict(
    loss=1.5, mass=0.4, top1=0.8, spread=0.9, grad_norm=1.0, dropped=0.0, data_share=0.02,
    bank_norm=1.0, lr=0.03,
)  # fmt: skip
DATA = {"pictures": 4000, "sha256": "0"}


def train_records(count: int = 24, **last) -> list[dict]:
    """Of a healthy run, whose loss falls early; in the last third as given."""
    falling = [{**HEALTHY, "loss": 1.5 + 2 * exp(-i / 4), "step": 10 * i} for i in range(count)]
    return [r | last if i >= 2 * count // 3 else r for i, r in enumerate(falling)]


def run_with(records: dict[str, list[dict]], folder: Path = Path("run"), **options) -> Run:
    options = {**vars(PretrainConfig(cluster=1024)), "global_batch_size": 128, **options}
    return Run(folder, {"config": options, "data": {"train": DATA}}, records)


def write_run(folder: Path, options: dict, *lines: dict) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": options}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


# ---- which runs


def test_the_newest_run_is_a_pretraining_that_took_a_step(tmp_path):
    step = {"kind": "train", "step": 1}
    good = write_run(tmp_path / "good", {"memory_lr": 3.0}, step)
    write_run(tmp_path / "probe", {"head": "knn"}, step)
    write_run(tmp_path / "failed", {"memory_lr": 3.0})
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/config.json").write_text("{")
    assert newest_run(tmp_path) == good
    assert [run.folder for run in runs_below(tmp_path / "failed")] == [tmp_path / "failed"]
    with pytest.raises(InputError, match="no pre-training run"):
        newest_run(tmp_path / "probe")
    # What is a run, but cannot be read, is named.
    for folder, name in (("torn", r"torn/config.json: "), ("good", "no config.json beside .*good")):
        (tmp_path / "good/config.json").unlink(missing_ok=True)
        with pytest.raises(InputError, match=f"Cannot be read: .*{name}"):
            runs_below(tmp_path / folder)


def test_half_a_line_of_a_run_that_goes_on_is_passed_over(tmp_path):
    run = write_run(tmp_path / "run", {"memory_lr": 3.0}, {"kind": "train", "step": 1})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"kind": "train"}\n{"kind": "tra')
    assert read_run(run).records == {"train": [{"kind": "train", "step": 1}]}


@pytest.mark.parametrize(
    ("steps", "random", "last"), [((0, 9, 18), "70.0 %", "88.0 %"), ((9, 18), None, "88.0 %")]
)
def test_only_a_score_before_the_first_step_is_one_of_random_weights(steps, random, last):
    found = [{"step": step, "epoch": step // 9, "accuracy": 70.0 + step} for step in steps]
    scores = run_with({"knn": found}).scores()
    assert scores.get("kNN accuracy, random weights") == random
    assert scores["kNN accuracy, pre-trained"] == last
    ranks = [{"step": 0, "rank": 3.0}, {"step": 1, "rank": 9.25}, {"step": 2, "rank": None}]
    said = table(run_with({"rank": ranks}), {})
    assert "effective rank, random weights  3.0\n" in said and "kNN" not in said
    assert "effective rank, pre-trained     9.2\n" in said


def test_probes_are_told_of_the_run_whose_checkpoint_they_scored(tmp_path):
    for name, score in (("a", {"acc1": 61.0}), ("b", {"map": 40.0}), ("other", {"acc1": 9.0})):
        (tmp_path / name).mkdir()
        of = "elsewhere/2026/last.pth.tar" if name != "other" else "x/y.pth"
        result = {"protocol": name, "dataset": "set", "checkpoint": of, **score}
        (tmp_path / name / "results.json").write_text(json.dumps(result))
    (tmp_path / "results.json").write_text("{}")
    found = probe_scores(tmp_path, run_with({}, Path("runs/2026")))
    assert found == {"a on set, acc1": 61.0, "b on set, map": 40.0}


def test_runs_that_differ_in_the_seed_alone_are_one_row():
    def scored(value: float, **options) -> Run:
        return run_with({"knn": [{"step": 1, "accuracy": value}]}, Path(f"{value}"), **options)

    runs = [scored(60.0, seed=0), scored(70.0, seed=1, workers=2), scored(50.0, mem_t=0.2)]
    assert varying(runs) == ["mem_t"]
    # A run that is not at its end, or of other pictures, is another row; no score is that of a run
    # without a step.
    runs += [scored(40.0), scored(30.0, epochs=9), scored(20.0)]
    for run in runs:
        run.about["data"] = {"train": {"pictures": 4, "sha256": "0"}}
    runs[2].about["data"] = None  # of an older version
    runs[3].about["data"] = {"train": {"pictures": 5, "sha256": "1"}}
    runs[5].records["knn"][0]["step"] = 0
    rows = grouped(runs, {run.folder: {} for run in runs})
    assert [list(row.values())[2:] for row in rows] == [
        [2, 65.0, 60.0, 70.0],
        *([1, x, x, x] for x in (50.0, 40.0, 30.0)),
    ]
    assert "5 in train (1)" in rows[2]["options"] and rows[3]["options"].endswith(
        "after 0 of 9 epochs"
    )


# ---- what is wrong

# What the last third of the log looks like, options, and the name of what is wrong.
FAILURES = {
    "diverging": (dict(dropped=1.0, loss=None), {}),
    "learning rate too high": (dict(spread=0.0, grad_norm=0.001, loss=7.05, mass=0.11), {}),
    "collapse": (dict(spread=0.001, loss=7.0), {}),
    "learning rate too low": (dict(loss=3.0), {}),
    "the adversaries win": (dict(loss=7.5, mass=0.001), {}),
    "starved adversaries": (dict(mass=0.999), {}),
    "waiting for pictures": (dict(data_share=0.6), {}),
    "too few pictures for K": ({}, dict(cluster=8192)),
}


def test_a_healthy_run_has_nothing_and_neither_has_one_of_few_steps():
    assert diagnose(run_with({"train": train_records()})) == []
    few = {"train": train_records(3, spread=0.0)}
    assert diagnose(run_with(few)) == []
    few["warning"] = [{"step": 2, "text": "diverged: not finite"}]
    assert [f.name for f in diagnose(run_with(few))] == ["diverging"]
    assert diagnose(run_with({"train": train_records()}, negatives="batch", cluster=8192)) == []


def test_a_loss_that_stands_still_is_a_low_rate_where_nothing_plays_against_it():
    train = [HEALTHY | {"loss": 4.5 + 0.001 * i, "step": 10 * i} for i in range(24)]
    found = [diagnose(run_with({"train": train}, negatives=x)) for x in ("learned", "batch")]
    assert not found[0] and [f.name for f in found[1]] == ["learning rate too low"]


def test_a_loss_that_jumps_where_adversaries_begin_late_is_no_low_rate():
    late = [r | {"loss": r["loss"] + 2, "step": r["step"] + 80} for r in train_records()]
    alone = [HEALTHY | {"mass": 1.0, "loss": 3.6, "step": 10 * i} for i in range(8)]
    found = [diagnose(run_with({"train": alone + late}, adversaries_from=x)) for x in (0.25, 0)]
    assert not found[0] and [f.name for f in found[1]] == ["learning rate too low"]


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_named_first_with_its_numbers(name):
    last, options = FAILURES[name]
    train = train_records(**last)
    if name == "learning rate too low":
        train = [{**r, "loss": 4.5 - 0.05 * i} for i, r in enumerate(train)]
    found = diagnose(run_with({"train": train}, **options))
    assert found[0].name == name
    assert found[0].evidence.startswith("from step ") and re.search(r"\d", found[0].evidence[14:])


def test_adversaries_that_stand_still_and_a_plateau_are_named():
    looks = {
        "embedding": [{"turned_a_step": 1e-2}],
        "adversaries": [{"turned_a_step": 1e-5, "cosine": 0.0}],
    }
    found = diagnose(run_with({"train": train_records(), **looks}))
    assert [f.name for f in found] == ["the adversaries stand still"]
    scores = [60.0, 75.0, 80.0, 80.1, *[80.0] * 6]
    scores = [{"step": i, "accuracy": value} for i, value in enumerate(scores)]
    found = diagnose(run_with({"train": train_records(), "knn": scores}))
    assert [f.name for f in found] == ["plateau"]


@pytest.mark.parametrize(
    "columns, grad_norm, name",
    [(4e-3, 5.0, "learning rate too low"), (3e-2, 5.0, "win"), (4e-3, 0.1, "win")],
)
def test_a_lost_game_is_that_of_a_slow_encoder_or_of_fast_adversaries(columns, grad_norm, name):
    train = train_records(loss=7.1, grad_norm=grad_norm)
    looks = {
        "embedding": [{"turned_a_step": 5e-3}],
        "adversaries": [{"turned_a_step": columns, "twins": 0.9, "cosine": 0.0}],
    }
    lost, twins = diagnose(run_with({"train": train, **looks}))
    assert lost.name.endswith(name) and twins.name == "the adversaries are twins"


# ---- the adversaries, against plain loops


def test_the_functions_of_the_bank_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    queries, keys, columns = (normalize(rng.normal(size=(n, 8))) for n in (600, 600, 30))
    total, foolers = attention(queries, keys, columns, 0.2)
    wanted, first = np.zeros(30), []
    for query, own in zip(queries, keys, strict=True):
        of_columns = [exp(query @ u / 0.2) for u in columns]
        whole = sum(of_columns) + sum(exp(query @ k / 0.2) for k in keys)
        wanted += np.array(of_columns) / whole
        cosines = [query @ u for u in columns]
        first.append(int(np.argmax(cosines)) if max(cosines) > query @ own else -1)
    np.testing.assert_allclose(total, wanted, rtol=1e-6)
    assert foolers.tolist() == first and -1 in first and max(first) > 0
    cosine, place = nearest(queries, columns, 3)
    for row, found, values in zip(queries, place, cosine, strict=True):
        order = sorted(range(30), key=lambda j: -(row @ columns[j]))[:3]
        assert found.tolist() == order
        np.testing.assert_allclose(values, [row @ columns[j] for j in order], rtol=1e-6)
    assert nearest(queries[:2], columns[:1], 3)[1].shape == (2, 1)
    assert shares(np.array([0, 2, 2, 2]), 4).tolist() == [0.25, 0, 0.75, 0]


# ---- the pages


def data_of(page: Path) -> dict:
    text = page.read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:|//)|url\(["']?http|@import""", text)
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory, digit_folder) -> Path:
    return pretrain(tmp_path_factory.mktemp("report"), digit_folder, "--knn_k", 3, "--seed", 1)


def test_the_page_of_a_run_holds_all_that_it_shows(run, digit_folder, tmp_path):
    result = run_main("adco/report/__main__.py", run.parents[3], "--format", "png", cwd=tmp_path)
    assert "kNN accuracy, random weights" in result.stdout, result.stderr
    data = data_of(run / "report.html")
    found = {section["is"]: section for section in data["sections"]}
    assert list(found) == [
        "run", "diagnosis", "curves", "result", "neighbours", "map", "adversaries", "hardest", "how"
    ]  # fmt: skip
    labels = data["sprite"]["labels"]
    slots = [slot for line in found["neighbours"]["thumbs"] for of in line["groups"] for slot in of]
    assert len(found["neighbours"]["thumbs"]) == 3 and set(slots) <= set(range(len(labels)))
    counts = np.array(found["result"]["confusion"])
    assert counts.sum(axis=1).tolist() == [5, 5, 5]
    assert found["result"]["rows"][0]["kNN, %"] == pytest.approx(100 * counts.trace() / 15)
    assert all(len(points) in (63, 63 + 32) for points in found["map"]["map"].values())
    assert found["adversaries"]["numbers"]["K"] == 32
    assert (run / "figures/train-loss.png").stat().st_size > 1000
    assert "currentColor" in found["curves"]["figures"][0]
    changed = {line.split()[0] for line in found["how"]["changed"]}
    assert {"arch", "cluster", "size_crops"} <= changed and not {"schedule", "moco_t"} & changed


def test_so_many_pictures_of_a_large_set_are_enough(run, monkeypatch):
    for name, number in {"TRAIN": 9, "VAL": 6, "GAMES": 4}.items():
        monkeypatch.setattr(embedded, name, number)
    found = embedded.embed_run(read_run(run))
    assert (found.cut, len(found.features), len(found.queries)) == (9, 15, 4)
    monkeypatch.setattr(embedded, "LARGE", 15)  # a quarter of views as large as these
    found = embedded.embed_run(read_run(run))
    assert (found.cut, len(found.features), len(found.queries)) == (2, 3, 1)


def test_a_run_whose_pictures_are_gone_has_a_page_without_them(run, tmp_path):
    for name in ("config.json", "metrics.jsonl", "checkpoint_last.pth.tar"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    assert main([str(tmp_path), "--data", str(tmp_path / "nowhere")]) == 0
    last = data_of(tmp_path / "report.html")["sections"][-2]
    assert last["is"] == "pictures" and "nowhere" in last["note"]


def test_pictures_that_are_not_those_of_the_run_are_told(run, tmp_path, digit_folder):
    for name in ("config.json", "metrics.jsonl", "checkpoint_last.pth.tar"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    assert main([str(tmp_path), "--data", str(digit_folder / "val")]) == 0
    found = {s["is"]: s for s in data_of(tmp_path / "report.html")["sections"]}
    for part in ("result", "neighbours"):
        assert "whether trained on is not known" in found[part]["note"]
        assert "not the pictures of the run: train was 48 pictures" in found[part]["note"]


def test_pictures_of_a_run_that_held_none_out_were_trained_on(run, digit_folder):
    other = read_run(run)
    other.options.update(val_split=0.0, data=str(digit_folder / "train"))
    other.about["data"] = None  # of an older version
    e = embedded.embed_run(other)
    assert e.unseen.startswith("trained on too") and not e.other


def test_a_page_that_has_no_place_is_refused_before_it_is_drawn(run, tmp_path, capsys):
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "report.html").mkdir()
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert "something else has the name report.html" in capsys.readouterr().err


def test_runs_are_compared_on_one_page(run, tmp_path):
    tmp_path = tmp_path / "runs"
    tmp_path.mkdir()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "metrics.jsonl", "checkpoint_last.pth.tar"):
            (tmp_path / name / file).write_bytes((run / file).read_bytes())
    words = [tmp_path, tmp_path / "a", "--format", "png"]  # one of them twice
    result = run_main("adco/report/__main__.py", *words, cwd=tmp_path)
    assert result.stdout.strip().endswith("compare.html")
    assert (tmp_path / "figures/train-loss.png").stat().st_size > 1000
    found = {s["is"]: s for s in data_of(tmp_path / "compare.html")["sections"]}
    assert [row["runs"] for row in found["scores"]["rows"]] == [2]
    assert [part["title"] for part in found["neighbours"]["beside"]] == ["1  a", "2  b"]


def test_a_run_draws_its_page_itself_and_says_what_its_epochs_changed(tmp_path, digit_folder):
    words = ("--report_epochs", "-1", "--knn_freq", 1, "--knn_k", 3, "--bad_images_max", 0.5)
    run = pretrain(tmp_path, digit_folder, *words, "--recipe", "auto", "--epochs", 4)
    assert (run / "report.html").is_file()
    assert [record["epoch"] for record in records(run, "time")] == [1, 2, 3, 4]
    about = json.loads((run / "config.json").read_text())
    assert any(line.startswith("recipe: --sym 1") for line in about["recipe"])


def test_a_page_that_cannot_be_drawn_is_one_warning(tmp_path):
    said = []
    journal = SimpleNamespace(say=said.append, warn=lambda text: said.append(f"WARNING: {text}"))
    reports = Reports(tmp_path, -1, journal)
    for code, wanted in (("print('a table')", "a table"), ("exit('x\\ny')", "WARNING: ")):
        reports.command[1:] = ["-c", code]
        reports.draw_last()
        assert said.pop().startswith(wanted) and not said
    Reports(tmp_path, 0, journal).draw_last()
    assert not said


def test_while_the_run_goes_on_at_most_one_page_is_drawn_at_a_time(tmp_path):
    reports = Reports(tmp_path, 2, SimpleNamespace(say=lambda text: None))
    reports.command[1:] = ["-c", "import time; time.sleep(99)"]
    reports.draw(1)
    assert reports.process is None
    reports.draw(2)
    first = reports.process
    reports.draw(4)
    assert reports.process is first
    first.kill()
    first.wait()
    reports.draw(6)
    assert reports.process is not first
    # The page of the end takes the place of one that is not ready.
    reports.command[1:] = ["-c", "pass"]
    reports.draw_last()
    assert reports.process.returncode
