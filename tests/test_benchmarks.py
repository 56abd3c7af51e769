"""The benchmarks run and print their tables; how fast is not asked here."""

import importlib

import pytest

TINY = {
    "rounds": "--processes 1 2 --queries 4 --cluster 64 --memory_cluster 64 --dim 8 --repeats 1",
    "wire": "--processes 2 --queries 4 --cluster 64 --dim 8 --repeats 1 --image_size 8",
    "train": "--arch resnet10 --batch_size 2 --image_size 32 --cluster 64 --repeats 1",
    "views": "--pictures 1 --compared 2 --repeats 1",
    "device": "--arch resnet10 --batch_size 2 --image_size 32 --cluster 64 --minutes 0.1",
    "upkeep": "--arch resnet10 --batch_size 2 --image_size 32 --repeats 1",
}


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_prints_its_table(name, capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.main(TINY[name].split()) == 0
    table = [line for line in capfd.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) >= 3 and len({line.count("|") for line in table[:3]}) == 1
