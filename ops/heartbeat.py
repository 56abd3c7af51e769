"""Heartbeats: a process that dies is missed by the others within a minute."""

import os
import signal
import sys
import threading
from multiprocessing import parent_process
from multiprocessing.connection import wait

from ops.distributed import World
from ops.errors import EXIT_FAILED
from ops.signals import StopRequest

BEAT = 2.0  # seconds between two signs of life
PATIENCE = 25.0  # seconds without one after which a process counts as lost
GRACE = 10.0  # seconds in which the main thread may find out and stop by itself


class Heartbeat(threading.Thread):
    """Gives a sign of life through the store, and watches the next process and the store itself.

    A process that misses another writes its rank into the store, so that every message names the
    same one. A main thread that still hangs in a collective is then ended with exit code 70.
    """

    def __init__(self, store, world: World):
        super().__init__(daemon=True)
        self.store, self.world = store.clone(), world
        self.patience = PATIENCE
        self.lost: str | None = None  # who is missing, for a message
        self.stopping = threading.Event()
        self.found = threading.Event()

    def run(self) -> None:
        # A ring: each process watches the next one.
        neighbour = (self.world.rank + 1) % self.world.size
        # Count our own beats, not seconds: a suspended machine must not look dead.
        beats, missed = None, 0
        while self.lost is None:
            try:
                self.store.add(f"beat/{self.world.rank}", 1)
                now = self.store.add(f"beat/{neighbour}", 0)
                beats, missed = now, missed + 1 if now == beats else 0
                if missed * BEAT > self.patience:
                    self.store.set("lost", str(neighbour))
                if self.store.check(["lost"]):
                    self.lost = f"process {self.store.get('lost').decode()}"
                self.pass_on_requests()
            except RuntimeError:  # the store is gone
                self.lost = "process 0, or the way to it,"
            if self.stopping.wait(BEAT if self.lost is None else 0):
                return
        # The main thread may notice by itself, by a collective that fails. If it hangs, end it.
        self.found.set()
        if not self.stopping.wait(GRACE):
            print(f"error: {self.message()}", file=sys.stderr, flush=True)
            os._exit(EXIT_FAILED)

    def pass_on_requests(self) -> None:
        """A request to stop that came to one process comes to all, also to one that waits."""
        stop = StopRequest.current
        if stop and stop.received:
            self.store.set("stop", "")
        elif stop and self.store.check(["stop"]):
            os.kill(os.getpid(), signal.SIGTERM)

    def message(self) -> str:
        return (
            f"{self.lost} no longer answers, so process {self.world.rank} stops; what is saved is "
            "good: start the run again with --resume auto"
        )

    def someone_is_lost(self) -> bool:
        """After a collective has failed: wait until it is known whether a process is missing."""
        self.patience = 3 * BEAT  # there is a reason for suspicion
        found = self.found.wait(PATIENCE + 4 * BEAT)
        self.stop()
        return found

    def stop(self) -> None:
        self.stopping.set()
        self.join()


def follow_parent() -> None:
    """End this process as soon as the one that started it has ended, however that happened."""

    def follow():
        wait([parent_process().sentinel])
        os._exit(EXIT_FAILED)

    threading.Thread(target=follow, daemon=True).start()
