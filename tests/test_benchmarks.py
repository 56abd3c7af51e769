"""The benchmarks run and print their tables; how fast is not asked here."""

import importlib

import pytest

from tests.support.pictures import class_folders

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
    data, out = class_folders(tmp_path / "data"), tmp_path / "out"
    words = f"--data {data} --out {out} --image_size 16 --batch_size 8 --epochs 1 --seeds 0"
    assert study.main([*words.split(), "--ways", "batch"]) == 0
    before = (out / "runs.jsonl").read_text()
    assert len(before.splitlines()) == 1
    assert study.main([*words.split(), "--ways", "batch"]) == 0
    assert (out / "runs.jsonl").read_text() == before
    assert len((out / "study.md").read_text().splitlines()) == 3
    assert (out / "study.png").exists()
