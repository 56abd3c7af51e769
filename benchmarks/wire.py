"""Bytes that a process sends in a step, counted where they leave it: ours and the published way.

python3 -m benchmarks.wire

Counted by Linux, through gloo on sockets; nccl passes it by.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.rounds import WAYS, RoundsBenchmark, groups, sizes, way
from ops.arguments import option, parse
from ops.distributed import World, exchange_rows, gather_rows, mean_across_ranks_
from ops.errors import reported
from ops.launch import launch


@dataclass(frozen=True)
class WireBenchmark(RoundsBenchmark):
    """Bytes sent for the adversaries and for shuffling pictures, and their growth with K, N, R."""

    processes: tuple[int, ...] = option((2, 4, 8), "R; the first stays while N and K change")
    queries: tuple[int, ...] = option((128, 32, 512), "N of each process; the first stays")
    image_size: int = option(64, "side of the shuffled pictures, pixels")
    repeats: int = option(3, "steps that are counted")
    dist_backend: str = option("gloo", "process group", choices=("gloo",))


def sent(step: Callable[[], object], repeats: int, world: World) -> float:
    """Bytes that a process sends in a step, mean over steps and processes."""
    step()
    before = written_bytes()
    for _ in range(repeats):
        step()
    count = torch.tensor(float(written_bytes() - before) / repeats, dtype=torch.float64)
    return mean_across_ranks_(count, world).item()


def written_bytes() -> int:
    """What this process has handed to write calls so far, sockets included."""
    return int(re.search(r"wchar: (\d+)", Path("/proc/self/io").read_text())[1])


def shuffles(num_images: int, side: int, device, world: World) -> tuple[Callable, Callable]:
    """Pictures to the process that encodes them: ours, and all of them to everyone."""
    pictures = torch.rand(num_images, 3, side, side, device=device)
    generator = torch.Generator().manual_seed(0)
    permutation = torch.randperm(num_images * world.size, generator=generator)
    here = permutation.view(world.size, -1)[world.rank].to(device)
    return (
        lambda: exchange_rows(pictures, permutation, world),
        lambda: gather_rows(pictures, world)[here],
    )


def run(config: WireBenchmark, world: World, device: torch.device, local_size: int) -> int:
    """The rows of one number of processes."""
    for N, K in sizes(config):
        ways = [way(name, N, K, config.dim, device, world) for name in WAYS]
        print_row(config, world, "adversaries", N, K, *ways)
    for N in config.queries:
        print_row(config, world, "pictures", N, "", *shuffles(N, config.image_size, device, world))
    return 0


def print_row(config: WireBenchmark, world: World, what: str, N, K, ours, published) -> None:
    counts = [sent(step, config.repeats, world) for step in (ours, published)]
    if world.first:
        share = f"{counts[0] / counts[1]:.2%}"
        measure.print_row(what, world.size, N, K, *(f"{n / 1e6:.3f}" for n in counts), share)


def main(argv=None) -> int:
    with reported("benchmarks.wire"):
        config = parse(WireBenchmark, argv)
        measure.print_head("what", "R", "N", "K", "ours, MB", "published, MB", "ours / published")
        return max(launch(run, group) for group in groups(config))


if __name__ == "__main__":
    sys.exit(main())
