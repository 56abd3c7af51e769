"""Loader processes: deaf to requests to stop, and never left behind."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from itertools import product
from multiprocessing.connection import Client
from multiprocessing.reduction import DupFd
from pathlib import Path

import numpy as np
import pytest

from adco.data.loader import EpochBatches, TrainingLoader, TrainingViews
from adco.data.pictures import ArrayPictures
from adco.data.views import Recipe
from ops import workers
from ops.distributed import World
from ops.errors import RunFailed
from ops.signals import REQUESTS, StopRequest, WaitInterrupted, requests_blocked
from ops.workers import workers_per_process
from tests.conftest import FORKS
from tests.support.background import wait_until

PICTURES = np.zeros((40, 8, 8, 3), np.uint8)


def loader(workers: int = 2) -> TrainingLoader:
    views = TrainingViews(ArrayPictures(PICTURES), [Recipe(8)], seed=0)
    return TrainingLoader(views, EpochBatches(len(PICTURES), 2, World(), 0), workers, False)


@pytest.mark.parametrize("request_to_stop", REQUESTS, ids=lambda number: number.name)
def test_a_request_to_stop_that_reaches_the_workers_changes_nothing(request_to_stop):
    others = set(multiprocessing.active_children())
    training = loader()
    batches = iter(training.epoch(0))
    next(batches)
    started = set(multiprocessing.active_children()) - others
    numbers = [str(child.pid) for child in started]
    assert len(numbers) == 2
    # from another process, as a scheduler sends it
    subprocess.run(["kill", f"-{request_to_stop.name[3:]}", *numbers], check=True)
    assert len(list(batches)) == len(training) - 1
    assert len(list(training.epoch(1))) == len(training)
    assert started <= set(multiprocessing.active_children())


def test_a_request_that_comes_while_workers_start_is_answered_by_the_parent():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        with requests_blocked():
            os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


ENDS = {
    "error": lambda: [][0],
    "exit": lambda: sys.exit(7),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def end_with_workers(end: str, method: str, folder: Path) -> None:
    """End this process while its loader processes work, which are noted in a file."""
    os.dup2(os.open(folder / "stderr", os.O_CREAT | os.O_WRONLY), 2)
    multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_forkserver_preload([])
    batches = iter(loader().epoch(0))
    next(batches)
    numbers = [str(child.pid) for child in multiprocessing.active_children()]
    (folder / "workers").write_text(" ".join(numbers))
    ENDS[end]()


def is_running(number: str) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False


# A fork server is the parent of the processes that it starts, and outlives the run.
@pytest.mark.parametrize("end, method", [*product(ENDS, ["fork"]), ("kill", "forkserver")])
def test_workers_end_with_their_parent_however_it_ends(tmp_path, end, method):
    parent = FORKS.Process(target=end_with_workers, args=(end, method, tmp_path))
    parent.start()
    parent.join(120)
    numbers = (tmp_path / "workers").read_text().split()
    assert len(numbers) == 2
    assert wait_until(lambda: not any(map(is_running, numbers)), 30)
    said = (tmp_path / "stderr").read_text()
    assert parent.exitcode == {"error": 1, "exit": 7, "kill": -signal.SIGKILL}[end], said
    assert "DataLoader" not in said


class FileNumbers:
    """Items whose file numbers a loader process offers, as it does with those of its batches."""

    def __getitem__(self, index):
        return DupFd(os.dup(2))

    def __len__(self):
        return 4


def next_of(items):
    return items[0]


def test_a_run_that_ends_while_it_fetches_a_batch_is_no_news(capfd):
    options = dict(collate_fn=next_of, num_workers=1, multiprocessing_context="fork")
    files = workers.SignalSafeLoader(FileNumbers(), batch_size=1, **options)
    for number in files:
        # It has connected, but not asked; the next one is served by the same thread.
        Client(number._id[0], authkey=multiprocessing.current_process().authkey).close()
        os.close(number.detach())
    assert capfd.readouterr().err == ""


def test_loader_processes_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert [workers_per_process(number, local_size=4) for number in (0, 8, 64)] == [0, 2, 3]


def test_a_request_that_another_thread_takes_waits_for_the_end_of_the_block():
    sleeper = threading.Thread(target=time.sleep, args=(2,))
    sleeper.start()
    inside = []
    with StopRequest() as stop, pytest.raises(WaitInterrupted), stop.waiting():
        with requests_blocked():
            signal.pthread_kill(sleeper.ident, signal.SIGTERM)
            assert wait_until(lambda: stop.received, 10)
            inside.append("here")
        inside.append("behind")
    assert inside == ["here"]


def test_only_loader_processes_are_ended_at_the_end_of_a_run(monkeypatch):
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)

    @contextmanager
    def as_another_thread_starts_one():
        other.start()
        yield

    monkeypatch.setattr(workers, "requests_blocked", as_another_thread_starts_one)
    before = set(multiprocessing.active_children())
    batches = loader(workers=1).epoch(0)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before - {other}
    workers.end_workers()
    worker.join(10)
    alive = other.is_alive()
    other.kill()
    assert worker.exitcode is not None and alive


def test_a_loader_process_that_dies_holding_torchs_lock_is_not_waited_for():
    training = loader(workers=1)
    batches = training.epoch(0)
    next(batches)
    iterator = training.loader._iterator
    iterator._workers_done_event.shared._cond.acquire()  # as by the process that dies now
    iterator._workers[0].kill()
    with pytest.raises(RunFailed, match="a loader process has died"):
        list(batches)
    if iterator._workers_status[0]:
        iterator._mark_worker_as_unavailable(0)  # as torch does where no batch is left
    iterator._shutdown_workers()


def forget_thrice() -> None:
    multiprocessing.set_start_method("fork", force=True)
    open_files = []
    for _ in range(3):
        assert len(list(loader(1).epoch(0))) == 20
        multiprocessing.active_children()  # takes leave of those that have ended
        gc.collect()
        open_files.append(len(os.listdir("/proc/self/fd")))
    assert open_files[0] == open_files[-1] and not workers.started


def test_loader_processes_that_have_ended_are_forgotten():
    # In a process of its own: what earlier tests have left open may go meanwhile.
    process = FORKS.Process(target=forget_thrice)
    process.start()
    process.join(60)
    assert process.exitcode == 0
