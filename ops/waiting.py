"""Who waits says so, and processes wait for one another: nothing hangs without a word."""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

from ops.errors import some
from ops.signals import requests_blocked

SAY_SECONDS = 30.0  # between two lines

# What the main thread waits for, and since when; the last one is what it waits for now.
waits: list[tuple[Callable[[], str], float]] = []
speaker: threading.Thread | None = None


@contextmanager
def waiting_for(what: Callable[[], str]):
    """If the block takes long, a line on stderr every SAY_SECONDS says what it waits for.

    what: gives the words, when they are needed.
    """
    global speaker
    waits.append((what, time.monotonic()))
    if speaker is None or not speaker.is_alive():  # a fork has none
        speaker = threading.Thread(target=speak, daemon=True)
        # Signals go to the main thread, where they are blocked when they have to be.
        with requests_blocked():
            speaker.start()
    try:
        yield
    finally:
        waits.pop()


def speak() -> None:
    told = {}  # the wait, and how often it has been told
    while True:
        time.sleep(min(1.0, SAY_SECONDS))
        for what, since in waits[-1:]:
            seconds = time.monotonic() - since
            if seconds // SAY_SECONDS > told.get(since, 0):
                told = {since: seconds // SAY_SECONDS}
                print(f"waiting for {what()}, for {seconds:.0f} s", file=sys.stderr, flush=True)


def meet(store, rank: int, size: int, minutes: float, where: str) -> None:
    """Return once all processes have come. Raises ValueError naming those that have not in time.

    where: the place, for a message.
    """
    store.set(f"here/{rank}", "")
    deadline = time.monotonic() + 60 * minutes
    with waiting_for(lambda: f"{who_is_missing(store, size)} to come to {where}"):
        while not store.check([f"here/{rank}" for rank in range(size)]):
            if time.monotonic() > deadline:
                missing = who_is_missing(store, size)
                raise ValueError(f"{missing} did not come in {minutes:g} minutes")
            time.sleep(0.05)


def who_is_missing(store, size: int) -> str:
    """The processes that have not come yet, in words; nothing where all are there."""
    missing = [str(rank) for rank in range(size) if not store.check([f"here/{rank}"])]
    return f"process(es) {some(missing)} of {size}" if missing else ""
