"""Who has started this process, where it was not our launcher: torchrun, SLURM, another program."""

import os
import re
import socket
from dataclasses import replace

from ops.distributed import Flags, World, current_world, has_group
from ops.errors import InputError
from ops.options import ProcessOptions

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def place_in_engine(config: ProcessOptions) -> tuple[World, str | None] | None:
    """What the environment says of this process, and where it meets the others (None: they have
    met). None: nobody has started it as one of several.
    """
    world, env = current_world(), os.environ
    if has_group():
        # Ray Train, Accelerate: the group is there already. Nodes are told apart by their names.
        hosts = Flags(world).gather(socket.gethostname())
        here = hosts[world.rank]
        local_rank = hosts[: world.rank].count(here)
        return World(world.rank, world.size, local_rank, hosts.count(here)), None
    if all(name in env for name in TORCHRUN):
        rank, size, local_rank = (int(env[name]) for name in TORCHRUN)
        local_size = int(env.get("LOCAL_WORLD_SIZE", size))
        return World(rank, size, local_rank, local_size), "env://"
    tasks = tasks_of_slurm(config)
    if tasks and max(tasks) > 1:
        rank, local_rank = int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"])
        local_size = tasks[int(env["SLURM_NODEID"])]
        return World(rank, sum(tasks), local_rank, local_size), slurm_url(config)
    return None


def with_slurms_nodes(config: ProcessOptions) -> ProcessOptions:
    """The options of one launcher a node, where srun has started one task on each of several."""
    tasks = tasks_of_slurm(config)
    if tasks is None or len(tasks) == 1:
        return config
    node, url = int(os.environ["SLURM_NODEID"]), slurm_url(config)
    return replace(config, world_size=len(tasks), rank=node, dist_url=url)


def tasks_of_slurm(config: ProcessOptions) -> list[int] | None:
    """Tasks on each node of the srun that has started this process; None: it is none of several.

    The nodes that the options name (--nodes_num) come first.
    """
    # srun alone says this; a batch script that runs beside it has no step.
    text = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    if config.world_size > 1 or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return None
    # Such as 8(x2),4: eight on each of two nodes, and four.
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))]


def slurm_url(config: ProcessOptions) -> str:
    """Where the tasks meet: on the first node, at a port of the job's own."""
    if config.dist_url:
        return config.dist_url
    nodes = os.environ["SLURM_STEP_NODELIST"]
    # Such as gpu[03-05,9],big1: the first is gpu03.
    first = re.match(r"([^,[]|\[[^]]*\])+", nodes)
    if first is None:
        raise InputError(f"SLURM_STEP_NODELIST={nodes!r} names no node; give --dist_url")
    host = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", first[0])
    # Two steps of one job may run beside each other.
    job, step = (int(os.environ.get(f"SLURM_{name}_ID", 0)) for name in ("JOB", "STEP"))
    return f"tcp://{host}:{20_000 + (job + 97 * step) % 12_000}"
