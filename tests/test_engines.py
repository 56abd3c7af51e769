"""Who starts the processes: two launchers, srun, another program; and how many they are."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from adco.pretrain.options import PRESETS, PretrainConfig
from adco.pretrain.run import run
from ops.arguments import parse
from ops.checkpoint import LAST, PREVIOUS
from ops.distributed import World
from ops.engines import place_in_engine, with_slurms_nodes
from ops.errors import InputError, RunFailed
from ops.launch import launch, own_device, rendezvous, run_worker
from ops.options import ProcessOptions
from ops.workers import cores_of_process, workers_per_process
from tests.conftest import ROOT
from tests.support.gloo import in_processes
from tests.support.scripts import TINY, assert_refused, losses, pretrain, records, run_main


@pytest.mark.parametrize("how", ["options", "srun"])
def test_two_launches_make_two_nodes(tmp_path, digit_folder, port, how):
    words = ["--data", str(digit_folder)]
    if how == "options":
        words += ["--nodes_num", "2", "--master_port", str(port), "--node_rank"]
    nodes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "main_adco.py"), *TINY, *words]
            + ([str(node)] if how == "options" else []),
            cwd=tmp_path,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
            | (srun(node, "2", "localhost", job=port - 20_000) if how == "srun" else {}),
            stderr=subprocess.PIPE,
        )
        for node in (0, 1)
    ]
    errors = [node.communicate(timeout=240)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    (metrics,) = tmp_path.rglob("metrics.jsonl")  # rank 0 writes, nobody else
    assert records(metrics.parent)[-1]["epoch"] == 2


@pytest.mark.parametrize("platform, is_held", [("linux", True), ("win32", False)])
def test_the_port_of_one_machine_is_held_where_others_can_still_listen(
    monkeypatch, platform, is_held
):
    monkeypatch.setattr(sys, "platform", platform)
    url, held = rendezvous(ProcessOptions(nproc=2))
    with held:
        assert (held.fileno() >= 0) == is_held and int(url.rpartition(":")[2]) > 0


def srun(task: int, tasks_per_node: str, nodes: str, job: int = 7, node: int = 0) -> dict[str, str]:
    """What srun tells each of its tasks."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node)
    total = sum(int(tasks) * int(times or 1) for tasks, times in found)
    return {
        "SLURM_STEP_NUM_TASKS": str(total), "SLURM_STEP_TASKS_PER_NODE": tasks_per_node,
        "SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": str(job), "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task), "SLURM_NODEID": str(node),
    }  # fmt: skip


def test_srun_says_where_a_process_belongs(monkeypatch):
    config = PretrainConfig()
    # Sixteen tasks on two nodes, one a GPU: this is the third of the second node.
    for name, value in srun(10, "8(x2)", "gpu[03-05,9],big1", 120_003, node=1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_LOCALID", "2")
    assert place_in_engine(config) == (World(10, 16, 2, 8), "tcp://gpu03:20003")
    for nodes, first in (
        ("rack[1-2]n[01-04],x", "rack1n01"),
        ("gpu[02-05]-ib", "gpu02-ib"),
        ("a,b", "a"),
    ):
        monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
        assert place_in_engine(config)[1] == f"tcp://{first}:20003"
    monkeypatch.setenv("SLURM_STEP_ID", "1")  # of the same job
    assert place_in_engine(config)[1] == "tcp://a:20100"
    monkeypatch.delenv("SLURM_STEP_ID")
    assert workers_per_process(32, local_size=8) >= min(4, cores_of_process(1))
    url = replace(config, dist_url="tcp://here:1")
    assert place_in_engine(url)[1] == "tcp://here:1"
    # Nodes that the options name come first, and a script beside srun is no task.
    assert place_in_engine(replace(config, world_size=2)) is None
    # One task a node: the launcher starts the processes of its own node.
    for name, value in srun(1, "1(x2)", "a1,b2", 5, node=1).items():
        monkeypatch.setenv(name, value)
    assert place_in_engine(config) is None
    node = with_slurms_nodes(config)
    assert (node.world_size, node.rank, node.dist_url) == (2, 1, "tcp://a1:20005")
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert place_in_engine(config) is None and with_slurms_nodes(config) == config


@pytest.mark.parametrize("given, threads", [(None, [3]), ("2", [])])
def test_processes_on_the_cpu_share_the_cores_that_they_may_use(monkeypatch, given, threads):
    found = []
    monkeypatch.setattr("torch.set_num_threads", found.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    with pytest.raises(RunFailed, match="MASTER_ADDR and MASTER_PORT not set"):
        run_worker(run, PretrainConfig(), World(1, 4, 1, 4), "env://", "cpu")
    assert found == threads


@pytest.mark.parametrize("num_gpus, number", [(1, 0), (4, 3), (2, None)])
def test_a_process_that_is_shown_one_gpu_takes_it(monkeypatch, num_gpus, number):
    taken = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    if number is None:
        with pytest.raises(InputError, match=r"gpu=3: this machine shows 2 GPU\(s\)"):
            own_device("cuda", 3, PretrainConfig())
    else:
        assert own_device("cuda", 3, PretrainConfig()) == torch.device("cuda", number)
        assert taken == [number]


def test_torchrun_has_the_address(monkeypatch):
    for name, value in (("RANK", 3), ("WORLD_SIZE", 4), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    # Its store is at its own address, whatever --dist_url says.
    config = PretrainConfig(dist_url="tcp://localhost:10001")
    assert place_in_engine(config) == (World(3, 4, 1, 2), "env://")
    with pytest.raises(InputError, match="give --global_batch_size"):
        config.with_global_batch(12, 8)


def test_a_run_goes_on_with_other_processes_where_m_is_the_same(tmp_path, digit_folder):
    words = ["main_adco.py", *TINY, "--data", digit_folder, "--knn_freq", 0, "--amp", "none"]
    run = pretrain(tmp_path, digit_folder, *words[-4:], "--save_freq", 1, "--nproc", 2)
    expected, first = losses(run), run / "checkpoint_0000.pth.tar"
    for name in (LAST, PREVIOUS, "checkpoint_0001.pth.tar"):
        (run / name).unlink()

    # BatchNorm sees eight pictures at once in place of four: that is told.
    other = run_main(*words, "--resume", first, "--save_path", "other", cwd=tmp_path)
    assert other.returncode == 0 and "(4 before, 8 here)" in other.stderr
    # In two micro-batches it sees four. The batch of a node is another one, M is not.
    words += ["--resume", "auto", "--accum_steps", 2, "--batch_size", 4]
    more = run_main(*words, "--global_batch_size", 8, cwd=tmp_path)
    assert more.returncode == 0 and "resumed from" in more.stdout, more.stderr
    assert "at once" not in more.stderr and losses(run) == pytest.approx(expected, rel=1e-5)
    refused = run_main(*words[:-4], "--batch_size", 9, "--nproc", 2, cwd=tmp_path)
    assert_refused(refused, "9 pictures a step", "--global_batch_size")


def within_a_group(world, folder, data) -> int:
    words = [*TINY, "--data", str(data), "--save_path", str(folder), "--epochs", "1"]
    return launch(run, parse(PretrainConfig, words, PRESETS))


def test_a_process_group_that_is_there_is_used(tmp_path, digit_folder):
    assert in_processes(within_a_group, 2, tmp_path, digit_folder) == [0, 0]
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    (tmp_path / "spawned").mkdir()
    spawned = pretrain(tmp_path / "spawned", digit_folder, "--nproc", 2, "--epochs", 1)
    assert losses(metrics.parent) == losses(spawned)
