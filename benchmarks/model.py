"""What a step costs on 1 to 1,024 processes: time, bytes and memory, from a few constants.

python3 -m benchmarks.model     # nodes of eight H100: assumed, not measured

The formulas, and where each constant comes from: docs/scaling.md.
"""

import sys
from dataclasses import dataclass
from functools import cache, partial
from math import ceil, log2

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from adco.encoder import build_encoder
from adco.pretrain.options import PretrainConfig
from benchmarks import measure
from ops.arguments import AT_LEAST_0, AT_LEAST_1, POSITIVE, option, parse, switch
from ops.errors import reported
from ops.options import ARCHITECTURES

R_TO_PREDICT = [2**i for i in range(11)]
DIM, PICTURES = 128, 1_281_167  # D; of an epoch of ImageNet
PIXEL = 2  # bytes of a number inside the encoders: bf16
# Passes over 4 bytes in a step, counted in the code: of each weight, of each weight through the
# buckets of DistributedDataParallel, of each of the D K numbers of the bank.
WEIGHT_PASSES, BUCKET_PASSES, COLUMN_PASSES = 14, 4, 28
BUCKET = 25 * 2**20  # bytes that DistributedDataParallel averages at once
REMEDIES = {
    "bank": "a smaller K",
    "loaders": "more --workers, each with a core of its own",
    "saves": "a faster disk, or fewer processes: an epoch has few steps",
    "first batch": "fewer processes, or a smaller N: an epoch has few steps",
}  # of all others: a larger N


@dataclass(frozen=True)
class ModelBenchmark:
    """Time, bytes and memory of a step on many processes. Defaults: H100 nodes, assumed."""

    arch: str = option("resnet50", "encoder", choices=ARCHITECTURES)
    image_size: int = option(224, "side of the views, pixels", AT_LEAST_1)
    batch_size: int = option(32, "N of each process", AT_LEAST_1)
    cluster: int = option(65536, "K", AT_LEAST_1)
    sym: int = switch(0, "1: both views are queries and keys")
    per_node: int = option(8, "processes of a node", AT_LEAST_1)
    encoder_tflops: float = option(75.0, "TFLOP/s that the encoders reach", POSITIVE)
    bank_tflops: float = option(14.0, "TFLOP/s that a round of the bank reaches", POSITIVE)
    memory_gbs: float = option(2000.0, "GB/s of passes over weights and bank", POSITIVE)
    inside_gbs: float = option(360.0, "GB/s that a process sends inside a node", POSITIVE)
    between_gbs: float = option(40.0, "GB/s that a process sends between nodes", POSITIVE)
    message_us: float = option(3.0, "microseconds until a message is there", AT_LEAST_0)
    hides: float = option(1.0, "share of the backward pass that hides messages", "[0, 1]")
    host_ms: float = option(15.0, "ms in which the host enqueues a step", AT_LEAST_0)
    poll_us: float = option(30.0, "microseconds of a message of the poll (gloo)", AT_LEAST_0)
    loaders: int = option(4, "loader processes of a process, each with a core", AT_LEAST_1)
    views_s: float = option(500.0, "pictures/s that a loader process makes", POSITIVE)
    save_gbs: float = option(0.34, "GB/s at which a checkpoint is checked and written", POSITIVE)


# ---- what there is to do


@cache
def work_of(arch: str, side: int) -> tuple[float, float, int, float]:
    """Of an encoder, as torch counts it: FLOPs a picture forward and backward, weights, and numbers
    that a picture leaves for the backward pass.
    """
    with torch.device("meta"):  # shapes alone
        encoder, pictures = build_encoder(arch, DIM, mlp=True), torch.empty(2, 3, side, side)
    kept = {}  # by memory, for several operators keep the same one (private: there is no address)

    def keep(x):
        return kept.setdefault(x.untyped_storage()._cdata, x)

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda x: x):
        embedded = encoder(pictures)
        forward = counter.get_total_flops() / 2
        embedded.sum().backward()
    weights = sum(weight.numel() for weight in encoder.parameters())
    numbers = (sum(x.numel() for x in kept.values()) - weights) / 2
    return forward, counter.get_total_flops() / 2 - forward, weights, numbers


def sent(c: ModelBenchmark, R: int, measure_of) -> dict[str, float]:
    """Of the collectives of a step, by part: sums of measure_of(kind, bytes that a process sends).

    Kinds: ring (all-gather), pairs (all-to-all), tree (all-reduce).
    """
    N, V, others, moved = c.batch_size, 1 + c.sym, R - 1, (R - 1) / R
    weights = 4 * work_of(c.arch, c.image_size)[2]
    buckets = ceil(weights / BUCKET)
    messages = [
        ("shuffle", "pairs", moved * N * 3 * c.image_size**2 * PIXEL, V),  # pictures
        ("shuffle", "pairs", moved * N * DIM * 4, V),  # their keys, back
        ("keys", "ring", others * N * DIM * 4, V),
        ("sums", "ring", others * N * V * (DIM + 1) * 4, 1),  # queries
        ("sums", "pairs", others * N * V * (DIM + 4) * 4, 1),  # their sums over the columns
        ("sums", "ring", others * N * V * 2 * 4, 1),  # what the second visit needs
        ("sums", "tree", 2 * moved * 4, 2),  # idle columns, a dropped step
        ("gradients", "tree", 2 * moved * weights / buckets, buckets),
        ("replicated", "tree", 2 * moved * 4 * DIM * c.cluster, 1),  # in place of the sums
    ]
    total = dict.fromkeys(("shuffle", "keys", "sums", "gradients", "replicated"), 0.0)
    for part, kind, size, times in messages:
        total[part] += times * measure_of(kind, size)
    return total


def megabytes(c: ModelBenchmark, R: int) -> dict[str, float]:
    """That a process sends in a step."""
    return sent(c, R, lambda kind, size: size / 1e6)


def gigabytes(c: ModelBenchmark, R: int) -> dict[str, float]:
    """That a process holds. Activations: what the backward pass needs, an estimate."""
    N, V, (*_, weights, numbers) = c.batch_size, 1 + c.sym, work_of(c.arch, c.image_size)
    sizes = {
        "weights": 4 * weights * (4 + (R > 1)),  # two encoders, gradient, momentum; buckets
        "bank": 4 * DIM * c.cluster / R * 3,  # W, v, gradient
        "activations": N * V * numbers * PIXEL,
        "views": 2 * N * 3 * c.image_size**2 * (1 + 2 * PIXEL),  # as they come, and shuffled
    }
    return {name: size / 1e9 for name, size in sizes.items()}


# ---- what it takes


def seconds_of(c: ModelBenchmark, R: int, kind: str, size: float) -> float:
    """One collective in which each process sends so many bytes."""
    far = max(0, R - c.per_node) / max(1, R - 1)  # share of the others that are on other nodes
    if kind == "pairs":
        rate = 1 / ((1 - far) / c.inside_gbs + far / c.between_gbs)
    else:  # all links of a node carry a ring or a tree outside
        rate = min(c.inside_gbs, c.per_node * c.between_gbs) if far else c.inside_gbs
    hops = 2 * log2(R) if kind == "tree" else R - 1
    return size / (1e9 * rate) + hops * c.message_us / 1e6


def predict(c: ModelBenchmark, R: int) -> dict[str, float]:
    """ms of each part of a step; of the step, their sum; images/s; ms of a bank that is whole on
    every process, in place of `bank` and `sums`.
    """
    N, K, V = c.batch_size, c.cluster, 1 + c.sym
    forward, backward, weights, _ = work_of(c.arch, c.image_size)
    took = sent(c, R, partial(seconds_of, c, R))
    columns = COLUMN_PASSES * 4 * DIM * K / (1e9 * c.memory_gbs)
    products = N * V * DIM * (8 * K + 4 * R * N) / (1e12 * c.bank_tflops)
    # The backward pass hides all but the last bucket.
    hidden = c.hides * N * V * backward / (1e12 * c.encoder_tflops)
    last = took["gradients"] / ceil(4 * weights / BUCKET)
    passes = WEIGHT_PASSES + BUCKET_PASSES * (R > 1)
    parts = {
        "encoder": N * V * (2 * forward + backward) / (1e12 * c.encoder_tflops),
        "weights": 4 * weights * passes / (1e9 * c.memory_gbs),
        "bank": products + columns / R,
        **took,
        "gradients": max(last, took["gradients"] - hidden),
        "replicated": products + columns + took["replicated"],
    }
    replicated = parts.pop("replicated")

    # Host and loaders work beside the device: what counts is how much longer they take.
    step, host = sum(parts.values()), c.host_ms / 1e3 + 2 * (R - 1) * c.poll_us / 1e6
    for name, seconds in (("host", host), ("loaders", N / c.loaders / c.views_s)):
        parts[name] = max(0, seconds - step)
        step += parts[name]
    # A save ends an epoch, or comes by the clock. One loader makes the first batch of an epoch.
    epoch, save = PICTURES / (N * R), (12 * weights + 8 * DIM * K) / (1e9 * c.save_gbs)
    parts["saves"] = save / min(epoch, 60 * PretrainConfig().save_minutes / step)
    parts["first batch"] = N / c.views_s / epoch
    parts |= {"step": sum(parts.values()), "replicated bank": replicated}
    return {name: 1e3 * x for name, x in parts.items()} | {"images/s": N * R / parts["step"]}


def print_prediction(c: ModelBenchmark) -> int:
    print(f"{c.arch}, N {c.batch_size}, K {c.cluster}, by the constants of the options")
    for what, table in (
        ("ms of a step, and images/s of all processes", predict),
        ("MB that a process sends in a step", megabytes),
        ("GB that a process holds", gigabytes),
    ):
        print(f"\n{what}\n")
        measure.print_head("R", *table(c, 1))
        for R in R_TO_PREDICT:
            cells = table(c, R).values()
            measure.print_row(R, *(f"{x:.2f}" if x < 1000 else f"{x:.0f}" for x in cells))
    print()
    # The knees: what the device waits for, or what takes a quarter of a step.
    rows = {R: predict(c, R) for R in R_TO_PREDICT}
    for name in list(rows[1])[1:-3]:
        least = 0 if name in ("host", "loaders") else 0.25
        if above := [R for R, row in rows.items() if row[name] > least * row["step"]]:
            remedy = REMEDIES.get(name, "a larger N")
            print(f"{name} limits at R = {above[0]} to {above[-1]}; take {remedy}")
    return 0


def main(argv=None) -> int:
    with reported("benchmarks.model"):
        return print_prediction(parse(ModelBenchmark, argv))


if __name__ == "__main__":
    sys.exit(main())
