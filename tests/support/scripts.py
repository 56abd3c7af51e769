"""The scripts as a user runs them, on tiny pictures, and what they leave behind."""

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

import torch
from tensorboardX.proto.event_pb2 import Event

from tests.conftest import ROOT

# A run of main_adco.py that takes seconds.
TINY = [
    *("--dataset", "folder", "--recipe", "published", "--arch", "resnet10"),
    *("--image_size", "16", "--cluster", "32"),
    *("--size_crops", "16", "12", "--nmb_crops", "1", "1", "--mem_t", "0.1", "--memory_lr", "0.1"),
    *("--min_scale_crops", "0.2", "0.1", "--max_scale_crops", "1", "0.5"),
    *("-b", "8", "-j", "0", "-p", "2", "--epochs", "2"),
    *("--report_epochs", "0"),
]


def run_script(*words, cwd: Path, timeout: float = 240, **env) -> subprocess.CompletedProcess:
    """Run `python SCRIPT OPTIONS...` of this project from the folder `cwd`, without a GPU."""
    script, *options = map(str, words)
    command = [sys.executable, str(ROOT / script), *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


def run_main(*words, cwd: Path, **env) -> subprocess.CompletedProcess:
    """What run_script gives, from the script's main in this process: torch is here already.

    For one process; what the script sets for all of this one is set back afterwards. An error that
    would end in a traceback is raised.
    """
    script, *options = map(str, words)
    main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    out, err = StringIO(), StringIO()
    with ExitStack() as held:
        held.enter_context(mock.patch("ops.launch.START_METHOD", "forkserver"))
        held.enter_context(torch.random.fork_rng(devices=[]))
        held.enter_context(mock.patch.dict(os.environ, env))
        held.enter_context(mock.patch.object(sys, "argv", [str(ROOT / script), *options]))
        held.enter_context(in_folder(cwd))
        held.enter_context(redirect_stdout(out))
        held.enter_context(redirect_stderr(err))
        try:
            code = main(options)
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(
        [script, *options], code or 0, out.getvalue(), err.getvalue()
    )


@contextmanager
def in_folder(path: Path):
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def files_limited_to(num_bytes: int):
    """Inside the block no file grows larger, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """Exit code 2 and one sentence on stderr that holds the words."""
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], lines[0]


def pretrain(folder: Path, data, *words, run=run_main, **env) -> Path:
    """Run main_adco.py in a folder; its run folder."""
    result = run("main_adco.py", *TINY, "--data", data, *words, cwd=folder, **env)
    assert result.returncode == 0, result.stderr
    (metrics,) = folder.rglob("metrics.jsonl")
    return metrics.parent


def records(run: Path, *kinds: str) -> list[dict]:
    """The records of a run's metrics.jsonl, of these kinds or of all."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in found if not kinds or record["kind"] in kinds]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run, "train", "startup")]


class Running:
    """main_adco.py in the background, a process of its own with children of its own."""

    def __init__(self, folder: Path, *words):
        self.folder = folder
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "main_adco.py"), *TINY, *map(str, words)],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_for_a_step(self, kind: str = "train") -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            if any(f'"{kind}"' in path.read_text() for path in self.folder.rglob("metrics.jsonl")):
                return
            time.sleep(0.01)
        raise AssertionError(self.process.communicate())

    def end(self, timeout: float = 120) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err


def events_of(run: Path) -> list[Event]:
    """The TensorBoard events of a run: records of a length, its checksum, an event, a checksum."""
    found = []
    for path in sorted(run.glob("events*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found
