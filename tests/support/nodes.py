"""Nodes on one machine: network namespaces with addresses, host names and data of their own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from benchmarks import ROOT
from ops.errors import InputError
from tests.support.background import python

SAVE_SECONDS = 3  # between two saves
RUN = (
    f"{ROOT}/main_adco.py --dataset folder --recipe published --arch resnet10 --image_size 16 "
    "--cluster 32 -b 8 -j 0 -p 1 --epochs 100000 --knn_freq 0 --resume auto --save_path runs "
    f"--save_minutes {SAVE_SECONDS / 60}"
)
AGENT = (
    "-m torch.distributed.run --nproc_per_node 1 --max-restarts 9 --rdzv_backend c10d "
    "--rdzv_endpoint node0:29500 --nnodes"
)

# A clock of a node's own, which jumps when the file is there. The library is loaded before libc.
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*read)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = read(clock, now);
    if (!failed && clock == CLOCK_REALTIME && !access(MOVED, F_OK)) now->tv_sec += SECONDS;
    return failed;
}
"""


def ip(*words) -> str:
    """What `ip` says. Raises InputError where it fails: no root, no namespaces, no veth."""
    try:
        done = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True, check=True)
        return done.stdout
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", "").strip() or error
        raise InputError(f"expected root, `ip netns` and veth (Linux, iproute2): {why}") from error


@contextmanager
def networks(number: int):
    """Names of network namespaces, node i at 10.77.0.(1 + i) behind its device wire{i}; the other
    end of the cable is port{i} in the last one, which is the switch. None is left, nor a process.
    """
    names = [f"adco{os.getpid()}{i}" for i in (*range(number), "hub")]
    *nodes, hub = names
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", hub, "link", "add", "switch", "type", "bridge")
        ip("-n", hub, "link", "set", "switch", "up")
        for i, name in enumerate(nodes):
            cable = ("link", "add", f"port{i}", "type", "veth", "peer", "name", f"wire{i}")
            ip("-n", hub, *cable, "netns", name)
            ip("-n", hub, "link", "set", f"port{i}", "master", "switch", "up")
            ip("-n", name, "addr", "add", f"10.77.0.{1 + i}/24", "dev", f"wire{i}")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"wire{i}", "up")
        yield names
    finally:
        for name in names:
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)
            if os.path.exists(f"/run/netns/{name}"):
                send(name, signal.SIGKILL)
                ip("netns", "del", name)


def send(network: str, number: signal.Signals) -> None:
    for pid in ip("netns", "pids", network).split():
        os.kill(int(pid), number)


class Node:
    """One node: the processes in its network. agent: under torchrun."""

    def __init__(self, folder: Path, number: int, names: list[str], agent: bool):
        self.folder, self.number, (*nodes, self.hub) = folder, number, names
        self.network, self.asleep, self.clock = nodes[number], False, []
        self.data, self.said = folder / f"data{number}", folder / f"said{number}"
        shutil.copytree(folder / "digits", self.data)
        own = f"--nodes_num {len(nodes)} --node_rank {number} --master_addr node0"
        self.words = f"{AGENT} {len(nodes)} {RUN}" if agent else f"{RUN} {own}"
        self.hosts = Path("/etc/netns", self.network, "hosts")
        self.hosts.parent.mkdir(parents=True)
        lines = [f"10.77.0.{1 + i} node{i}\n" for i in range(len(nodes))]
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))

    def start(self) -> None:
        named = f'hostname node{self.number} && exec "$@"'
        inside = ["ip", "netns", "exec", self.network, "unshare", "--uts", "sh", "-c", named, "-"]
        inside += self.clock
        words, name = [*self.words.split(), "--data", self.data], self.said.name
        self.process = python(words, self.folder, name, name, before=inside)

    def send(self, number: signal.Signals) -> None:
        self.asleep = number == signal.SIGSTOP
        send(self.network, number)

    def own_clock(self, seconds: int) -> None:
        """From the start on; it jumps so far when move_clock is called."""
        library, macros = self.folder / "clock.so", [f'-DMOVED="{self.folder}/moved"']
        command = ["cc", "-shared", "-fPIC", *macros, f"-DSECONDS={seconds}", "-xc", "-"]
        try:
            subprocess.run([*command, "-o", library, "-ldl"], input=CLOCK, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(f"expected a C compiler, cc: {error}") from error
        self.clock, self.jump = ["env", f"LD_PRELOAD={library}"], seconds

    def move_clock(self) -> None:
        (self.folder / "moved").touch()
        told = [*self.clock, sys.executable, "-c", "import time; print(time.time())"]
        moved = float(subprocess.check_output(told)) - time.time()
        assert abs(moved - self.jump) < 60, moved

    def unplug(self) -> None:
        ip("-n", self.hub, "link", "set", f"port{self.number}", "down")

    def narrow(self, words: str) -> None:
        """What the node sends goes through a queue of `tc`."""
        tc = f"tc qdisc add dev wire{self.number} root tbf burst 32k {words}"
        ip("netns", "exec", self.network, *tc.split())

    def sentence(self) -> str:
        """The last one that says how the run ended, or the last line."""
        lines = self.said.read_text().splitlines()
        ends = [line for line in lines if "error: " in line or "stopped by" in line]
        return ["", *lines[-1:], *ends[-1:]][-1]
