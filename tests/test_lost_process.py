"""How the processes of one machine, and of several, find one another."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tests.conftest import ROOT


def network(*words) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *map(str, words)], capture_output=True)


@contextmanager
def two_networks():
    """Two networks with a wire between them: words that put a program into each."""
    names = [f"adco{os.getpid()}{i}" for i in (0, 1)]
    try:
        for name in names:
            if (
                not hasattr(os, "geteuid")
                or os.geteuid()
                or network("netns", "add", name).returncode
            ):
                pytest.skip("networks of one's own need root and `ip netns`")
        wire = ("link", "add", "wire0", "netns", names[0], "type", "veth")
        if network(*wire, "peer", "name", "wire1", "netns", names[1]).returncode:
            pytest.skip("this machine has no veth: no wire between two networks")
        for i, name in enumerate(names):
            network("-n", name, "addr", "add", f"10.77.0.{1 + i}/24", "dev", f"wire{i}")
            network("-n", name, "link", "set", "lo", "up")
            network("-n", name, "link", "set", f"wire{i}", "up")
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            network("netns", "del", name)


def test_the_store_of_one_machine_listens_to_that_machine_alone():
    with two_networks() as networks:
        code = "from ops.distributed import *; import subprocess\n"
        code += "store = meet_others(World(), 'tcp://HOST:2345')\n"
        code += "print(os.environ[IFNAME], subprocess.getoutput('ss -Hltn'), flush=True)"
        for host, heard in (("127.0.0.1", "lo LISTEN"), ("10.77.0.1", "wire0 LISTEN")):
            command = [*networks[0], sys.executable, "-c", code.replace("HOST", host)]
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert ended.stdout.startswith(heard), (ended.stdout, ended.stderr)
            assert ("127.0.0.1:2345" in ended.stdout) == (host == "127.0.0.1"), ended.stdout
