"""Who waits says so: nothing hangs without a word."""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

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
