"""Clocks, limits of the machine, and tables."""

import os
import platform
import re
import time
from collections.abc import Callable
from math import inf
from pathlib import Path

import numpy as np
import torch


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    ways: dict[str, Callable[[], object]], repeats: int, device: torch.device, end: float = inf
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Seconds of each call, all ways in turn `repeats` times, after one turn that does not count:
    a busy moment of the machine then meets all of them. And the most bytes that the last call held
    beside what was there before it. end: time.monotonic() at which one counted turn is enough.
    """
    seconds, held = {name: [] for name in ways}, {}
    for turn in range(repeats + 1):
        if turn > 1 and time.monotonic() > end:
            break
        for name, way in ways.items():
            before = peak_bytes(device, reset=True)
            wait_for(device)
            start = time.perf_counter()
            way()
            wait_for(device)
            seconds[name].append(time.perf_counter() - start)
            held[name] = peak_bytes(device) - before
    return {name: np.array(turns[1:]) for name, turns in seconds.items()}, held


def spread(values, form: str) -> str:
    """Median, and in brackets the quartiles."""
    low, middle, high = (format(x, form) for x in np.quantile(values, (0.25, 0.5, 0.75)))
    return f"{middle} ({low} to {high})"


def describe(device: torch.device) -> str:
    """The machine and what it can do at most: products of 2048 x 2048, copies of 256 MB."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    a, b = (torch.randn(2048, 2048, device=device) for _ in range(2))
    x, y = (torch.ones(2**26, device=device) for _ in range(2))
    half_a, half_b = a.bfloat16(), b.bfloat16()
    ways = {"float": lambda: a @ b, "half": lambda: half_a @ half_b, "copy": lambda: x.copy_(y)}
    full, half, copy = (min(turns) for turns in interleaved(ways, 7, device)[0].values())
    return (
        f"{name}, torch {torch.__version__}, {torch.get_num_threads()} thread(s) of "
        f"{os.cpu_count()} core(s); limits: matrix product {2e-9 * 2048**3 / full:.0f} GFLOP/s in "
        f"float32 and {2e-9 * 2048**3 / half:.0f} in bfloat16, copy {8e-9 * 2**26 / copy:.1f} GB/s"
    )


def peak_bytes(device: torch.device, reset: bool = False) -> int:
    """Most memory that this process has held; reset: from now on, which is what it holds now."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # Linux
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def print_row(*cells) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_head(*names: str) -> None:
    print_row(*names)
    print_row(*("---" for _ in names))
