"""Nodes on one machine, each with a network, a name and data of its own. What happens to clusters
happens to them, and how the run ends is compared with what docs/cluster.md promises.

python3 -m benchmarks.cluster                                       # each fault three times: 30 min
python3 -m benchmarks.cluster --faults "link down" killed --tries 1 # two of them, once
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks import print_head, print_row
from ops.arguments import AT_LEAST_1, command, option
from ops.checkpoint import LAST
from ops.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_STOPPED
from tests.support.background import wait_until, write_digits
from tests.support.nodes import SAVE_SECONDS, Node, networks

CODES = {True: (EXIT_STOPPED,), False: (EXIT_BAD_INPUT, EXIT_FAILED, EXIT_STOPPED)}
SECONDS = 90.0  # in which all have ended


class Fault(NamedTuple):
    """Something that happens, and what is promised then."""

    goes_on: bool  # or else all end, and name somebody or something
    act: Callable = lambda run: None  # after the first save
    before: Callable = lambda run: None  # the start
    says: str = "process "  # last, each of them
    seconds: float = SECONDS
    agent: bool = False  # under torchrun, which has exit codes of its own


class Run:
    """Nodes, and the shared folder in which a run on them leaves its files."""

    def __init__(self, fault: Fault, names: list[str], folder: Path):
        self.folder = folder
        write_digits(folder / "digits", 100)
        (folder / "runs").mkdir()
        self.nodes = [Node(folder, i, names, fault.agent) for i in range(len(names) - 1)]
        self.first, self.last = self.nodes[0], self.nodes[-1]

    def steps(self) -> int:
        """Logged so far."""
        logs = [path for path in self.folder.rglob("metrics.jsonl") if path.is_file()]
        return sum(path.read_text().count('"train"') for path in logs)

    def saved(self) -> float:
        """When, by the clock."""
        return max((path.stat().st_mtime for path in self.folder.rglob(LAST)), default=0)

    def living(self) -> list[Node]:
        return [node for node in self.nodes if node.process.poll() is None]

    def has_ended(self) -> bool:
        return not self.living()


def gone(run: Run) -> None:
    run.last.unplug()
    run.last.send(signal.SIGKILL)


def without_data(seconds: float, run: Run) -> None:
    run.last.data.rename(run.folder / "away")
    if not wait_until(run.has_ended, seconds):
        (run.folder / "away").rename(run.last.data)


def other_data(run: Run) -> None:
    next(run.last.data.rglob("*.png")).unlink()


def full_disk(run: Run) -> None:
    command = f"mount -t tmpfs -o size=1m adco {run.folder}/runs"
    subprocess.run(command.split(), check=True)


def loopback(run: Run) -> None:
    for node in run.nodes:
        own = f"10.77.0.{1 + node.number} "
        node.hosts.write_text(node.hosts.read_text().replace(own, "127.0.1.1 "))


def silent_log(run: Run) -> None:
    (log,) = run.folder.rglob("metrics.jsonl")
    os.mkfifo(run.folder / "pipe")
    (run.folder / "pipe").replace(log)
    time.sleep(5)
    run.first.send(signal.SIGTERM)


def new_agent(run: Run) -> None:
    run.last.send(signal.SIGKILL)
    run.last.process.wait()
    run.last.start()


FAULTS = {
    "link down": Fault(False, lambda run: run.last.unplug()),
    "link slow": Fault(True, lambda run: run.last.narrow("rate 100mbit latency 1s")),
    "packets lost": Fault(True, lambda run: run.last.narrow("rate 400mbit limit 32k")),
    "stopped": Fault(False, lambda run: run.last.send(signal.SIGSTOP)),
    "first stopped": Fault(False, lambda run: run.first.send(signal.SIGSTOP)),
    "killed": Fault(False, lambda run: run.last.send(signal.SIGKILL)),
    "node gone": Fault(False, gone),
    "name is loopback": Fault(True, before=loopback),
    "data away 3 s": Fault(True, lambda run: without_data(3, run)),
    "data away 300 s": Fault(False, lambda r: without_data(300, r), says="data", seconds=210),
    "data differ": Fault(False, before=other_data, says="other data"),
    "disk full": Fault(True, before=full_disk),
    "disk silent": Fault(False, silent_log),
    "clock forward": Fault(
        True, lambda run: run.last.move_clock(), lambda run: run.last.own_clock(3600)
    ),
    "clock back": Fault(
        True, lambda run: run.first.move_clock(), lambda run: run.first.own_clock(-3600)
    ),
    "agent anew": Fault(False, new_agent, agent=True, seconds=180),
}  # fmt: skip


@dataclass(frozen=True)
class ClusterBenchmark:
    """What may happen to a cluster, on nodes of one machine."""

    faults: tuple[str, ...] = option(tuple(FAULTS), "what happens", choices=tuple(FAULTS))
    nodes: int = option(2, "nodes, of one process each", "[2, 4]")
    tries: int = option(3, "runs for each fault", AT_LEAST_1)


def outcome(name: str, size: int = 2) -> tuple[float, list[int], str, list[str]]:
    """Let it happen once. Seconds from the fault, or from the request to stop, until the last
    process had ended; exit codes; last sentences; what was not as promised.
    """
    fault = FAULTS[name]
    with networks(size) as names, tempfile.TemporaryDirectory() as folder:
        run = Run(fault, names, Path(folder))
        try:
            fault.before(run)
            for node in run.nodes:
                node.start()
            tried = lambda: run.saved() or "NOT SAVED" in run.first.said.read_text()  # noqa: E731
            wait_until(lambda: run.has_ended() or (run.steps() > 5 and tried()), 120)
            return judge(run, fault)
        finally:
            subprocess.run(["umount", "--lazy", run.folder / "runs"], capture_output=True)


def judge(run: Run, fault: Fault) -> tuple[float, list[int], str, list[str]]:
    """Let the fault happen, and compare the end with the promise."""
    found, at, began, enough = [], time.time(), time.monotonic(), run.steps() + 5
    fault.act(run)
    if fault.goes_on:
        wait_until(lambda: run.has_ended() or run.steps() >= enough, fault.seconds)
        found += ["does not go on"] * (run.steps() < enough)
        began = time.monotonic()
        run.first.send(signal.SIGTERM)
    wait_until(lambda: all(node.asleep for node in run.living()), fault.seconds)
    seconds = time.monotonic() - began
    for node in run.living():
        node.send(signal.SIGCONT)
    if seconds > fault.seconds or not wait_until(run.has_ended, SECONDS):
        found.append("some do not end")
    codes = [node.process.poll() for node in run.nodes]
    told = [node for node in run.nodes if node.process.poll() != -signal.SIGKILL]
    for node in () if fault.agent else told:
        # The first process speaks for all where the run is asked to stop.
        says = ("stopped by" if node is run.first else "") if fault.goes_on else fault.says
        if node.process.poll() not in CODES[fault.goes_on] or says not in node.sentence():
            found.append(f"code or sentence of node {node.number}")
    said = " / ".join(node.sentence() for node in told)
    if at - run.saved() > SAVE_SECONDS + 5 and not ("NOT SAVED" in said or EXIT_BAD_INPUT in codes):
        found.append("no new checkpoint")
    return seconds, codes, said, found


def happen(config: ClusterBenchmark) -> int:
    good = True
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left behind
    with networks(config.nodes):
        print_head("fault", "promise", "seconds", "exit codes", "last sentences", "not kept")
    for name in [name for name in config.faults for _ in range(config.tries)]:
        promise = "goes on" if FAULTS[name].goes_on else "all end"
        seconds, codes, said, found = outcome(name, config.nodes)
        what = ", ".join(found) or "nothing"
        print_row(name, promise, f"{seconds:.0f}", " ".join(map(str, codes)), said, what)
        good &= not found
    return int(not good)


main = command("benchmarks.cluster", ClusterBenchmark, happen)


if __name__ == "__main__":
    sys.exit(main())
