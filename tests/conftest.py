"""Shared fixtures: tiny real pictures, and a way to run the scripts as a user does."""

import importlib
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from ops.signals import REQUESTS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are about the CPU
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory) -> Path:
    """Real digits as PNG files: train/{0,1,2} with 16 pictures each, val/{0,1,2} with 5 each."""
    from adco.data import fast_render
    from adco.data.datasets import load_splits

    splits = load_splits("digits", "")
    root = tmp_path_factory.mktemp("digit_folder")
    for split, pictures, count in (("train", splits.train, 16), ("val", splits.val, 5)):
        for digit in range(3):
            folder = root / split / str(digit)
            folder.mkdir(parents=True)
            for index in np.flatnonzero(pictures.labels == digit)[:count]:
                pixels = pictures.read(index, fast_render)
                Image.fromarray(pixels).save(folder / f"{index:04d}.png")
    return root


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
        held.enter_context(one_thread())
        held.enter_context(signals_kept())
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
def one_thread():
    """Torch computes with one thread, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def signals_kept():
    """What a script does with signals at its end is undone."""
    before = {number: signal.getsignal(number) for number in REQUESTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def in_folder(path: Path):
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """Exit code 2 and one sentence on stderr that holds the words."""
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], lines[0]
