"""Runs that are killed at random moments and go on end bit-equal to a run in peace; runs that are
asked to stop end with the code that says so.

A short form of benchmarks/kill.py.
"""

import random

import pytest

from benchmarks.kill import differences, disturb, signalled
from ops.errors import EXIT_STOPPED
from tests.support.background import BEGINNING, EPOCH, finish


def test_a_killed_run_goes_on_to_the_end_of_the_undisturbed_one(tmp_path, digit_folder):
    peace, trouble = tmp_path / "peace", tmp_path / "trouble"
    peace.mkdir(), trouble.mkdir()
    words = ["--data", str(digit_folder), "--epochs", "12", "--knn_freq", "0"]
    finish(peace, words)
    happened = disturb(trouble, words, kills=range(1, 2), rng=random.Random(1), pause=0.5)
    assert sum(happened.values()) == 1 and not happened["ended before the signal"], happened
    assert not differences(peace, trouble)


@pytest.mark.parametrize(
    "name, target, processes, place",
    [
        ("SIGTERM", "group", 1, EPOCH),
        ("SIGUSR1", "group", 2, EPOCH),
        ("SIGINT", "group", 2, BEGINNING),
    ],
)
def test_a_signal_ends_a_run_as_promised(digit_folder, name, target, processes, place):
    rng = random.Random(0)
    pause = rng.uniform(0, 3) if place == BEGINNING else 0
    given = signalled(digit_folder, name, target, processes, rng, place, pause)
    assert not given.faults, f"{given.faults}\n{given.said}"
    assert given.place == BEGINNING or given.code == EXIT_STOPPED
