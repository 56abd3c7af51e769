"""The benchmarks run and print their tables; how fast is not asked here."""

import importlib
from itertools import pairwise

import pytest

from benchmarks.model import ModelBenchmark, gigabytes, megabytes, predict, seconds_of
from tests.support.pictures import class_folders

SMALL = "--arch resnet10 --batch_size 2 --image_size 32 --cluster 64 --repeats 1"
TINY = {
    "model": "",
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


@pytest.mark.parametrize(("R", "ours", "published"), [(2, 0.135, 33.559), (4, 0.406, 50.339)])
def test_the_model_gives_the_bytes_that_were_counted(R, ours, published):
    """As benchmarks/README.md has them, for N 128 and K 65,536."""
    found = megabytes(ModelBenchmark(batch_size=128), R)
    assert found["sums"] == pytest.approx(ours, rel=0.01)
    assert found["replicated"] == pytest.approx(published, rel=0.001)


def test_the_model_follows_the_laws_of_the_round():
    c = ModelBenchmark()
    rows = [predict(c, 2**i) for i in range(11)]
    for row in rows:
        parts = list(row)[: list(row).index("step")]
        assert row["step"] == pytest.approx(sum(row[name] for name in parts))
    # A shard's memory falls as 1 / R; its bytes grow with R until M = N R is about K.
    assert gigabytes(c, 64)["bank"] == pytest.approx(gigabytes(c, 1)["bank"] / 64)
    assert all(a["sums"] < b["sums"] for a, b in pairwise(rows))
    assert megabytes(c, 1024)["sums"] < megabytes(c, 1024)["replicated"]
    assert megabytes(c, 4096)["sums"] > megabytes(c, 4096)["replicated"]
    # A message between nodes takes longer, above all one of a process by itself.
    inside, outside = seconds_of(c, 8, "pairs", 1e9), seconds_of(c, 16, "pairs", 1e9)
    assert outside > seconds_of(c, 16, "ring", 1e9) > inside


def test_the_study_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    study = importlib.import_module("benchmarks.study")
    data, out = class_folders(tmp_path / "data"), tmp_path / "out"
    words = f"--data {data} --out {out} --image_size 16 --batch_size 8 --epochs 1 --seeds 0"
    assert study.main([*words.split(), "--ways", "batch"]) == 0
    before = (out / "runs.jsonl").read_text()
    assert len(before.splitlines()) == 1
    assert study.main([*words.split(), "--ways", "batch"]) == 0
    assert (out / "runs.jsonl").read_text() == before
    assert len((out / "study.md").read_text().splitlines()) == 3
    assert (out / "study.png").exists()
