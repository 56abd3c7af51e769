"""How tests compute, and tiny real pictures for all of them."""

import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are about the CPU
# Small tensors: a second thread would wait at every barrier, and take a core from child processes.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# Most of a small test in several processes would be the import of torch: a server imports it once,
# and its forks take the place of spawned processes.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch._dynamo", "adco.pretrain.run", "adco.probe.run", "pytest"])

# The same examples every time; HYPOTHESIS_PROFILE=explore takes other and more ones.
settings.register_profile(
    "test", max_examples=250, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
test = settings.get_profile("test")
settings.register_profile("explore", test, max_examples=5000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))


@pytest.fixture
def port():
    """A free port of this machine, which nobody else is given while the test runs."""
    from ops.launch import bound

    with bound() as held:
        yield held.getsockname()[1]


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory) -> Path:
    """Real digits as PNG files: train/{0,1,2} with 16 pictures each, val/{0,1,2} with 5 each."""
    from tests.support.background import write_digits

    return write_digits(tmp_path_factory.mktemp("digit_folder"), 16)
