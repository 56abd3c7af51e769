"""Both players' round on given embeddings: ours against the published way, growth and memory.

python3 -m benchmarks.rounds
python3 -m benchmarks.rounds --device cuda --processes 8 2 4
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from adco.fused import losses
from adco.negatives import NegativeBank
from adco.objective import Pair, contrastive_logits, directions_of, info_nce, own_key
from benchmarks import measure
from ops.arguments import AT_LEAST_1, option, parse
from ops.distributed import ALONE, World, gather_rows, mean_across_ranks_
from ops.errors import reported
from ops.launch import device_kind, launch
from ops.options import ProcessOptions

MOCO_T, MEM_T, RATE, MOMENTUM, DECAY = 0.12, 0.02, 3.0, 0.9, 1e-4
WAYS = ("ours", "published")


@dataclass(frozen=True)
class RoundsBenchmark(ProcessOptions):
    """Time of one round on given embeddings, its growth with R, N and K, and its memory."""

    processes: tuple[int, ...] = option((1, 2, 4), "R; the first stays while N and K change")
    queries: tuple[int, ...] = option((256, 64, 1024), "N of each process; the first stays")
    cluster: tuple[int, ...] = option((65536, 16384, 262144), "K; the first stays")
    memory_cluster: tuple[int, ...] = option(
        (65536, 262144, 1048576), "K at which the memory is measured, on one process", nargs="*"
    )
    dim: int = option(128, "D", AT_LEAST_1)
    repeats: int = option(9, "times that each way is taken, in turn with the others", AT_LEAST_1)


# ---- a round


def play_ours(queries: Tensor, keys: Tensor, bank: NegativeBank) -> None:
    """adco.step without its encoders."""
    first_key = bank.world.rank * len(queries)
    pairs = [Pair(queries, keys, 1.0)]
    result = losses(pairs, bank.W, MOCO_T, MEM_T, first_key, bank.world)
    result.loss.backward()
    bank.ascend_(result.bank_gradient, RATE, MOMENTUM, DECAY)


def play_published(queries: Tensor, keys: Tensor, W: Tensor, v: Tensor, world: World) -> None:
    """The published way, written plainly from the paper: logits [N, M + K] whole, autograd for
    each player and a third pass for the mass; W, v [D, K] and the gradient of W on every process.
    """
    target = own_key(len(queries), world.rank * len(queries), queries.device)
    logits = contrastive_logits(queries, keys, directions_of(W))
    info_nce(logits, target, MOCO_T).backward()

    moving_W = W.detach().requires_grad_()
    logits = contrastive_logits(queries.detach(), keys, directions_of(moving_W))
    (gradient,) = torch.autograd.grad(info_nce(logits, target, MEM_T), moving_W)
    with torch.no_grad():
        (logits / MEM_T).softmax(dim=1)[:, : len(keys)].sum(dim=1).mean()
        gradient = mean_across_ranks_(gradient, world)
        v.mul_(MOMENTUM).sub_(gradient).add_(W, alpha=DECAY)
        W.sub_(v, alpha=RATE)


def whole_bank(K: int, D: int, device) -> tuple[Tensor, Tensor]:
    """W and v [D, K], as the published way has them on every process."""
    W = torch.randn(D, K, generator=torch.Generator().manual_seed(0)).to(device)
    return W, torch.zeros_like(W)


def way(name: str, N: int, K: int, D: int, device, world: World) -> Callable[[], None]:
    """A round of the way `name`, one of WAYS, to be called again and again.

    N: queries of this process.
    """
    torch.manual_seed(world.rank)
    queries, own = (F.normalize(torch.randn(N, D, device=device), dim=1) for _ in range(2))
    queries.requires_grad_()
    keys = gather_rows(own, world)
    if name == "ours":
        play, bank = play_ours, (NegativeBank(K, D).to(device),)
    else:
        play, bank = play_published, (*whole_bank(K, D, device), world)

    def round_():
        queries.grad = None
        play(queries, keys, *bank)

    return round_


def products(N: int, K: int, D: int, device) -> Callable[[], None]:
    """The three matrix products that no way can do without: cosines, a gradient for each player."""
    queries, directions = torch.randn(N, D, device=device), torch.randn(D, K, device=device)
    cosines, for_bank = torch.empty(N, K, device=device), torch.empty(D, K, device=device)

    def round_():
        torch.mm(queries, directions, out=cosines)
        torch.mm(cosines, directions.T)
        torch.mm(queries.T, cosines, out=for_bank)

    return round_


# ---- time


def groups(config: RoundsBenchmark) -> list[RoundsBenchmark]:
    """One for each number of processes: the first with all sizes, the others with the first."""
    one_size = replace(config, queries=config.queries[:1], cluster=config.cluster[:1])
    first, *others = config.processes
    return [replace(config, nproc=first, ngpu=first)] + [
        replace(one_size, nproc=R, ngpu=R) for R in others
    ]


def sizes(config: RoundsBenchmark) -> list[tuple[int, int]]:
    """(N, K): K changes at the first N, then N at the first K."""
    N, K = config.queries[0], config.cluster[0]
    return list(dict.fromkeys([(N, k) for k in config.cluster] + [(n, K) for n in config.queries]))


def print_times(config: RoundsBenchmark, world: World, device: torch.device) -> int:
    """The rows of one number of processes."""
    for N, K in sizes(config):
        size = (N, K, config.dim, device)
        rounds = {name: way(name, *size, world) for name in WAYS}
        if world.size == 1:
            rounds["products"] = products(*size)
        seconds = measure.interleaved(rounds, config.repeats, device)
        ours, published = seconds["ours"], seconds["published"]
        times = [measure.milliseconds(ours), measure.milliseconds(published)]
        times.append(measure.ratio(published, ours))
        if least := seconds.get("products"):
            times += [measure.milliseconds(least), measure.ratio(ours, least)]
        else:
            times += ["", ""]
        if world.first:
            measure.print_row(world.size, N, K, *times)
    return 0


# ---- memory, on one process


def print_memory(config: RoundsBenchmark, _: World, device: torch.device) -> int:
    N = config.queries[0]
    measure.print_head("N", "K", "W and v, GB", "ours above them, GB", "published above them, GB")
    for K in config.memory_cluster:
        above = [memory(name, N, K, config.dim, device) for name in WAYS]
        bank = 2 * 4 * K * config.dim
        measure.print_row(N, K, *(f"{number / 1e9:.2f}" for number in (bank, *above)))
    return 0


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


# ---- both tables


def main(argv=None) -> int:
    with reported("benchmarks.rounds"):
        config = parse(RoundsBenchmark, argv)
        alone = replace(config, nproc=1, ngpu=1)
        print(measure.describe(torch.device(device_kind(config.device))) + "\n", flush=True)
        measure.print_head(
            "R", "N", "K", "ours, ms", "published, ms", "published / ours", "3 products, ms",
            "ours / products",
        )  # fmt: skip
        code = max(launch(print_times, group) for group in groups(config))
        if code == 0 and config.memory_cluster:
            print(flush=True)
            code = launch(print_memory, alone)
    return code


if __name__ == "__main__":
    sys.exit(main())
