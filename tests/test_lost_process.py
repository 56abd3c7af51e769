"""Processes that are gone, stopped or hang, on nodes of one machine: the others end and name them.

The patience is shorter here than in ops/heartbeat.py, and nothing else is changed.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from typing import ClassVar

import pytest
from torch.distributed import TCPStore

from benchmarks.cluster import outcome
from ops import heartbeat
from ops.distributed import World
from ops.errors import InputError
from ops.heartbeat import Heartbeat
from ops.waiting import waiting_for
from tests.conftest import ROOT
from tests.support.background import wait_until
from tests.support.nodes import ip, networks
from tests.support.scripts import TINY, Running

SHORT = """import sys, ops.heartbeat as h
h.BEAT, h.PATIENCE, h.GRACE, h.HANG = 0.2, 2, 3, 4
from main_adco import main
sys.exit(main())
"""


class Node(Running):
    """A node of one process, perhaps in a network of its own."""

    all: ClassVar = []

    def __init__(self, folder, data, node: int, *words, network=(), address="127.0.0.1"):
        self.folder = folder
        self.all.append(self)
        words = [*TINY, "--data", data, "--epochs", 400, "--knn_freq", 0, "--nodes_num", 2, *words]
        words += ["--node_rank", node, "--master_addr", address]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*network, sys.executable, "-c", SHORT, *map(str, words)], cwd=folder, text=True,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def none_is_left():
    """Nodes of a test that fails would wait for one another."""
    yield
    for node in Node.all:
        node.process.kill()


def test_a_first_process_that_is_stopped_is_missed(tmp_path, digit_folder, port):
    nodes = [Node(tmp_path, digit_folder, node, "--master_port", port) for node in (0, 1)]
    nodes[0].wait_for_a_step()
    # Its store is silent: every call to it hangs.
    nodes[0].process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    code, _, err = nodes[1].end(timeout=30)
    nodes[0].process.kill()
    assert code == 70 and time.monotonic() - start < 15
    assert "process 0, or the way to it, no longer answers, so process 1 stops" in err
    assert "Traceback" not in err


def test_a_main_thread_that_hangs_is_told_and_a_slow_disk_is_not_taken_for_that(
    tmp_path, digit_folder, port
):
    words = ["--master_port", port, "--save_minutes", 0.1]
    nodes = [Node(tmp_path, digit_folder, node, *words) for node in (0, 1)]
    nodes[0].wait_for_a_step()
    # A slow disk: the file of a save is a pipe, read later than others hang.
    (run,) = [path.parent for path in tmp_path.rglob("metrics.jsonl")]
    partial = run / "checkpoint_last.pth.tar.partial"

    def put_pipe():
        with suppress(FileExistsError):  # a save is under way
            os.mkfifo(partial)
        return partial.is_fifo()

    assert wait_until(put_pipe, 60)
    with open(partial, "rb") as pipe:
        time.sleep(7)
        assert [node.process.poll() for node in nodes] == [None, None] and len(pipe.read()) > 1e6
    # From now on the log does not answer, as if its file server were gone.
    os.mkfifo(tmp_path / "pipe")
    os.replace(tmp_path / "pipe", run / "metrics.jsonl")
    for node, (code, _, err) in enumerate([n.end(timeout=60) for n in nodes]):
        assert code == 70 and f"so process {node} stops" in err, err
        assert "process 0, which hangs in _write_waiting (journal.py:" in err, err


@pytest.fixture
def two_networks():
    """Two networks with a switch between them."""
    with ExitStack() as held:
        try:
            names = held.enter_context(networks(2))
        except InputError as error:
            pytest.skip(str(error))
        yield names


def test_nodes_connect_by_the_wire_between_them_and_miss_each_other_when_it_is_cut(
    tmp_path, digit_folder, two_networks
):
    # The host's own name leads gloo to 127.0.0.1 or to a network that is not there.
    nodes = [
        Node(tmp_path, digit_folder, i, network=["ip", "netns", "exec", name], address="10.77.0.1")
        for i, name in enumerate(two_networks[:2])
    ]
    nodes[0].wait_for_a_step()
    ip("-n", two_networks[0], "link", "set", "wire0", "down")
    start = time.monotonic()
    (first, _, said), (second, _, heard) = [node.end(timeout=60) for node in nodes]
    assert (first, second) == (70, 70) and time.monotonic() - start < 20
    assert "process 1 no longer answers, so process 0 stops" in said
    assert "process 0, or the way to it, no longer answers, so process 1 stops" in heard


def test_the_store_of_one_machine_listens_to_that_machine_alone(two_networks):
    code = "from ops.distributed import *; import subprocess\n"
    code += "store = meet_all(World(), 'tcp://HOST:2345')\n"
    code += "print(os.environ[IFNAME], subprocess.getoutput('ss -Hltn'), flush=True)"
    for host, heard in (("127.0.0.1", "lo LISTEN"), ("10.77.0.1", "wire0 LISTEN")):
        command = ["ip", "netns", "exec", two_networks[0], sys.executable, "-c"]
        ended = subprocess.run(
            [*command, code.replace("HOST", host)], cwd=ROOT, capture_output=True, text=True
        )
        assert ended.stdout.startswith(heard), (ended.stdout, ended.stderr)
        assert ("127.0.0.1:2345" in ended.stdout) == (host == "127.0.0.1"), ended.stdout


@pytest.mark.parametrize("fault", ["data differ", "name is loopback"])
def test_what_happens_to_a_cluster_ends_as_promised(fault):
    """A short form of benchmarks/cluster.py."""
    try:
        _, codes, said, not_kept = outcome(fault)
    except InputError as error:
        pytest.skip(str(error))
    assert not not_kept, (codes, said, not_kept)


def test_what_computes_or_says_that_it_waits_does_not_hang(monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT", 0.1)
    monkeypatch.setattr(heartbeat, "HANG", 0.35)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    beating, found = Heartbeat(store, World(0, 2)), []

    def look():
        for _ in range(8):
            time.sleep(0.1)
            found.append(beating.main_thread_hangs())

    def looked_at(act):
        found.clear()
        watch = threading.Thread(target=look)
        watch.start()
        act(watch)
        watch.join()
        return any(found)

    def compute(watch):
        while watch.is_alive():
            sum(range(1000))

    def wait(watch):
        with waiting_for(lambda: "a slow disk"):
            watch.join()

    assert not looked_at(compute) and not looked_at(wait)
    assert looked_at(threading.Thread.join)

    # A request to stop shortens the patience.
    monkeypatch.setattr(heartbeat, "HANG", 600)
    monkeypatch.setattr(heartbeat, "HANG_IN_STOP", 0.35)
    assert not looked_at(threading.Thread.join)
    beating.asked = True
    assert looked_at(threading.Thread.join)
