"""Heartbeats: a process that dies, is stopped or hangs is missed by all others."""

import os
import signal
import sys
import threading
import time
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path

from ops.distributed import World
from ops.errors import EXIT_FAILED
from ops.signals import StopRequest
from ops.waiting import waits

BEAT = 2.0  # seconds between two signs of life
PATIENCE = 25.0  # seconds without one after which a process counts as lost
GRACE = 10.0  # seconds in which the main thread may find out and stop by itself
# Seconds after which a main thread hangs that neither computes nor says that it waits: a slow file,
# or a compiler that runs beside it, take less. After a request to stop nobody waits that long.
HANG, HANG_IN_STOP = 600.0, 50.0


class Stillness:
    """For how long a value has been the same, counted in beats.

    Not in seconds: a machine that was suspended must not look dead.
    """

    def __init__(self):
        self.value, self.beats = None, 0

    def seconds(self, value) -> float:
        self.beats = self.beats + 1 if value == self.value else 0
        self.value = value
        return self.beats * BEAT


class Heartbeat(threading.Thread):
    """Gives a sign of life through the store, and watches the next process and its own main thread.

    Who misses a process writes that into the store, so that every message names the same one.
    A second thread watches the store, which answers nothing where its machine is gone. A main
    thread that hangs, in a collective too, is then ended with exit code 70.
    """

    def __init__(self, store, world: World):
        super().__init__(daemon=True)
        self.store, self.world = store.clone(), world
        self.patience = PATIENCE
        self.lost: str | None = None  # who is missing, for a message
        self.rounds = 0  # that the store has answered
        self.asked = False  # to stop, by another process
        self.main, self.neighbour = Stillness(), Stillness()
        self.beats = threading.Thread(target=self.beat, daemon=True)
        self.stopping = threading.Event()
        self.found = threading.Event()

    def run(self) -> None:
        self.beats.start()
        store = Stillness()
        while self.lost is None:
            if store.seconds(self.rounds) > self.patience:
                self.lost = "process 0, or the way to it,"
            elif self.stopping.wait(BEAT):
                return
        # The main thread may notice by itself, by a collective that fails. If it hangs, end it.
        self.found.set()
        if not self.stopping.wait(GRACE):
            print(f"error: {self.message()}", file=sys.stderr, flush=True)
            os._exit(EXIT_FAILED)

    def beat(self) -> None:
        # A ring: each process watches the next one.
        rank, neighbour = self.world.rank, (self.world.rank + 1) % self.world.size
        while self.lost is None and not self.stopping.is_set():
            try:
                self.store.add(f"beat/{rank}", 1)
                beats = self.store.add(f"beat/{neighbour}", 0)
                if self.neighbour.seconds(beats) > self.patience:
                    self.store.set("lost", f"process {neighbour}")
                if where := self.main_thread_hangs():
                    self.store.set("lost", f"process {rank}, which hangs in {where},")
                if self.store.check(["lost"]):
                    self.lost = self.store.get("lost").decode()
                self.pass_on_requests()
                self.rounds += 1
            except RuntimeError:  # the store is gone
                self.lost = "process 0, or the way to it,"
            self.stopping.wait(BEAT)

    def main_thread_hangs(self) -> str:
        """Where, in words; nothing where it computes, or says that it waits."""
        thread, stop = threading.main_thread().ident, StopRequest.current
        if waits or not hasattr(time, "pthread_getcpuclockid"):  # macOS, Windows
            self.main = Stillness()
            return ""
        used = time.clock_gettime_ns(time.pthread_getcpuclockid(thread))
        is_to_stop = self.asked or (stop and stop.received)
        if self.main.seconds(used) <= (HANG_IN_STOP if is_to_stop else HANG):
            return ""
        frame = sys._current_frames()[thread]
        return f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"

    def pass_on_requests(self) -> None:
        """A request to stop that came to one process comes to all, also to one that waits."""
        stop = StopRequest.current
        if stop and stop.received:
            self.store.set("stop", "")
        elif stop and not self.asked and self.store.check(["stop"]):
            self.asked = True
            os.kill(os.getpid(), signal.SIGTERM)

    def message(self) -> str:
        what = f"{self.lost} no longer answers, so process {self.world.rank} stops"
        return f"{what}; what is saved is good: start the run again with --resume auto"

    def someone_is_lost(self) -> bool:
        """After a collective has failed: wait until it is known whether a process is missing."""
        self.patience = 3 * BEAT  # there is a reason for suspicion
        found = self.found.wait(PATIENCE + 4 * BEAT)
        self.stop()
        return found

    def stop(self) -> None:
        self.stopping.set()
        self.join()
        self.beats.join(BEAT)  # it may wait for the store


def follow_parent() -> None:
    """End this process as soon as the one that started it has ended, however that happened."""

    def follow():
        wait([parent_process().sentinel])
        os._exit(EXIT_FAILED)

    threading.Thread(target=follow, daemon=True).start()
