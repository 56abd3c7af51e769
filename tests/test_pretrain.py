"""main_adco.py as users run it, on tiny real pictures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ops.launch import free_port
from tests.conftest import ROOT, assert_refused, run_main, run_script

TINY = [
    *("--dataset", "folder", "--arch", "resnet10", "--image_size", "16", "--cluster", "32"),
    *("--size_crops", "16", "12", "--nmb_crops", "1", "1", "--mem_t", "0.1", "--memory_lr", "0.1"),
    *("--min_scale_crops", "0.2", "0.1", "--max_scale_crops", "1", "0.5"),
    *("-b", "8", "-j", "0", "-p", "2", "--epochs", "2"),
]


def pretrain(folder: Path, data, *words, run=run_main, **env) -> Path:
    """Run main_adco.py in a folder; its run folder."""
    result = run("main_adco.py", *TINY, "--data", data, *words, cwd=folder, **env)
    assert result.returncode == 0, result.stderr
    (metrics,) = folder.rglob("metrics.jsonl")
    return metrics.parent


def losses(run: Path) -> list[float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] in ("train", "startup")]


MODES = ["--sym 0", "--sym 1", "--multi_crop 1", "--multi_crop 1 --sym 1"]


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_on_one_and_two_processes(tmp_path, digit_folder, mode, nproc):
    run = pretrain(tmp_path, digit_folder, *mode.split(), "--nproc", nproc)
    state = torch.load(run / "checkpoint_last.pth.tar", weights_only=True)
    assert state["epoch"] == 2
    assert all(value.isfinite().all() for value in state["Memory_Bank"].values())
    assert (run / "checkpoint_best.pth.tar").exists() == (state["best_acc"] > 0)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records if r["kind"] == "knn"] == [0, 1, 2]
    assert len([r for r in records if r["kind"] == "epoch"]) == 2


def test_the_run_folder_and_its_files_have_the_documented_names(tmp_path, digit_folder):
    run = pretrain(tmp_path, digit_folder, "--save_freq", 1, run=run_script)
    assert run.relative_to(tmp_path).parts[:-1] == (
        "train_log", "folder", "lr_0.03_memlr0.1", "cos_1",
    )  # fmt: skip
    names = {path.name for path in run.iterdir()}
    assert {"checkpoint_last.pth.tar", "checkpoint_0000.pth.tar", "checkpoint_0001.pth.tar"} < names
    assert any(name.startswith("events.out.tfevents") for name in names)
    kept = json.loads((run / "config.json").read_text())
    assert kept["config"]["cluster"] == 32 and kept["versions"]["torch"] and kept["command"]


def test_one_seed_gives_one_run_whatever_the_workers(tmp_path, digit_folder):
    runs = []
    for workers in (0, 1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        runs.append(losses(pretrain(folder, digit_folder, "-j", workers, "--seed", 7)))
    assert runs[0] == runs[1] == runs[2]
    other = tmp_path / "other"
    other.mkdir()
    assert losses(pretrain(other, digit_folder, "--seed", 8)) != runs[0]


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_run_resumed_after_an_epoch_is_the_uninterrupted_run(tmp_path, digit_folder, nproc):
    whole = pretrain(tmp_path, digit_folder, "--save_freq", 1, "--nproc", nproc)
    again = tmp_path / "again"
    again.mkdir()
    half = whole / "checkpoint_0000.pth.tar"
    resumed = pretrain(again, digit_folder, "--resume", half, "--nproc", nproc)
    states = [
        torch.load(run / "checkpoint_last.pth.tar", weights_only=True) for run in (whole, resumed)
    ]
    for part in ("state_dict", "Memory_Bank"):
        for name, value in states[0][part].items():
            assert torch.equal(states[1][part][name], value), name


def test_resume_auto_goes_on_in_the_same_folder_with_the_newest_usable_file(tmp_path, digit_folder):
    run = pretrain(tmp_path, digit_folder, "--save_freq", 1)
    (run / "checkpoint_last.pth.tar").write_bytes(b"torn")
    (run / "checkpoint_0001.pth.tar").unlink()
    (run / "checkpoint_best.pth.tar").unlink(missing_ok=True)
    again = pretrain(tmp_path, digit_folder, "--resume", "auto", "--save_freq", 1)
    assert again == run
    assert torch.load(run / "checkpoint_last.pth.tar", weights_only=True)["epoch"] == 2


def test_torchrun_is_taken_as_it_is(tmp_path, digit_folder):
    spawned = pretrain(tmp_path, digit_folder, "--nproc", 2, run=run_script)
    folder = tmp_path / "torchrun"
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), str(ROOT / "main_adco.py"), *TINY]
    command += ["--data", str(digit_folder)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, timeout=240
    )
    (metrics,) = folder.rglob("metrics.jsonl")
    assert losses(metrics.parent) == pytest.approx(losses(spawned), rel=1e-4)


def test_two_launches_make_two_nodes(tmp_path, digit_folder):
    words = ["--nodes_num", "2", "--master_port", str(free_port()), "--data", str(digit_folder)]
    nodes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "main_adco.py"), *TINY, *words, "--node_rank", str(node)],
            cwd=tmp_path,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
        for node in (0, 1)
    ]
    errors = [node.communicate(timeout=240)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    (metrics,) = tmp_path.rglob("metrics.jsonl")  # rank 0 writes, nobody else
    assert json.loads(metrics.read_text().splitlines()[-1])["epoch"] == 2


def test_a_flat_folder_without_labels_trains_without_a_monitor(tmp_path, digit_folder):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in digit_folder.glob("train/*/*.png"):
        (flat / path.name).write_bytes(path.read_bytes())
    run = pretrain(tmp_path, flat, "--epochs", 1, "--ad_init", 0)
    assert '"knn"' not in (run / "metrics.jsonl").read_text()
    assert '"startup"' not in (run / "metrics.jsonl").read_text()


def test_start_up_can_go_round_the_bank_more_than_once(tmp_path, digit_folder):
    run = pretrain(tmp_path, digit_folder, "--init_steps", 9, "--epochs", 1)
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert [r["step"] for r in records if r["kind"] == "startup"] == [2, 4, 6, 8, 9]


def test_the_report_draws_curves_and_neighbours(tmp_path, digit_folder):
    run = pretrain(tmp_path, digit_folder, "--epochs", 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "adco.report", "."],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "kNN accuracy, random weights" in result.stdout
    assert (run / "curves.png").stat().st_size > 1000
    assert (run / "neighbours.png").stat().st_size > 1000


def test_bad_input_is_one_sentence_and_code_2(tmp_path, digit_folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    torn = tmp_path / "torn.pth.tar"
    torn.write_bytes(b"PK nothing")
    a_file = tmp_path / "a_file"
    a_file.write_text("in the way")
    cases = [
        (["--data", "nowhere"], "nowhere"),
        (["--data", empty], "no pictures"),
        (["--data", digit_folder, "-b", 64], "do not fill a batch"),
        (["--data", digit_folder, "--cluster", 0], "cluster=0"),
        (["--data", digit_folder, "--mem_t", 0], "mem_t"),
        (["--data", digit_folder, "-b", 9, "--nproc", 2], "does not split"),
        (["--data", digit_folder, "--dataset", "mnist"], "mnist"),
        (["--data", digit_folder, "--arch", "vgg16"], "vgg16"),
        (["--data", digit_folder, "--resume", "gone.pth.tar"], "gone.pth.tar"),
        (["--data", digit_folder, "--resume", torn], "torn.pth.tar"),
        (["--data", digit_folder, "--save_path", a_file], "run folder"),
        (["--data", digit_folder, "--gpu", 0], "gpu=0"),
    ]
    for words, *expected in cases:
        assert_refused(run_main("main_adco.py", *TINY, *words, cwd=tmp_path), *expected)
    assert not (tmp_path / "train_log").exists()
    assert a_file.read_text() == "in the way"


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path, digit_folder):
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        url = f"tcp://localhost:{taken.getsockname()[1]}"
        words = ["--data", digit_folder, "--nproc", 2, "--dist_url", url]
        assert_refused(run_script("main_adco.py", *TINY, *words, cwd=tmp_path), "in use")
