"""The benchmarks run and print their tables; how fast is not asked here."""

import importlib
import json

import pytest

from tests.support.background import write_digits

SMALL = "--arch resnet10 --batch_size 2 --image_size 32 --cluster 64 --repeats 1"
TINY = {
    "device": f"{SMALL} --parts round steps views --minutes 0.1",
    "device on processes": f"{SMALL} --nproc 2",
}


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_prints_its_table(name, capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    module = importlib.import_module(f"benchmarks.{name.split()[0]}")
    assert module.main(TINY[name].split()) == 0
    table = [line for line in capfd.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) >= 3 and len({line.count("|") for line in table[:3]}) == 1


def test_the_study_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    study = importlib.import_module("benchmarks.study")
    write_digits(tmp_path / "cifar10", 14)
    out = tmp_path / "out"
    out.mkdir()
    page, name = out / "study.md", "cifar10-32"
    page.write_text(f"# Words\n\n{study.BEGIN}\nof before\n{study.END}\n\nmore words\n")
    shared = study.CELLS[name].shared
    ended = dict(cell=name, way="batch", seed=0, options=study.ALL["batch"], shared=shared)
    before = json.dumps({**ended, "curve": [[0, 30], [12, 44]]})
    twice = before.replace("44", "43")  # by two studies at once: the last one counts
    (out / "study.jsonl").write_text(f"{twice}\n{before}\n" + '{"cell": "half a li')
    words = f"--data {tmp_path} --out {out} --cells {name} --ways batch decoupled --seeds 0"
    assert study.main(words.split()) == 0
    _, first, _, second = (out / "study.jsonl").read_text().splitlines()
    assert first == before and json.loads(second)["way"] == "decoupled"
    text = page.read_text()
    assert "| 44.0 |" in text
    assert text.startswith("# Words") and text.endswith("more words\n") and "of before" not in text
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 1 + 2
    assert (out / "study.png").exists()


def test_pairs_of_the_study_share_their_seed():
    study = importlib.import_module("benchmarks.study")
    name, scores = "cifar10-32", {"late": {0: 50, 1: 52, 2: 54}, "batch": {1: 50, 2: 53}}
    records = [
        dict(cell=name, way=way, seed=seed, options="", curve=[(0, 30), (12, score)])
        for way, of in scores.items()
        for seed, score in of.items()
    ]
    # 2 and 1: their mean, and t of one degree of freedom (12.706) times .5.
    row = "| batch | `` | 2 | 51.5 | 50.0 to 53.0 | late +1.5 ± 6.4 (2 pairs) |"
    assert row in study.tables(records).splitlines()
