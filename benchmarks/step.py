"""Both players' round on given embeddings, on one process: ours against the published way.

python3 -m benchmarks.step
python3 -m benchmarks.step --device cuda
"""

import sys
from dataclasses import dataclass

import torch
import torch.multiprocessing as mp

from benchmarks import measure
from benchmarks.bank import sizes
from benchmarks.ways import products, way
from ops.arguments import at_least, option, parse
from ops.distributed import ALONE, World
from ops.errors import reported
from ops.launch import launch
from ops.options import ProcessOptions


@dataclass(frozen=True)
class StepBenchmark(ProcessOptions):
    """Time of one round on given embeddings, its growth with N and K, and its memory."""

    queries: tuple = option((256, 64, 1024), "N; the first stays", type=int, nargs="+")
    cluster: tuple = option((65536, 16384, 262144), "K; the first stays", type=int, nargs="+")
    memory_cluster: tuple = option(
        (65536, 262144, 1048576), "K at which the memory is measured", type=int, nargs="*"
    )
    dim: int = option(128, "D")
    repeats: int = option(9, "times that each way is taken, in turn with the others")

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "dim", "repeats")


def run(config: StepBenchmark, _: World, device: torch.device) -> int:
    print(measure.describe(device) + "\n")
    print_times(config, device)
    print()
    print_memory(config, device)
    return 0


def print_times(config: StepBenchmark, device: torch.device) -> None:
    measure.print_head(
        "N", "K", "ours, ms", "published, ms", "published / ours", "3 products, ms",
        "ours / products",
    )  # fmt: skip
    for N, K in sizes(config):
        size = (N, K, config.dim, device)
        rounds = {name: way(name, *size, ALONE) for name in ("ours", "published")}
        rounds["products"] = products(*size)
        seconds = measure.interleaved(rounds, config.repeats, device)
        ours, theirs, least = seconds.values()
        measure.print_row(
            N, K, measure.milliseconds(ours), measure.milliseconds(theirs),
            measure.ratio(theirs, ours), measure.milliseconds(least), measure.ratio(ours, least),
        )  # fmt: skip


def print_memory(config: StepBenchmark, device: torch.device) -> None:
    N = config.queries[0]
    measure.print_head("N", "K", "W and v, GB", "ours above them, GB", "published above them, GB")
    for K in config.memory_cluster:
        above = [memory(name, N, K, config.dim, device) for name in ("ours", "published")]
        bank = 2 * 4 * K * config.dim
        measure.print_row(N, K, *(f"{number / 1e9:.2f}" for number in (bank, *above)))


def memory(*setting) -> int:
    """Most bytes that two rounds hold beside W and v, measured in a process of its own."""
    found = mp.get_context("spawn").SimpleQueue()
    mp.spawn(hold, (found, *setting))
    return found.get()


def hold(_, found, name: str, N: int, K: int, D: int, device: torch.device) -> None:
    way(name, N, 1024, D, device, ALONE)()  # what the libraries take for themselves
    round_ = way(name, N, K, D, device, ALONE)
    measure.reset_peak(device)
    before = measure.peak_bytes(device)
    for _ in range(2):
        round_()
    found.put(measure.peak_bytes(device) - before)


def main(argv=None) -> int:
    with reported("benchmarks.step"):
        return launch(run, parse(StepBenchmark, argv))


if __name__ == "__main__":
    sys.exit(main())
