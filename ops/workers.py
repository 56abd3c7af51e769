"""Loader processes that ignore requests to stop, and end with the process that started them."""

import multiprocessing
import os
import signal
import threading

from torch.utils.data import DataLoader

from ops.signals import REQUESTS, requests_blocked

LOOK_SECONDS = 2.0  # between two looks whether the parent is alive


class SignalSafeLoader(DataLoader):
    """A DataLoader whose workers ignore requests to stop, and never outlive this process.

    Schedulers signal every process of a job. If the workers ended then, the loader would fail
    before the run has saved.
    """

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, worker_init_fn=ignore_stop_signals, **keywords)

    def __iter__(self):
        # Workers start here and inherit the blocked signals: none ends them while they start.
        with requests_blocked():
            return super().__iter__()


def ignore_stop_signals(worker: int) -> None:
    """Make this worker ignore requests to stop, except SIGTERM from its own parent.

    The parent sends it to workers that do not end by themselves, as when it ends by an error.
    """
    # Systems without sigtimedwait (macOS, Windows) keep torch's own workers.
    if not hasattr(signal, "sigtimedwait"):
        return
    # Blocked signals wait in a queue, from which the thread takes SIGTERM.
    signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()


def end_with_parent(started_by: int) -> None:
    """End this process when its parent sends SIGTERM, or is gone."""
    # A signal names its sender: the scheduler's SIGTERM does not count. The parent need not be the
    # process that started this one, which may be a fork server.
    parent = multiprocessing.parent_process().pid
    # The system gives an orphan another parent.
    while os.getppid() == started_by:
        received = signal.sigtimedwait([signal.SIGTERM], LOOK_SECONDS)  # None: nothing came
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)


def workers_per_process(workers: int, local_size: int) -> int:
    """Loader processes of one process: its share of `workers`, and of the cores that it may use.

    local_size: processes on this node.
    """
    # A job of a scheduler may use fewer cores than the machine has.
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    return min(workers, cores) // max(1, local_size)
