"""Loader processes that ignore requests to stop, and end with the process that started them.

If one fails, the run is told which and what to do.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from multiprocessing.queues import Queue
from weakref import WeakSet

from torch.utils.data import DataLoader

from ops.errors import EXIT_FAILED, InputError, RunFailed, one_line
from ops.signals import REQUESTS, requests_blocked
from ops.waiting import waiting_for

LOOK_SECONDS = 2.0  # between two looks whether the parent is alive
SHARED_MEMORY = "/dev/shm"  # through which batches travel on Linux
PREFETCH = 2  # batches that a worker has ready
REMEDIES = (
    "give it more (docker run --shm-size 8g), or take fewer --workers or --workers 0; else set "
    "TMPDIR to a short path that can be written"
)


# torch's iterators over the loader processes of this process, for `_workers` and
# `_workers_done_event` (private; torch 2.9 to 2.15). Ended ones go.
started: WeakSet = WeakSet()


class DoneEvent(threading.Event):
    """torch's event that ends loader processes. One that dies inside `is_set` keeps its lock for
    ever, so this one never takes it.
    """

    def __init__(self, shared):
        super().__init__()
        self.shared = shared

    def set(self) -> None:
        if not self.is_set():
            super().set()
            self.shared._flag.release()  # its set() without the lock (private; Python 3.10 to 3.14)


class SignalSafeLoader(DataLoader):
    """A DataLoader whose workers ignore requests to stop, and never outlive this process.

    Schedulers signal every process of a job. If the workers ended then, the loader would fail
    before the run has saved.
    """

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, worker_init_fn=begin_worker, **keywords)

    def __iter__(self):
        """The batches. Raises RunFailed where one cannot be handed over."""
        batches = None
        while True:
            try:
                with waiting_for(lambda: "a batch of pictures (the loader, or the disk behind it)"):
                    batches = batches or self.start()
                    batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                # An error in making the batch is the program's own.
                known = isinstance(error, (InputError, RunFailed, MemoryError))
                if known or not self.num_workers or str(error).startswith("Caught "):
                    raise
                why = one_line(str(error)) or type(error).__name__
                what = f"a loader process has died, or cannot hand over a batch ({why})"
                remedy = f"if its memory or {shared_memory()} was too small, {REMEDIES}"
                raise RunFailed(f"{what}; {remedy}") from error
            yield batch

    def start(self) -> Iterator:
        # Workers start here and inherit the blocked signals: none ends them while they start.
        with requests_blocked() if self._iterator is None else nullcontext():
            batches = super().__iter__()
            if self.num_workers and batches not in started:
                started.add(batches)
                batches._workers_done_event = DoneEvent(batches._workers_done_event)
        # torch's handler would raise in the middle of a step when a worker dies. It is missed when
        # its batch is awaited.
        in_main_thread = threading.current_thread() is threading.main_thread()
        if self.num_workers and in_main_thread and hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches


def shared_memory() -> str:
    """Through what batches travel, with its size, for a message."""
    if not os.path.isdir(SHARED_MEMORY):
        return "shared memory"
    usage = shutil.disk_usage(SHARED_MEMORY)
    return f"{SHARED_MEMORY} ({usage.free / 1e6:.0f} MB free of {usage.total / 1e6:.0f} MB)"


def begin_worker(worker: int) -> None:
    """Let a worker end where a batch cannot leave it, or when its own parent says so."""

    def give_up(error, _):
        with suppress(OSError):  # a log on a full disk
            print(f"loader process {os.getpid()}: {error}", file=sys.stderr, flush=True)
        os._exit(EXIT_FAILED)

    # Called by the thread that sends the batches (private; Python 3.10 to 3.14).
    Queue._on_queue_feeder_error = staticmethod(give_up)
    # multiprocessing's thread that hands over file numbers: a run that ends while it fetches one is
    # no news.
    sys.excepthook = tell_unless_run_is_gone
    # Requests to stop are ignored, except SIGTERM from the worker's own parent: it sends it to
    # workers that do not end by themselves, as when it ends by an error. Blocked signals wait in a
    # queue, from which the thread takes SIGTERM. Systems without sigtimedwait (macOS, Windows) keep
    # torch's own workers.
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
        threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()


def end_workers() -> None:
    """End all loader processes at once: torch would wait for each, though it waits for a disk."""
    for batches in started:
        for worker in batches._workers:
            worker.terminate()


def tell_unless_run_is_gone(kind, error, trace) -> None:
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def check_shared_memory(batch_bytes: int, workers: int, local_size: int) -> None:
    """Raise InputError where the batches that workers have ready do not fit into shared memory.

    batch_bytes: of one.  workers: of one process, of which there are local_size here.
    """
    if not workers or not os.path.isdir(SHARED_MEMORY):
        return
    needed = (PREFETCH * workers + 1) * batch_bytes * local_size
    if needed > shutil.disk_usage(SHARED_MEMORY).free:
        number = f"{workers * local_size} loader process(es)"
        sizes = f"{needed / 1e6:.0f} MB, {batch_bytes / 1e6:.0f} MB a batch"
        raise InputError(f"{shared_memory()} is too small: {number} need {sizes}: {REMEDIES}")


def end_with_parent(started_by: int) -> None:
    """End this process when its parent sends SIGTERM, or is gone."""
    # A signal names its sender: the scheduler's SIGTERM does not count. The parent need not be the
    # process that started this one, which may be a fork server.
    parent = multiprocessing.parent_process()
    # The system gives an orphan another parent. A fork server lives as long as its children.
    while os.getppid() == started_by and parent.is_alive():
        received = signal.sigtimedwait([signal.SIGTERM], LOOK_SECONDS)  # None: nothing came
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)


def workers_per_process(workers: int, local_size: int) -> int:
    """Loader processes of one process: its share of `workers`, and of the cores that it may use.

    local_size: processes on this node.
    """
    return min(workers // max(1, local_size), cores_of_process(local_size))


def cores_of_process(local_size: int) -> int:
    """Cores for one of the `local_size` processes of this node, where a job may have some only."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    # With several tasks a node, srun gives each its own.
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").partition("(")[0]
    return cores if tasks.partition(",")[0] != "1" else cores // max(1, local_size)
