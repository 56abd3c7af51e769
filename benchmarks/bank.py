"""One round on several processes: the bank sharded, replicated, and the published way.

python3 -m benchmarks.bank
python3 -m benchmarks.bank --device cuda --processes 8 2 4
"""

import sys
from dataclasses import dataclass, replace

import torch

from benchmarks import measure
from benchmarks.ways import WAYS, way
from ops.arguments import at_least, option, parse
from ops.distributed import World
from ops.errors import reported
from ops.launch import launch
from ops.options import ProcessOptions


@dataclass(frozen=True)
class BankBenchmark(ProcessOptions):
    """Time of one round on several processes, and its growth with K, N and R."""

    processes: tuple = option(
        (2, 1, 4), "R; the first stays while N and K change", type=int, nargs="+"
    )
    queries: tuple = option(
        (128, 32, 512), "N of each process; the first stays", type=int, nargs="+"
    )
    cluster: tuple = option((65536, 16384, 262144), "K; the first stays", type=int, nargs="+")
    dim: int = option(128, "D")
    repeats: int = option(7, "times that each way is taken, in turn with the others")

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "dim", "repeats")


def groups(config: BankBenchmark) -> list[BankBenchmark]:
    """One for each number of processes: the first with all sizes, the others with the first."""
    one_size = replace(config, queries=config.queries[:1], cluster=config.cluster[:1])
    first, *others = config.processes
    return [replace(config, nproc=first, ngpu=first)] + [
        replace(one_size, nproc=R, ngpu=R) for R in others
    ]


def sizes(config) -> list[tuple[int, int]]:
    """(N, K): K changes at the first N, then N at the first K."""
    N, K = config.queries[0], config.cluster[0]
    return list(dict.fromkeys([(N, k) for k in config.cluster] + [(n, K) for n in config.queries]))


def run(config: BankBenchmark, world: World, device: torch.device) -> int:
    """The rows of one number of processes."""
    for size in sizes(config):
        rounds = {name: way(name, *size, config.dim, device, world) for name in WAYS}
        sharded, replicated, published = measure.interleaved(
            rounds, config.repeats, device
        ).values()
        if world.first:
            measure.print_row(
                world.size, *size, *map(measure.milliseconds, (sharded, replicated, published)),
                measure.ratio(published, sharded),
            )  # fmt: skip
    return 0


def limits(_: BankBenchmark, __: World, device: torch.device) -> int:
    print(measure.describe(device) + "\n", flush=True)
    return 0


def main(argv=None) -> int:
    with reported("benchmarks.bank"):
        config = parse(BankBenchmark, argv)
        launch(limits, replace(config, nproc=1, ngpu=1))
        measure.print_head(
            "R", "N", "K", "sharded, ms", "replicated, ms", "published, ms", "published / sharded"
        )
        return max(launch(run, group) for group in groups(config))


if __name__ == "__main__":
    sys.exit(main())
