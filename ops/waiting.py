"""Who waits says so, and processes find one another: nothing hangs without a word."""

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from urllib.parse import urlparse
from uuid import uuid4

from ops.errors import some
from ops.signals import requests_blocked

SAY_SECONDS = 30.0  # between two lines
SIOCGIFADDR = 0x8915  # Linux: an interface's address

# What the main thread waits for, and since when; the last one is what it waits for now.
waits: list[tuple[Callable[[], str], float]] = []
speaker: threading.Thread | None = None


@contextmanager
def waiting_for(what: Callable[[], str]):
    """If the block takes long, a line on stderr every SAY_SECONDS says what it waits for.

    what: gives the words, when they are needed. Of the main thread alone: nobody waits for others.
    """
    global speaker
    if threading.current_thread() is not threading.main_thread():
        yield
        return
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


def the_others() -> str:
    return "the other processes; one of them is slow, or waits itself"


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


def address_of(url: str) -> tuple[str | None, int | None]:
    """The first process's host and port; of a file None. Raises ValueError where none are given."""
    if not url.startswith("env"):
        return urlparse(url).hostname, urlparse(url).port
    names = ("MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in os.environ]:
        raise ValueError(f"{' and '.join(missing)} not set")
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def interface(store, rank: int, size: int, host: str) -> str:
    """The interface by which this process reaches the others, that is the first one's host, for
    gloo: it would take what this machine's own name leads to, often 127.0.1.1. IPv4 on Linux; empty
    where nothing is found, which leaves the choice to gloo.
    """
    own = address_towards(host)
    store.set(f"address/{rank}", own)
    # The first node's name may lead it to itself. The last process is one of the last node.
    if own.startswith("127."):
        own = address_towards(store.get(f"address/{size - 1}").decode())
    if sys.platform == "linux":
        from fcntl import ioctl

        for _, name in socket.if_nameindex():
            with suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as any_socket:
                answer = ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    return ""


def address_towards(host: str) -> str:
    """This machine's own address on the way to a host; empty where there is no way."""
    with suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as sends_nothing:
        sends_nothing.connect((host, 9))
        return sends_nothing.getsockname()[0]
    return ""
