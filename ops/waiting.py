"""Who waits says so, and processes wait for one another: nothing hangs without a word."""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from uuid import uuid4

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


def meet(store, rank: int, size: int, minutes: float, where: str) -> str:
    """Return once all processes have come: a name of this meeting, which none before it had.

    A store may outlive its processes, as torchrun's does: what those before have left in it counts
    for nobody. The first process names the meeting, the others sign with a word of their own, and
    it begins where the first one has read these words.
    where: the place, for a message. Raises ValueError naming those that have not come in time.
    """
    word, name, deadline = uuid4().hex, "", time.monotonic() + 60 * minutes
    if rank == 0:
        store.set("meeting", word)
    with waiting_for(lambda: f"{who_is_missing(store, name, size)} to come to {where}"):
        while True:
            # Another name: the one before was of processes that are gone.
            newest = store.get("meeting").decode() if store.check(["meeting"]) else ""
            if newest != name:
                name = newest
                store.set(f"{name}/{rank}", word)
            if rank == 0 and not who_is_missing(store, name, size):
                words = [store.get(f"{name}/{other}").decode() for other in range(size)]
                store.set(f"{name}/all", " ".join(words))
            if store.check([f"{name}/all"]) and word in store.get(f"{name}/all").decode():
                return name
            if time.monotonic() > deadline:
                missing = who_is_missing(store, name, size)
                raise ValueError(f"{missing} did not come in {minutes:g} minutes")
            time.sleep(0.05)


def who_is_missing(store, name: str, size: int) -> str:
    """The processes that have not come to a meeting yet, in words; nothing where all are there."""
    missing = [str(rank) for rank in range(size) if not store.check([f"{name}/{rank}"])]
    return f"process(es) {some(missing)} of {size}" if missing else ""
