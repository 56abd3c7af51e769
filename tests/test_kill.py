"""Runs that are killed at random moments and go on end bit-equal to a run in peace.

A short form of benchmarks/kill.py.
"""

import random

import pytest

from benchmarks.kill import differences, disturb, finish

TINY = ["--epochs", "1", "--init_steps", "6", "--cluster", "64", "--batch_size", "200"]


# Two processes have no start-up here, so that they are killed inside an epoch.
@pytest.mark.parametrize("processes, kills, ad_init", [(1, 3, "1"), (2, 1, "0")])
def test_a_killed_run_goes_on_to_the_end_of_the_undisturbed_one(
    tmp_path, processes, kills, ad_init
):
    words = [*TINY, "--nproc", str(processes), "--ad_init", ad_init]
    peace, trouble = tmp_path / "peace", tmp_path / "trouble"
    peace.mkdir(), trouble.mkdir()
    finish(peace, words)
    happened = disturb(trouble, words, kills, random.Random(processes), pause=0.5)
    assert sum(happened.values()) == kills and happened["ended before the signal"] < kills
    assert not differences(peace, trouble)
