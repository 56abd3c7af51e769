"""Clocks, limits of the machine, tables, and a game to take steps of."""

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from adco.pretrain.game import Game
from adco.pretrain.options import PretrainConfig
from ops.arguments import AT_LEAST_1, option
from ops.distributed import World
from ops.options import ARCHITECTURES, ProcessOptions


@dataclass(frozen=True)
class StepBenchmark(ProcessOptions):
    """Time of real steps on views that are there."""

    arch: str = option("resnet50", "encoder", choices=ARCHITECTURES)
    batch_size: int = option(64, "N of each process", AT_LEAST_1)
    image_size: int = option(224, "side of the views, pixels", AT_LEAST_1)
    repeats: int = option(5, "times that each is taken", AT_LEAST_1)


def game_of(
    config: StepBenchmark, world: World, device: torch.device, dataset: str = "digits", **more
) -> tuple[Game, list[torch.Tensor], PretrainConfig]:
    """A game, the views of one step, and the options they follow from. more: further options."""
    options = PretrainConfig(
        dataset=dataset, arch=config.arch, image_size=config.image_size, workers=0,
        global_batch_size=config.batch_size * world.size, **more,
    )  # fmt: skip
    game = Game(options, world, device)
    return game, next(game.batches(0)), options


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    ways: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each call, all ways in turn `repeats` times, after one turn that does not count:
    a busy moment of the machine then meets all of them.
    """
    seconds = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            wait_for(device)
            start = time.perf_counter()
            way()
            wait_for(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def milliseconds(seconds: list[float]) -> str:
    """Median, and in brackets the quartiles."""
    return "{:.1f} ({:.1f} to {:.1f})".format(*spread([1e3 * value for value in seconds]))


def ratio(one: list[float], other: list[float]) -> str:
    """How many times as long one takes as the other, turn by turn: median and quartiles."""
    return "{:.2f} ({:.2f} to {:.2f})".format(
        *spread([a / b for a, b in zip(one, other, strict=True)])
    )


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    values = sorted(values)
    return median(values), values[len(values) // 4], values[-1 - len(values) // 4]


def matrix_product_rate(
    device: torch.device, dtype: torch.dtype = torch.float32, size: int = 2048, repeats: int = 7
) -> float:
    """Operations a second of a large matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(interleaved({"": lambda: a @ b}, repeats, device)[""])


def copy_rate(device: torch.device, size: int = 2**26, repeats: int = 7) -> float:
    """Bytes a second read and written by a copy of 256 MB."""
    a = torch.ones(size, device=device)
    b = torch.empty_like(a)
    return 2 * 4 * size / min(interleaved({"": lambda: b.copy_(a)}, repeats, device)[""])


def describe(device: torch.device) -> str:
    """The machine and what it can do at most."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return (
        f"{name}, torch {torch.__version__}, {torch.get_num_threads()} thread(s) of "
        f"{os.cpu_count()} core(s); limits: matrix product "
        f"{matrix_product_rate(device) / 1e9:.0f} GFLOP/s in float32 and "
        f"{matrix_product_rate(device, torch.bfloat16) / 1e9:.0f} in bfloat16, "
        f"copy {copy_rate(device) / 1e9:.1f} GB/s"
    )


def reset_peak(device: torch.device) -> None:
    """Let peak_bytes count from what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has held since reset_peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def written_bytes() -> int:
    """What this process has handed to write calls so far, sockets included (Linux)."""
    return int(re.search(r"wchar: (\d+)", Path("/proc/self/io").read_text())[1])


def print_row(*cells) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_head(*names: str) -> None:
    print_row(*names)
    print_row(*("---" for _ in names))
