"""Nothing hangs without a word, and no end loses what was computed."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from unittest import mock

import pytest
from torch.distributed import FileStore, HashStore, TCPStore

from adco.data.loader import EpochBatches, TrainingLoader, TrainingViews
from adco.data.pictures import ArrayPictures
from adco.data.views import Recipe
from adco.probe.metrics import Accuracy
from ops import checkpoint, waiting
from ops.distributed import IFNAME, World, meet_all
from ops.errors import InputError, RunFailed, Steady, reported
from ops.heartbeat import Heartbeat
from ops.launch import device_kind
from ops.signals import StopRequest, WaitInterrupted
from ops.waiting import meet, waiting_for, who_is_missing
from ops.workers import check_shared_memory
from tests.conftest import ROOT
from tests.support.background import wait_until
from tests.support.gloo import in_processes
from tests.support.pictures import class_folders, trunk_file
from tests.support.scripts import TINY, Running, assert_refused, records, run_main, run_script
from tests.test_workers import PICTURES, loader

LONG = ["--epochs", "2000", "--knn_freq", "0", "-p", "1"]


def last_checkpoint(folder):
    (path,) = folder.rglob(checkpoint.LAST)
    return checkpoint.load(path)


# ---- loader processes


def test_a_loader_process_that_dies_is_told_with_a_remedy():
    others = set(multiprocessing.active_children())
    batches = loader(workers=1).epoch(0)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RunFailed, match=r"has died.*\(\w.*\).*--shm-size.*--workers 0.*TMPDIR"):
        list(batches)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm")
def test_a_batch_that_cannot_be_handed_over_is_told_with_a_remedy(capfd):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))  # of a file in shared memory too
    try:
        with pytest.raises(RunFailed, match=r"loader process has died, or cannot hand over"):
            list(loader(workers=1).epoch(0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "loader process" in capfd.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_making_a_batch_is_its_own(workers):
    class Faulty(ArrayPictures):
        def read(self, index):
            raise ZeroDivisionError("of the program")

    views = TrainingViews(Faulty(PICTURES), [Recipe(8)], seed=0)
    training = TrainingLoader(views, EpochBatches(40, 2, World(), 0), workers, False)
    with pytest.raises(ZeroDivisionError, match="of the program"):
        next(training.epoch(0))


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm")
def test_batches_that_do_not_fit_into_shared_memory_are_refused(tmp_path, digit_folder):
    check_shared_memory(10**3, 2, 1)
    check_shared_memory(10**15, 0, 1)  # nothing travels
    with pytest.raises(InputError, match=r"/dev/shm \(.* MB\) is too small: 6 loader.*--shm-size"):
        check_shared_memory(10**14, 2, 3)
    words = [*TINY, "--data", digit_folder, "--image_size", 200000, "-j", 1]
    assert_refused(run_main("main_adco.py", *words, cwd=tmp_path), "/dev/shm", "--workers 0")


# ---- a stop while something is awaited


@pytest.mark.parametrize("workers, nproc", [(1, 1), (0, 2)])
def test_a_stop_is_answered_while_a_picture_cannot_be_read(tmp_path, workers, nproc):
    data = class_folders(tmp_path / "data", num_train=8)
    words = ["--data", data, *LONG, "-j", workers, "--nproc", nproc]
    running = Running(tmp_path, *words)
    running.wait_for_a_step()
    os.mkfifo(tmp_path / "pipe")  # opening it waits, as for a file server
    os.replace(tmp_path / "pipe", data / "train/red/red_3.png")
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    size = -1
    while size != (size := metrics.stat().st_size):  # until nothing moves
        time.sleep(0.5)
    start = time.monotonic()
    running.process.terminate()
    code, out, err = running.end(timeout=60)
    assert code == 75 and "stopped by SIGTERM" in out, err
    assert time.monotonic() - start < 20
    steps = [record["step"] for record in records(metrics.parent, "train")]
    assert last_checkpoint(tmp_path)["step"] == steps[-1]


def test_a_request_ends_a_wait_and_nothing_else():
    with StopRequest() as stop:
        with pytest.raises(WaitInterrupted), stop.waiting():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        with pytest.raises(WaitInterrupted), stop.waiting():  # one that came before
            raise AssertionError
        assert stop.name == "SIGTERM" and not stop.is_waiting


def test_a_request_to_one_process_reaches_the_others_through_the_store():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    asked, waits = (Heartbeat(store, World(rank, 2)) for rank in (0, 1))
    with StopRequest():
        waits.pass_on_requests()
        assert not store.check(["stop"])  # nobody has been asked
        os.kill(os.getpid(), signal.SIGUSR1)
        asked.pass_on_requests()
    with StopRequest() as stop:
        with pytest.raises(WaitInterrupted), stop.waiting():
            waits.pass_on_requests()
            time.sleep(5)
        assert stop.name == "SIGTERM"


def test_a_closed_terminal_is_a_request_to_stop(tmp_path, digit_folder):
    running = Running(tmp_path, "--data", digit_folder, *LONG)
    running.wait_for_a_step()
    running.process.send_signal(signal.SIGHUP)
    code, out, err = running.end()
    assert code == 75 and "stopped by SIGHUP" in out and err == ""
    assert last_checkpoint(tmp_path)["step"] > 0


def test_who_waits_says_for_what(monkeypatch, capfd):
    monkeypatch.setattr(waiting, "SAY_SECONDS", 0.2)
    said = []

    def has_said():
        said.append(capfd.readouterr().err)
        return "waiting for the other one, for" in "".join(said)

    with waiting_for(lambda: "the other one"):
        with waiting_for(lambda: "a moment"):
            pass
        assert wait_until(has_said, 30)
    assert "a moment" not in "".join(said)


def missing_process(world, port):
    try:
        meet_all(World(world.rank, 3), f"tcp://127.0.0.1:{port}", minutes=0.05)
    except RunFailed as error:
        return str(error)


def test_processes_that_do_not_come_are_named_after_a_time_that_can_be_set(port):
    first, second = in_processes(missing_process, 2, port)
    assert "process(es) 2 of 3 did not come in 0.05 minutes" in first
    assert second


def test_who_is_missing_is_known(tmp_path):
    store = in_processes(own_store, 1, str(tmp_path))[0]
    assert store == ["process(es) 1, 2 of 3", "process(es) 2 of 3", ""]


def own_store(world, folder):
    store, found = FileStore(f"{folder}/store"), []
    for rank in range(3):
        store.set(f"meeting/{rank}", "")
        found.append(who_is_missing(store, "meeting", 3))
    return found


def test_what_an_earlier_attempt_left_in_the_store_counts_for_nobody(tmp_path):
    first, second = in_processes(met_twice, 2, str(tmp_path))
    assert first == second and len(set(first)) == 2


def met_twice(world, folder):
    store = FileStore(f"{folder}/store")
    time.sleep(0.3 * world.first)  # the other one reads the old names first
    met = [meet(store, world.rank, 2, 1, "here")]
    store.set(f"met {world.rank}", "")
    store.wait(["met 0", "met 1"])
    time.sleep(0.3 * world.first)
    return [*met, meet(store, world.rank, 2, 1, "here")]


@pytest.mark.skipif(sys.platform != "linux", reason="names of interfaces")
def test_gloo_is_sent_to_the_interface_that_leads_to_the_first_process(port):
    store = HashStore()
    store.set("address/1", "127.0.0.1")
    assert waiting.interface(store, 0, 2, "127.0.0.1") == "lo"
    assert store.get("address/0") == b"127.0.0.1"
    # What the user has set stays.
    for given, taken in (("", "lo"), ("eth7", "eth7")):
        with mock.patch.dict(os.environ, {IFNAME: given}):
            if not given:
                del os.environ[IFNAME]
            meet_all(World(), f"tcp://127.0.0.1:{port}")
            assert os.environ[IFNAME] == taken


# ---- what nobody foresaw


def test_an_unforeseen_error_is_one_sentence_with_a_log_and_code_70(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ops.errors.log_folders", [str(tmp_path)])
    with pytest.raises(SystemExit) as ended, reported("script.py"):
        raise KeyError("nobody\nforesaw \x1b[31m this")
    assert ended.value.code == 70
    (line,) = capsys.readouterr().err.splitlines()
    (log,) = tmp_path.glob("error-*.log")
    assert line.startswith("script.py: error: this was not foreseen: KeyError") and str(log) in line
    assert "Traceback" in log.read_text() and "\x1b" not in line


@pytest.mark.parametrize("where, saved", [("ops.journal.Journal.progress", True),
                                          ("adco.pretrain.game.train_step", False)])  # fmt: skip
def test_a_run_saves_its_last_whole_state_first(tmp_path, digit_folder, monkeypatch, where, saved):
    calls = []

    def fail(*_, **__):
        calls.append(1)
        raise TypeError("not foreseen")

    monkeypatch.setattr(where, fail)
    words = [*TINY, "--data", digit_folder, "--knn_freq", 0, "--ad_init", 0]
    ended = run_main("main_adco.py", *words, cwd=tmp_path)
    assert ended.returncode == 70 and "TypeError" in ended.stderr and calls
    assert "Traceback" not in ended.stderr and list(tmp_path.rglob("error-*.log"))
    assert bool(list(tmp_path.rglob(checkpoint.LAST))) == saved


def test_a_score_that_fails_is_taken_again_by_the_run_that_goes_on(
    tmp_path, digit_folder, monkeypatch
):
    words = [*TINY, "--data", digit_folder, "--ad_init", 0, "--epochs", 1, "--resume", "auto"]
    words += ["--knn_freq", 1, "--save_minutes", 0.000001]
    with monkeypatch.context() as patch:
        scores = iter([[Accuracy(1, 1, 15)]])
        patch.setattr("adco.pretrain.monitor.knn_accuracies", lambda *_: next(scores))
        ended = run_main("main_adco.py", *words, cwd=tmp_path)
    assert ended.returncode == 70
    ended = run_main("main_adco.py", *words, cwd=tmp_path)
    assert ended.returncode == 0 and "after 1 epochs" in ended.stdout, ended.stderr


def test_leftovers_of_torchrun_in_the_shell_are_named(tmp_path, digit_folder):
    words = [*TINY, "--data", digit_folder]
    ended = run_main("main_adco.py", *words, cwd=tmp_path, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0")
    assert ended.returncode == 70 and "MASTER_ADDR and MASTER_PORT not set" in ended.stderr
    assert "RANK and WORLD_SIZE are set in this shell" in ended.stderr


def test_probes_and_export_end_alike(tmp_path, monkeypatch):
    data, trunk = class_folders(tmp_path / "data"), trunk_file(tmp_path / "trunk.pth")
    monkeypatch.setattr("adco.probe.run.introduction", lambda *_: [][0])
    words = ["--dataset", "folder", "--data", data, "--pretrained", trunk, "--head", "knn"]
    ended = run_main("lincls.py", *words, "-j", 0, "--image_size", 32, cwd=tmp_path)
    assert ended.returncode == 70 and "IndexError" in ended.stderr
    monkeypatch.setattr("adco.export.header", lambda *_: [][0])
    words = [trunk, tmp_path / "x.safetensors", "--to", "safetensors"]
    ended = run_main("adco/export.py", *words, cwd=tmp_path)
    assert ended.returncode == 70 and "IndexError" in ended.stderr


# ---- what is printed


def test_a_stream_that_fails_or_is_gone_ends_nothing():
    with suppress(OSError), open("/dev/full", "w") as full:
        stream = Steady(full)
        print("lost", file=stream, flush=True)
        stream.flush()
    code = "import ops.errors as e, sys; e.steady_streams(); print(1); print(2, file=sys.stderr)"
    closed = subprocess.run(
        ["sh", "-c", f"{sys.executable} -c '{code}' >&- 2>&- <&-; echo $?"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert closed.stdout == "0\n"


def test_a_run_whose_output_goes_nowhere_trains_to_its_end(tmp_path, digit_folder):
    words = [*TINY, "--data", digit_folder, "--epochs", 1, "--ad_init", 0]
    command = " ".join(map(str, [sys.executable, ROOT / "main_adco.py", *words]))
    ended = subprocess.run(f"{command} >/dev/full 2>&-", shell=True, cwd=tmp_path)
    assert ended.returncode == 0 and last_checkpoint(tmp_path)["epoch"] == 1


# ---- what cannot be meant


def test_gpus_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which device_kind changes
    for chosen in ("0,1", "7"):
        with pytest.raises(InputError, match=f"choose={chosen}: torch finds 0"):
            device_kind("auto", chosen)


@pytest.mark.parametrize("words", [("-b", 1), ("-b", 2, "--nproc", 2)])
def test_a_picture_alone_in_a_process_is_refused(tmp_path, digit_folder, words):
    ended = run_main("main_adco.py", *TINY, "--data", digit_folder, *words, cwd=tmp_path)
    assert_refused(ended, "BatchNorm needs at least 2")


def test_a_run_in_which_every_step_was_dropped_has_failed(tmp_path, digit_folder):
    words = [*TINY, "--data", digit_folder, "--lr", 1e30, "--amp", "none", "--ad_init", 0]
    ended = run_main("main_adco.py", *words, "--knn_freq", 0, cwd=tmp_path)
    assert ended.returncode == 70 and "diverged: loss or gradient not finite" in ended.stderr
    for line in next(tmp_path.rglob("metrics.jsonl")).read_text().splitlines():
        assert "NaN" not in line


def test_it_starts_where_there_are_no_locks_and_no_limits(tmp_path, digit_folder):
    hidden = "import sys, signal; sys.modules['fcntl'] = sys.modules['resource'] = None"
    hidden += "; del signal.SIGUSR1, signal.SIGHUP, signal.pthread_sigmask, signal.SIGCHLD"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    words = [*TINY, "--data", digit_folder, "--dry_run", 1]
    ended = run_script("main_adco.py", *words, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
