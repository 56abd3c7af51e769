"""What a run outlives, and how it ends where it cannot go on."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from adco.data.datasets import load_splits
from adco.data.pictures import FolderPictures
from adco.pretrain.options import PretrainConfig
from adco.pretrain.resume import newest_with
from adco.pretrain.saving import Checkpoints
from ops import checkpoint
from ops.errors import EXIT_FAILED, EXIT_STOPPED
from ops.journal import Journal
from ops.run_folder import lock_folder
from tests.conftest import ROOT
from tests.support.background import started_by, wait_until
from tests.support.scripts import (
    TINY,
    Running,
    assert_refused,
    events_of,
    files_limited_to,
    losses,
    pretrain,
    records,
    run_main,
)

CONFIG = PretrainConfig(global_batch_size=256)
STATE = {"weights": torch.arange(20_000.0), "epoch": 3, "names": {"a": torch.ones(5)}}


def run_in(folder: Path) -> Path:
    """A run folder with two checkpoints, epochs 2 and 3, of the default configuration."""
    run = folder / "run"
    run.mkdir()
    journal = Journal(run, asdict(CONFIG))
    saves = Checkpoints(run, minutes=0, journal=journal)
    for epoch in (2, 3):
        saves.save({**STATE, "epoch": epoch})
        past = time.time() - 10 + epoch
        os.utime(saves.last, (past, past))
    journal.close()
    return run


def test_the_last_two_checkpoints_are_kept(tmp_path):
    run = run_in(tmp_path)
    epochs = [
        checkpoint.load(run / name)["epoch"]
        for name in ("checkpoint_last.pth.tar", "checkpoint_previous.pth.tar")
    ]
    assert epochs == [3, 2]
    assert not list(run.glob("*.partial"))


@pytest.mark.parametrize("damage", ["truncated", "zeroed", "empty"])
def test_a_damaged_newest_file_is_passed_over_with_a_warning(tmp_path, damage):
    run = run_in(tmp_path)
    last = run / checkpoint.LAST
    size = last.stat().st_size
    last.write_bytes(
        {"truncated": last.read_bytes()[: size // 2], "zeroed": bytes(size), "empty": b""}[damage]
    )
    path, state, (sentence,) = newest_with(CONFIG, tmp_path, {})
    assert path.name == checkpoint.PREVIOUS and state["epoch"] == 2
    assert checkpoint.LAST in sentence and checkpoint.PREVIOUS in sentence


def test_a_damaged_file_never_takes_the_place_of_the_good_one_before_it(tmp_path):
    run = run_in(tmp_path)
    (run / checkpoint.LAST).write_bytes(b"torn")
    path, _, _ = newest_with(CONFIG, tmp_path, {})
    Checkpoints(run, 0, Journal(None), source=path).save({**STATE, "epoch": 4})
    assert checkpoint.load(run / checkpoint.LAST)["epoch"] == 4
    assert checkpoint.load(run / checkpoint.PREVIOUS)["epoch"] == 2


def test_a_full_disk_is_told_and_the_next_save_tries_again(tmp_path, capfd):
    run = run_in(tmp_path)
    journal = Journal(run)
    saves = Checkpoints(run, 0, journal, source=run / checkpoint.LAST)
    with files_limited_to(10_000):
        saves.save({**STATE, "epoch": 5})
    assert saves.failed and "NOT SAVED" in capfd.readouterr().err
    assert checkpoint.load(run / checkpoint.LAST)["epoch"] == 3
    saves.save({**STATE, "epoch": 6})
    assert not saves.failed
    assert checkpoint.load(run / checkpoint.LAST)["epoch"] == 6
    assert checkpoint.load(run / checkpoint.PREVIOUS)["epoch"] == 3


def test_a_save_in_the_background_is_of_its_moment_and_its_failure_is_told(tmp_path, capfd):
    run = run_in(tmp_path)
    saves, weights = Checkpoints(run, 0, Journal(run), source=run / checkpoint.LAST), torch.ones(9)
    os.mkfifo(run / "checkpoint_last.pth.tar.partial")  # a disk that takes its time
    assert saves.save({**STATE, "weights": weights, "epoch": 5}, in_background=True)
    assert saves.writing.is_alive() and not capfd.readouterr().err
    Path(run / "checkpoint_last.pth.tar.partial").read_bytes()
    saves.writing.join()
    assert not saves.due() and saves.failed and "NOT SAVED" in capfd.readouterr().err
    assert saves.save({**STATE, "weights": weights, "epoch": 6}, in_background=True)
    weights.zero_()
    assert saves.wait() and not saves.failed
    state = checkpoint.load(run / checkpoint.LAST)
    assert state["epoch"] == 6 and state["weights"].sum() == 9
    assert checkpoint.load(run / checkpoint.PREVIOUS)["epoch"] == 3


def test_a_save_without_room_for_a_copy_is_waited_for(tmp_path, monkeypatch):
    def no_room(state):
        raise MemoryError

    monkeypatch.setattr(checkpoint, "snapshot", no_room)
    run = run_in(tmp_path)
    saves = Checkpoints(run, 0, Journal(run), source=run / checkpoint.LAST)
    assert saves.save({**STATE, "epoch": 7}, in_background=True) and saves.writing is None
    assert checkpoint.load(run / checkpoint.LAST)["epoch"] == 7


def test_a_lost_folder_is_told_and_made_again(tmp_path, capfd):
    run = run_in(tmp_path)
    journal = Journal(run)
    saves = Checkpoints(run, 0, journal)
    away, blocked = tmp_path / "away", tmp_path / "run"
    run.rename(away)
    blocked.write_text("in the way")
    saves.save({**STATE, "epoch": 5})
    journal.record("train", 1, {"loss": 1.0})
    told = capfd.readouterr().err
    assert "NOT SAVED" in told and "cannot write the log" in told
    blocked.unlink()
    journal.record("train", 2, {"loss": 2.0})
    saves.save({**STATE, "epoch": 6})
    assert checkpoint.load(run / checkpoint.LAST)["epoch"] == 6
    assert [record["step"] for record in records(run, "train")] == [1, 2]


def test_half_a_line_of_the_log_never_stays_on_a_full_disk(tmp_path):
    journal = Journal(tmp_path)
    journal.record("train", 1, {"loss": 1.0})
    with files_limited_to(60):
        journal.record("train", 2, {"loss": 2.0})
        assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    journal.record("train", 3, {"loss": 3.0})
    # What could not be written is there now, and the warning of it.
    assert [r["kind"] for r in records(tmp_path)] == ["train", "train", "warning", "train"]
    assert journal.size == (tmp_path / "metrics.jsonl").stat().st_size


def test_a_run_on_a_full_disk_trains_to_the_end_and_says_that_it_is_not_saved(
    tmp_path, digit_folder
):
    words = [*TINY, "--data", str(digit_folder), "--epochs", "1", "--knn_freq", "0"]
    with files_limited_to(2_000_000):  # the checkpoint has 60 MB
        result = run_main("main_adco.py", *words, cwd=tmp_path)
    assert result.returncode == EXIT_FAILED, result.stderr
    assert "NOT SAVED" in result.stderr and "could not be saved" in result.stderr
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    assert '"epoch"' in metrics.read_text()


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, digit_folder):
    words = [*TINY, "--data", digit_folder, "--save_path", "/proc/nowhere"]
    assert_refused(run_main("main_adco.py", *words, cwd=tmp_path), "run folder", "--save_path")


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_run_told_to_stop_saves_and_ends_with_code_75(tmp_path, digit_folder, nproc):
    words = ["--data", digit_folder, "--nproc", nproc, "--epochs", 400, "--knn_freq", 0]
    running = Running(tmp_path, *words)
    running.wait_for_a_step()
    running.process.send_signal(signal.SIGUSR1 if nproc == 1 else signal.SIGINT)
    code, out, err = running.end()
    assert code == EXIT_STOPPED, err
    assert "stopped by" in out and "--resume auto" in out
    (path,) = tmp_path.rglob(checkpoint.LAST)
    state = checkpoint.load(path)
    assert state["epoch_step"] > 0 or state["epoch"] > 0


def test_two_runs_never_share_a_folder(tmp_path, digit_folder, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    words = ["--data", digit_folder, "--epochs", 400, "--knn_freq", 0, "--save_minutes", 0.001]
    running = Running(tmp_path, *words)
    running.wait_for_a_step()
    while not list(tmp_path.rglob(checkpoint.LAST)):
        time.sleep(0.01)
    words = ["main_adco.py", *TINY, *words, "--resume", "auto"]
    monkeypatch.setattr("ops.run_folder.LOCK_SECONDS", 0.5)
    who = f"process {running.process.pid} on {platform.node()}, SLURM job 7;"
    assert_refused(run_main(*words, cwd=tmp_path), "still going on in", who, "--resume auto")
    running.process.terminate()
    assert running.end()[0] == EXIT_STOPPED


def test_a_lock_that_is_given_up_in_time_is_waited_for(tmp_path, monkeypatch, capfd):
    code = "import sys; from pathlib import Path; from ops.run_folder import lock_folder\n"
    code += f"lock = lock_folder(Path({str(tmp_path)!r})); print('kept', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"kept\n"
    monkeypatch.setattr("ops.waiting.SAY_SECONDS", 0.2)
    timer = threading.Timer(1.5, holder.kill)
    timer.start()
    with lock_folder(tmp_path) as lock:
        assert f"process {os.getpid()} on {platform.node()}" in Path(lock.name).read_text()
    assert f"still going on in process {holder.pid} on {platform.node()}" in capfd.readouterr().err
    timer.join(), holder.communicate()


def test_a_run_that_cannot_be_written_is_passed_over(tmp_path):
    run = run_in(tmp_path)
    run.chmod(0o500)
    if os.access(run, os.W_OK):  # as root
        for words in (["--bind", run, run], ["-o", "remount,bind,ro", run]):
            if subprocess.run(["mount", *words], capture_output=True).returncode:
                pytest.skip("root needs a mount to see a folder that cannot be written")
    try:
        path, _, sentences = newest_with(CONFIG, tmp_path, {})
    finally:
        subprocess.run(["umount", run], capture_output=True)
        run.chmod(0o700)
    assert path is None and sentences[0].startswith(f"passed over: {run} cannot be written")


def test_a_second_interrupt_ends_the_process_at_once():
    code = "import time; from ops.signals import StopRequest\n"
    code += "with StopRequest(): print('ready', flush=True); time.sleep(60); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert "again" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT


def test_a_killed_process_stops_the_others_and_is_named(tmp_path, digit_folder):
    running = Running(tmp_path, "--data", digit_folder, "--nproc", 2, "--epochs", 400)
    running.wait_for_a_step()
    os.kill(started_by(running.process)[1], signal.SIGKILL)
    start = time.monotonic()
    code, _, err = running.end()
    assert code == EXIT_FAILED and time.monotonic() - start < 60
    assert "process 1 was ended by SIGKILL" in err and "Traceback" not in err


def test_a_lost_node_stops_the_other_one_within_a_minute_and_is_named(tmp_path, digit_folder, port):
    words = ["--data", digit_folder, "--epochs", 400, "--nodes_num", 2]
    words += ["--master_port", port]
    nodes = [Running(tmp_path, *words, "--node_rank", node) for node in (0, 1)]
    nodes[0].wait_for_a_step()
    nodes[1].process.kill()
    start = time.monotonic()
    code, _, err = nodes[0].end()
    assert code == EXIT_FAILED and time.monotonic() - start < 60
    assert "process 1 no longer answers" in err and "--resume auto" in err
    nodes[1].end()


def test_a_dry_run_says_what_the_run_needs_and_leaves_nothing(tmp_path, digit_folder, monkeypatch):
    words = [*TINY, "--data", digit_folder, "--dry_run", 1]
    result = run_main("main_adco.py", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = ("steps per epoch", "images/s", "whole run", "peak memory", "kNN scores")
    for name in (*rows, '"cluster": 32'):
        assert name in result.stdout
    assert "_crops" not in result.stdout  # nothing reads them without --multi_crop 1
    assert not list(tmp_path.iterdir())
    refused = run_main("main_adco.py", *words, "--save_path", "/proc/nowhere", cwd=tmp_path)
    assert_refused(refused, "--save_path")
    monkeypatch.setattr("adco.pretrain.dry_run.free_memory", lambda _: 1e6)  # of a small GPU
    refused = run_main("main_adco.py", *words, cwd=tmp_path)
    assert_refused(refused, "a kNN score takes 0.", "--knn_freq 0")


def test_resuming_takes_back_what_was_logged_after_the_save(tmp_path):
    journal = Journal(tmp_path)
    journal.record("train", 1, {"loss": 1.0})
    size = journal.size
    journal.record("train", 2, {"loss": 2.0})
    journal.close()
    journal = Journal(tmp_path, size=size)
    journal.record("train", 2, {"loss": 3.0})
    journal.close()
    assert losses(tmp_path) == [1.0, 3.0]
    # One curve in TensorBoard too.
    points = [(e.step, v.simple_value) for e in events_of(tmp_path) for v in e.summary.value]
    assert points == [(1, 1.0), (2, 3.0)]


@pytest.mark.parametrize("torn", [b'{"kind": "tra', b"\0" * 40, b'{"kind": 3}\n'])
def test_a_torn_line_of_the_log_is_taken_back(tmp_path, torn):
    journal = Journal(tmp_path)
    journal.record("train", 1, {"loss": 1.0})
    journal.close()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(torn)
    journal = Journal(tmp_path, size=10**6)
    journal.record("train", 2, {"loss": 2.0})
    journal.close()
    assert losses(tmp_path) == [1.0, 2.0]


def test_a_histogram_of_what_is_not_finite_ends_no_run(tmp_path):
    for values in ([float("nan")] * 3, [1.0, float("inf")], []):
        journal = Journal(tmp_path)
        journal.record("adversaries", 1, {"nearest": values})
        journal.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_the_most_steps_win_whatever_the_times_of_the_files(tmp_path):
    run = run_in(tmp_path)
    for name, step in (("checkpoint_0001.pth.tar", 1), ("checkpoint_best.pth.tar", 2)):
        checkpoint.save({**STATE, "epoch": step, "step": step, "startup_step": 9}, run / name)
        os.utime(run / name, (time.time() + 100 * step,) * 2)
    for name, step in ((checkpoint.LAST, 5), (checkpoint.PREVIOUS, 4)):
        checkpoint.save({**STATE, "epoch": step, "step": step, "startup_step": 9}, run / name)
        os.utime(run / name, (1e9, 1e9))
    assert newest_with(CONFIG, tmp_path, {})[0].name == checkpoint.LAST
    (run / checkpoint.LAST).write_bytes(b"torn")
    path, _, (sentence,) = newest_with(CONFIG, tmp_path, {})
    assert path.name == checkpoint.PREVIOUS and checkpoint.LAST in sentence


def test_ten_steps_in_a_row_that_are_not_finite_stop_the_run(tmp_path, digit_folder):
    words = [*TINY, "--data", digit_folder, "--epochs", 40, "--lr", 1e30, "--save_minutes", 1e-6]
    result = run_main("main_adco.py", *words, "--ad_init", 0, "--knn_freq", 0, cwd=tmp_path)
    assert result.returncode == EXIT_FAILED, (result.stdout, result.stderr)
    assert (
        "10 steps in a row" in result.stderr and "checkpoint_last.pth.tar, which" in result.stderr
    )
    (path,) = tmp_path.rglob(checkpoint.LAST)
    state = checkpoint.load(path)
    for tensor in (*state["state_dict"].values(), *state["Memory_Bank"].values()):
        assert tensor.isfinite().all()


def test_a_save_by_the_clock_is_due_until_it_is_done(tmp_path):
    saves = Checkpoints(tmp_path, minutes=10, journal=Journal(None))
    assert not saves.due()
    saves.saved_at -= 600
    assert saves.due()
    saves.save(STATE)
    assert not saves.due()
    assert not Checkpoints(tmp_path, minutes=0, journal=Journal(None)).due()


def test_a_name_that_could_not_be_written_is_told_and_the_last_one_stays_good(tmp_path, capfd):
    journal = Journal(tmp_path)
    saves = Checkpoints(tmp_path, 0, journal)
    (tmp_path / "checkpoint_best.pth.tar").mkdir()
    assert not saves.save(STATE, ("checkpoint_best.pth.tar",))
    assert "checkpoint_best.pth.tar could not be written" in capfd.readouterr().err
    saves.check()
    assert checkpoint.load(saves.last)["epoch"] == 3


@pytest.mark.parametrize("num_broken, nproc", [(1, 1), (5, 1), (5, 2)])
def test_a_few_broken_pictures_are_borne_and_many_stop_the_run_saved(tmp_path, num_broken, nproc):
    pictures = load_splits("digits", "").train
    (tmp_path / "pictures").mkdir()
    for i in range(100):
        path = tmp_path / "pictures" / f"{i:03d}.png"
        Image.fromarray(pictures.array[i]).save(path)
        if i < num_broken:
            path.write_bytes(path.read_bytes()[:100])
    words = [*TINY, "--data", tmp_path / "pictures", "--nproc", nproc, "--epochs", 1]
    result = run_main("main_adco.py", *words, "--ad_init", 0, "--knn_freq", 0, cwd=tmp_path)
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    if num_broken == 1:
        assert result.returncode == 0 and result.stderr.count("broken picture 000.png") == 1
        assert records(metrics.parent, "train")[-1]["bad_pictures"] == 1
        return
    assert result.returncode == 2 and "--bad_images_max 0.01" in result.stderr.splitlines()[-1]
    listed = (metrics.parent / "bad_pictures.txt").read_text()
    assert "/bad_pictures.txt;" in result.stderr and listed.count("\n") >= 2
    assert checkpoint.load(metrics.parent / checkpoint.LAST)["bad_pictures"]


@pytest.mark.parametrize("fault", ["EIO", "ESTALE"])
def test_a_file_server_is_waited_for_and_a_run_that_misses_it_is_saved(
    tmp_path, digit_folder, monkeypatch, fault
):
    opened, goes = [], fault == "ESTALE"
    open_one = FolderPictures.open

    def open_or_miss(pictures, index):
        opened.append(index)
        if len(opened) == 120 or (goes and len(opened) > 120):
            raise OSError(getattr(errno, fault), "the server is away")
        return open_one(pictures, index)

    monkeypatch.setattr(FolderPictures, "open", open_or_miss)
    monkeypatch.setattr("adco.data.pictures.OUTAGE_SECONDS", 0.0 if goes else 60.0)
    words = [*TINY, "--data", digit_folder, "--epochs", 2, "--knn_freq", 0, "--ad_init", 0]
    ended = run_main("main_adco.py", *words, cwd=tmp_path)
    assert len(opened) >= 120 and "broken" not in ended.stderr
    state = checkpoint.load(next(tmp_path.rglob(checkpoint.LAST)))
    if goes:
        assert ended.returncode == 70 and "bring it back and start again" in ended.stderr
        assert state["step"] > 0 and state["epoch"] < 2
    else:
        assert (ended.returncode, state["epoch"]) == (0, 2), ended.stderr


def test_the_configuration_of_the_first_start_stays(tmp_path):
    run = run_in(tmp_path)
    Journal(run, {"data": "elsewhere"})
    assert json.loads((run / "config.json").read_text())["config"]["data"] == "data"


def test_options_that_the_program_no_longer_has_or_did_not_have_yet_are_no_difference(tmp_path):
    run = run_in(tmp_path)
    kept = json.loads((run / "config.json").read_text())
    kept["config"] |= {"bank": "auto", "bn_splits": 1}
    del kept["config"]["mem_wd"], kept["config"]["global_batch_size"]
    (run / "config.json").write_text(json.dumps(kept))
    assert newest_with(CONFIG, tmp_path, {})[0] == run / checkpoint.LAST
    kept["config"]["bn_splits"] = 4
    (run / "config.json").write_text(json.dumps(kept))
    path, _, (sentence,) = newest_with(CONFIG, tmp_path, {})
    assert path is None and "bn_splits was 4, here it is 1" in sentence


def test_other_options_are_named_where_there_is_no_run_with_these(tmp_path):
    run = run_in(tmp_path)
    path, _, (sentence,) = newest_with(replace(CONFIG, epochs=300, mem_t=0.05), tmp_path, {})
    assert path is None and str(run) in sentence
    assert (
        "epochs was 200, here it is 300" in sentence
        and "mem_t was 0.02, here it is 0.05" in sentence
    )
    # A file of --init that is not there is no run without one.
    path, _, (sentence,) = newest_with(replace(CONFIG, init="gone.pth"), tmp_path, {})
    assert path is None and "init_sha256 was None, here it is 'of gone.pth'" in sentence


def test_torchrun_is_taken_as_it_is_and_restarts_a_run_after_a_process_was_killed(
    tmp_path, digit_folder, port
):
    words = ["--knn_freq", "0", "--epochs", "2"]
    (tmp_path / "spawned").mkdir()
    spawned = pretrain(tmp_path / "spawned", digit_folder, *words, "--nproc", 2)
    folder = tmp_path / "torchrun"
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--max-restarts", "1", "--master_port", str(port)]
    command += [str(ROOT / "main_adco.py"), *TINY, "--data", str(digit_folder), *words]
    with subprocess.Popen(
        [*command, "--save_minutes", "0.001", "--resume", "auto"],
        cwd=folder, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as agent:  # fmt: skip
        assert wait_until(lambda: list(folder.rglob(checkpoint.LAST)), 120)
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        environments = {int(pid): Path(f"/proc/{pid}/environ").read_text() for pid in children}
        (chosen,) = (pid for pid, text in environments.items() if "\0RANK=0\0" in text)
        os.kill(chosen, signal.SIGKILL)
        out, _ = agent.communicate(timeout=200)
    assert agent.returncode == 0, out[-2000:]
    assert "resumed from" in out and "finished" in out
    (metrics,) = folder.rglob("metrics.jsonl")
    assert losses(metrics.parent) == losses(spawned)
    ends = [checkpoint.load(run / checkpoint.LAST) for run in (metrics.parent, spawned)]
    for part in ("state_dict", "Memory_Bank"):
        for name, value in ends[0][part].items():
            assert torch.equal(value, ends[1][part][name]), name
