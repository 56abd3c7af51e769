"""Shared fixtures: tiny real pictures, and a way to run the scripts as a user does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory) -> Path:
    """Real digits as PNG files: train/{0,1,2} with 16 pictures each, val/{0,1,2} with 5 each."""
    from adco.data import load_splits

    splits = load_splits("digits", "")
    root = tmp_path_factory.mktemp("digit_folder")
    for split, pictures, count in (("train", splits.train, 16), ("val", splits.val, 5)):
        for digit in range(3):
            folder = root / split / str(digit)
            folder.mkdir(parents=True)
            for index in np.flatnonzero(pictures.labels == digit)[:count]:
                Image.fromarray(pictures.pixels(index)).save(folder / f"{index:04d}.png")
    return root


def run_script(*words, cwd: Path, timeout: float = 240, **env) -> subprocess.CompletedProcess:
    """Run `python SCRIPT OPTIONS...` of this project from the folder `cwd`, without a GPU."""
    script, *options = map(str, words)
    command = [sys.executable, str(ROOT / script), *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """Exit code 2 and one sentence on stderr that holds the words."""
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], lines[0]
