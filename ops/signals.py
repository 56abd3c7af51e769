"""Requests to stop: SIGTERM and SIGUSR1, as schedulers send them, a closed terminal, Ctrl-C."""

import os
import signal
import threading
from contextlib import contextmanager, suppress

# Schedulers and terminals send these to whole process groups; Windows has two of them.
NAMES = ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"]
REQUESTS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
# nohup has it ignored, and so it stays.
if signal.getsignal(REQUESTS[-1]) == signal.SIG_IGN:
    REQUESTS.pop()


@contextmanager
def requests_blocked():
    """Requests to stop that come during the block are answered after it.

    A process that is started in the block inherits this, until it calls unblock_requests.
    """
    # One that another thread takes is not blocked, and its handler runs in the main thread.
    is_main, stop = threading.current_thread() is threading.main_thread(), StopRequest.current
    waits = is_main and stop is not None and stop.is_waiting
    if waits:
        stop.is_waiting = False
    has_masks = hasattr(signal, "pthread_sigmask")
    before = has_masks and signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        yield
    finally:
        if has_masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if waits:
        stop.wait_on()


def unblock_requests() -> None:
    """Answer the requests that the process's parent has blocked."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)


# The handler of requests after a StopRequest; None: that from before it.
after_a_run: signal.Handlers | None = None


def end_by_requests() -> None:
    """From now on a request ends this process without a traceback, until a StopRequest keeps it.

    For scripts and the processes that they start. Before the StopRequest there is nothing to save;
    after it there is nothing left to do but to end, so requests are ignored.
    """
    global after_a_run
    after_a_run = signal.SIG_IGN
    for request in REQUESTS:
        signal.signal(request, signal.SIG_DFL)


class WaitInterrupted(BaseException):
    """A request to stop came while the process waited. Not an Exception: nothing handles it."""


class StopRequest:
    """Inside the block, a signal does not end the process: it is kept until somebody looks.

    A second Ctrl-C ends the process at once.
    """

    current: "StopRequest | None" = None  # the one whose block this process is in

    def __init__(self, pass_on=None):
        self.received: signal.Signals | None = None
        self.is_waiting = False
        self.pass_on = pass_on  # called at each signal

    @property
    def name(self) -> str:
        """What asked to stop, for a message."""
        if self.received is None:
            return "another process"
        return "Ctrl-C" if self.received == signal.SIGINT else self.received.name

    def __enter__(self):
        from multiprocessing import parent_process  # too slow for the first lines of a script

        self.speaks = parent_process() is None  # one message is enough
        is_main = threading.current_thread() is threading.main_thread()  # others set no handlers
        self.before = {each: signal.signal(each, self._keep) for each in REQUESTS if is_main}
        StopRequest.current = self
        return self

    @contextmanager
    def waiting(self):
        """Inside the block a request raises WaitInterrupted at once, and so does an earlier one."""
        try:
            self.wait_on()
            yield
        finally:
            self.is_waiting = False

    def wait_on(self) -> None:
        self.is_waiting = True
        if self.received:
            self.is_waiting = False
            raise WaitInterrupted

    def __exit__(self, *_):
        StopRequest.current = None
        for request, handler in self.before.items():
            signal.signal(request, handler if after_a_run is None else after_a_run)

    def _keep(self, number: int, _) -> None:
        # Keep the first one: launchers often send a second signal.
        self.received = self.received or signal.Signals(number)
        # A second Ctrl-C is to end the process at once.
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if self.speaks:
                # Not by print: it fails where the signal has come into another print.
                with suppress(OSError):
                    os.write(2, b"stopping soon; Ctrl-C again stops at once\n")
        if self.pass_on:
            self.pass_on()
        if self.is_waiting:
            self.is_waiting = False  # a second one comes into no wait
            raise WaitInterrupted

    def end(self) -> None:
        """End this process by the signal that was received, as if nobody had kept it."""
        signal.signal(self.received, signal.SIG_DFL)
        os.kill(os.getpid(), self.received)
