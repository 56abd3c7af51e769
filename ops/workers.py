"""Loader processes that leave it to their parent to answer signals, and end with it."""

import multiprocessing
import os
import signal
import threading

from torch.utils.data import DataLoader

from ops.signals import REQUESTS, requests_blocked

LOOK = 2.0  # seconds between two looks whether the parent is alive


class ParentsLoader(DataLoader):
    """A DataLoader whose processes are ended by this process alone, or with it."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, worker_init_fn=obey_parent_only, **keywords)

    def __iter__(self):
        with requests_blocked():  # the processes start here, and keep them blocked
            return super().__iter__()


def obey_parent_only(worker: int) -> None:
    """Make this loader process deaf to requests to stop, but to SIGTERM of its own parent.

    The parent ends it by that signal where it does not end by itself, as at an exit by an error.
    """
    if not hasattr(signal, "sigtimedwait"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()


def follow(started_by: int) -> None:
    """End this process when its parent asks for it or is gone."""
    parent = multiprocessing.parent_process().pid
    while os.getppid() == started_by:
        heard = signal.sigtimedwait([signal.SIGTERM], LOOK)
        if heard is not None and heard.si_pid == parent:
            break
    os._exit(0)


def workers_per_process(workers: int, local_size: int) -> int:
    """Loader processes of one process: its share of `workers`, and of the cores that it may use.

    local_size: processes on this node.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    return min(workers, cores) // max(1, local_size)
