"""Requests to stop: SIGTERM and SIGUSR1, as schedulers send them, and Ctrl-C."""

import signal
import sys
import threading
from contextlib import contextmanager
from multiprocessing import parent_process

# Schedulers and terminals send these to whole process groups.
REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextmanager
def requests_blocked():
    """Requests to stop that come during the block are answered after it.

    A process that is started in the block inherits this, until it calls unblock_requests.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_requests() -> None:
    """Answer the requests that the process's parent has blocked."""
    if parent_process() is not None:
        end_by_interrupts()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)


def end_by_interrupts() -> None:
    """Let Ctrl-C end this process at once, as SIGTERM does, without a traceback.

    For the time before training, in which there is nothing to save.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ignore_requests() -> None:
    """For the time in which there is nothing left to do but to end."""
    if threading.current_thread() is threading.main_thread():
        for request in REQUESTS:
            signal.signal(request, signal.SIG_IGN)


class StopRequest:
    """Inside the block, a signal does not end the process: it is kept until somebody looks.

    A second Ctrl-C ends the process at once.
    """

    def __init__(self, pass_on=None):
        self.received: signal.Signals | None = None
        self.pass_on = pass_on  # called at each signal
        self.before = {}

    @property
    def name(self) -> str:
        """What asked to stop, for a message."""
        if self.received is None:
            return "another process"
        return "Ctrl-C" if self.received == signal.SIGINT else self.received.name

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self.before = {request: signal.signal(request, self._keep) for request in REQUESTS}
        return self

    def __exit__(self, *_):
        for request, handler in self.before.items():
            signal.signal(request, handler)

    def _keep(self, number: int, _) -> None:
        # Keep the first one: launchers often send a second signal.
        self.received = self.received or signal.Signals(number)
        # A second Ctrl-C is to end the process at once.
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if parent_process() is None:  # one message is enough
                print("stopping soon; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        if self.pass_on:
            self.pass_on()
