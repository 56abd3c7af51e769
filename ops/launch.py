"""From a command to processes: one, one per GPU, several on the CPU, torchrun's, several nodes."""

import multiprocessing as mp
import os
import signal
import socket
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from urllib.parse import urlparse

import torch

from ops.distributed import World, connect, is_lost_connection, leave_group, meet_all, wait_for_all
from ops.engines import place_in_engine, with_slurms_nodes
from ops.errors import EXIT_STOPPED, InputError, RunFailed, error_of, outcome_of, steady_streams
from ops.heartbeat import Heartbeat, follow_parent
from ops.options import ProcessOptions
from ops.signals import REQUESTS, StopRequest, end_by_requests, requests_blocked, unblock_requests
from ops.workers import cores_of_process

START_METHOD = "spawn"  # a fork of a process that has used CUDA would not work
GRACE_SECONDS = 5.0  # that the other processes have when one has failed


def launch(run, config: ProcessOptions) -> int:
    """Call run(config, world, device) in every process of this node.

    One process in all runs here, without a process group. Where torchrun, SLURM or another program
    has started the processes, nothing is spawned, and a process group that is there is used.
    Returns the exit code.
    """
    kind, start = device_kind(config.device, config.choose), run_worker
    url = held = None
    if place := place_in_engine(config):
        world, url = place
    else:
        # One process in all: this one. Otherwise start those of this node.
        config = with_slurms_nodes(config)
        here = processes_here(config, kind)
        world = World(config.rank * here, config.world_size * here, local_rank=0, local_size=here)
        if world.size > 1:
            url, held = rendezvous(config)
        start = spawn if here > 1 else run_worker
    with held or nullcontext():
        if url is None:
            return run(config, world, own_device(kind, world.local_rank, config))
        return start(run, config, world, url, kind)


def device_kind(wanted: str, chosen: str | None = None) -> str:
    """cuda, mps or cpu. chosen: the GPUs that this process shows to torch from here on (--choose).

    Raises InputError for what is not there.
    """
    if chosen is not None:
        # torch looks at this when it first uses a GPU, which is below.
        os.environ["CUDA_VISIBLE_DEVICES"] = chosen
        if (num_gpus := torch.cuda.device_count()) < len(chosen.split(",")):
            why = f"choose={chosen}: torch finds {num_gpus} of these GPUs"
            raise InputError(f"{why}; leave --choose out, or name GPUs of this machine")
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    usable = ["cuda"] * cuda + ["mps"] * mps + ["cpu"]
    if wanted not in ("auto", *usable):
        why = f"device={wanted}: torch finds none on this machine"
        raise InputError(f"{why}; use --device auto or cpu")
    return usable[0] if wanted == "auto" else wanted


def processes_here(config: ProcessOptions, kind: str) -> int:
    # Without GPUs as many as are asked for; with GPUs one each.
    if kind == "cpu":
        return config.nproc
    if kind == "cuda" and config.gpu is None and config.multiprocessing_distributed:
        return min(config.ngpu, torch.cuda.device_count())
    return 1


def rendezvous(config: ProcessOptions) -> tuple[str, socket.socket | None]:
    """URL at which all processes meet, and what holds its port for them where it is any free one.

    Node 0 opens it, so there it has to be free.
    """
    # The address: a free port of this machine, the one that is given, or node 0.
    if config.world_size == 1 and not config.dist_url:
        held = bound()
        url = f"tcp://127.0.0.1:{held.getsockname()[1]}"
        if sys.platform == "win32":
            held.close()  # nobody could listen there
        return url, held
    url = config.dist_url or f"tcp://{config.master_addr}:{config.master_port}"
    port = urlparse(url).port  # None of env://
    if config.rank == 0 and port:
        try:
            bound(port).close()
        except OSError as error:
            remedy = "choose another with --dist_url tcp://host:port"
            raise InputError(f"port {port} of {url} is in use; {remedy}") from error
    return url, None


def bound(port: int = 0) -> socket.socket:
    """A socket at a port, for 0 at any free one. Raises OSError where it is in use.

    While it is open nobody else is given the port, and who knows its number may listen there (not
    on Windows).
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("", port))
    return held


def own_device(kind: str, local_rank: int, config: ProcessOptions) -> torch.device:
    """The device of a process. Raises InputError where it is a GPU that is not there (--gpu)."""
    num_gpus = torch.cuda.device_count() if kind == "cuda" else 0
    # A scheduler may show each process its own GPU alone.
    own = local_rank if num_gpus > 1 else 0
    number = own if config.gpu is None else config.gpu
    if number >= num_gpus and (kind == "cuda" or config.gpu is not None):
        raise InputError(f"gpu={number}: this machine shows {num_gpus} GPU(s), numbered from 0")
    if kind != "cuda":
        return torch.device(kind)
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def run_worker(run, config: ProcessOptions, world: World, url: str, kind: str) -> int:
    """Be one of several processes, from its device to the end of its process group.

    url: where they meet.  kind: of device.
    """
    device = own_device(kind, world.local_rank, config)
    if kind != "cuda" and "OMP_NUM_THREADS" not in os.environ:
        # A fair share of the cores, where several processes compute on the CPU.
        torch.set_num_threads(max(1, cores_of_process(world.local_size)))
    unblock_requests()
    backend = config.dist_backend if kind == "cuda" else "gloo"
    store = meet_all(world, url, config.dist_timeout)

    # The heartbeat notices a dead process, so that the others do not wait forever.
    heartbeat = Heartbeat(store, world)
    with requests_blocked():  # signals go to the main thread
        heartbeat.start()
    try:
        connect(store, world, backend)
        code = run(config, world, device)
        wait_for_all(store, world)
    except RuntimeError as error:
        if is_lost_connection(error) and heartbeat.someone_is_lost():
            raise RunFailed(heartbeat.message()) from error
        raise
    finally:
        heartbeat.stop()
    # Close connections only when all processes are through; the first process goes last.
    leave_group(store, world)
    return code


def spawn(run, config: ProcessOptions, first: World, url: str, kind: str) -> int:
    """Start this node's processes and wait for them; requests to stop are passed on.

    first: of these processes. If one fails, the others have GRACE_SECONDS to end by themselves.
    """
    # multiprocessing's resource tracker unblocks SIGINT and SIGTERM when it starts (Python 3.10 to
    # 3.13), so it starts before they are blocked for our children, and before a queue starts it.
    # Starting with SIGUSR1 blocked protects it from that. Windows has no tracker.
    if sys.platform != "win32":
        with requests_blocked():
            resource_tracker.ensure_running()
    context = mp.get_context(START_METHOD)
    processes, errors = [], context.SimpleQueue()

    def ask_to_stop():
        for process in processes:
            process.terminate()

    with StopRequest(ask_to_stop) as stop:
        # The children inherit the blocked signals, and unblock them when they can answer.
        with requests_blocked():
            for number in range(first.local_size):
                world = replace(first, rank=first.rank + number, local_rank=number)
                arguments = (errors, run, config, world, url, kind)
                process = context.Process(target=worker_main, args=arguments)
                process.start()
                processes.append(process)
        if stop.received:
            ask_to_stop()  # some of them were not there yet
        # Wait for all of them, or for the first one that fails.
        failed = first_failure(processes)
        # The first error. Later ones are its consequences.
        error = None if failed is None or errors.empty() else errors.get()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
            process.kill()
            process.join()
    return exit_code(processes, failed, error, stop, first.rank)


def exit_code(processes: list, failed: int | None, error, stop, first_rank: int) -> int:
    """What the processes' ends mean for the run. Raises `error`, the one that a process told."""
    if failed is None:
        return max(process.exitcode for process in processes)  # 0, or 75 where it was stopped
    asked = [-process.exitcode for process in processes if -process.exitcode in REQUESTS]
    if asked:
        # A process was ended by a signal before it could handle it, so there was nothing to save.
        # (Another one may have failed first, because of that.) As a shell does, return 128 plus
        # the number of the signal, that of the one that the run received.
        return 128 + (stop.received or asked[0])
    code = processes[failed].exitcode
    if code < 0:
        name = signal.Signals(-code).name
        number = first_rank + failed
        raise RunFailed(f"process {number} was ended by {name}; the others were stopped")
    if error:
        raise error_of(*error)
    return code


def first_failure(processes: list) -> int | None:
    """Wait until all have ended well, or one has not: its number."""
    # A sentinel becomes ready when its process ends.
    running = {process.sentinel: number for number, process in enumerate(processes)}
    while running:
        for ready in wait(running):
            number = running.pop(ready)
            processes[number].join()
            if processes[number].exitcode not in (0, EXIT_STOPPED):
                return number
    return None


def worker_main(errors, *arguments) -> None:
    """Be a process that `spawn` has started: run_worker, with an error told to the launcher."""
    end_by_requests()  # still blocked
    steady_streams()
    follow_parent()
    if sys.platform == "linux":
        # Loader processes are forks, as in a run of one process: a spawned one would import torch.
        mp.set_start_method("fork", force=True)
    try:
        sys.exit(run_worker(*arguments))
    except Exception as error:
        errors.put(outcome := outcome_of(error))
        sys.exit(outcome[0])
