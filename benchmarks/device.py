"""What one device does with the published step: right numbers, speed, memory, and what is lost.

python3 -m benchmarks.device                   # the GPU of this machine, at most 8 minutes
python3 -m benchmarks.device --arch resnet18 --batch_size 8 --cluster 16384   # a CPU
"""

import gc
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from adco.data.loader import RENDERERS
from benchmarks import measure, rounds, train, upkeep, views
from ops.arguments import AT_LEAST_1, POSITIVE, option, parse
from ops.device import tune
from ops.distributed import ALONE, World
from ops.errors import InputError, reported
from ops.launch import launch

PRECISIONS = ("bf16", "fp16", "none")


@dataclass(frozen=True)
class DeviceBenchmark(upkeep.UpkeepBenchmark):
    """One table of one device: parity, steps, memory, the bank, the renderers, saving."""

    batch_size: int = option(64, "N", AT_LEAST_1)
    cluster: int = option(65536, "K", AT_LEAST_1)
    repeats: int = option(7, "times that each is taken", AT_LEAST_1)
    minutes: float = option(8.0, "after which what is left is left out", POSITIVE)


def rows(config: DeviceBenchmark, device: torch.device) -> Iterator[tuple[str, ...]]:
    """(what, ms or number, images/s, GB at most), as they are measured."""
    yield from parity(device)
    for amp in PRECISIONS:
        for compiled in (0, 1):
            yield step_row(config, device, amp, compiled)
    yield timed("published", config, device, published_way(config, device))
    round_ = rounds.way("ours", config.batch_size, config.cluster, 128, device, ALONE)
    yield timed("a round of the bank alone", config, device, round_)
    data = views.jpeg(views.Image.fromarray(views.made_up().read(0)))
    for name, renderer in RENDERERS.items():
        way = partial(views.ours, renderer, 0, data)
        seconds = measure.interleaved({"": way}, config.repeats, device)[""]
        rate = 1 / measure.spread(seconds)[0]
        yield f"two views of a JPEG, {name}", measure.milliseconds(seconds), f"{rate:.0f}", ""
    yield from upkeep_rows(config, device)


def parity(device: torch.device) -> Iterator[tuple[str, ...]]:
    """Five steps of the files in tests/parity, in float32 without TensorFloat-32."""
    from tests import test_parity  # the tests hide GPUs from what has not looked for them yet

    tune(device, tf32=False)
    for case in ("nosym", "multi"):
        known = torch.load(test_parity.FILES / f"{case}_r0.pt", weights_only=True)
        played = test_parity.play(World(), case, device=device)
        loss = (played["loss"] / torch.tensor(known["loss"]) - 1).abs().max()
        W = (played["bank"]["W"] - known["W"]).norm() / known["W"].norm()
        yield f"parity {case}: loss, W apart by", f"{loss:.1e}, {W:.1e}", "", ""
    tune(device, tf32=True)


def step_row(
    config: DeviceBenchmark, device: torch.device, amp: str, compiled: int
) -> tuple[str, ...]:
    name = f"step in {'float32' if amp == 'none' else amp}" + ", compiled" * compiled
    try:
        more = dict(amp=amp, compile=compiled, cluster=config.cluster)
        game, batch, _ = upkeep.game_of(config, ALONE, device, 1, **more)
    except InputError as error:
        return name, str(error).partition(";")[0], "", ""
    return timed(name, config, device, lambda: game.play(batch))


def published_way(config: DeviceBenchmark, device: torch.device):
    size = (config.batch_size, 3, config.image_size, config.image_size)
    batch = [torch.randn(size, device=device) for _ in range(2)]
    return train.published(config.arch, config.cluster, lambda: batch, device)


def timed(name: str, config: DeviceBenchmark, device: torch.device, way) -> tuple[str, ...]:
    measure.reset_peak(device)
    seconds = measure.interleaved({"": way}, config.repeats, device)[""]
    rate = config.batch_size / measure.spread(seconds)[0]
    memory = measure.peak_bytes(device) / 1e9
    return name, measure.milliseconds(seconds), f"{rate:.1f}", f"{memory:.2f}"


def upkeep_rows(config: DeviceBenchmark, device: torch.device) -> Iterator[tuple[str, ...]]:
    players = upkeep.game_of(config, ALONE, device, 1, cluster=config.cluster)
    with tempfile.TemporaryDirectory() as folder:
        ways = upkeep.parts(*players, ALONE, Path(folder) / "checkpoint")
        for name, turns in measure.interleaved(ways, config.repeats, device).items():
            yield f"between steps: {name}", measure.milliseconds(turns), "", ""


def run(config: DeviceBenchmark, _: World, device: torch.device) -> int:
    torch.zeros(1, device=device)
    print(measure.describe(device))
    print(f"{config.arch}, N {config.batch_size}, {config.image_size} px, K {config.cluster}\n")
    measure.print_head("what", "ms, median and quartiles", "images/s", "GB at most")
    end = time.monotonic() + 60 * config.minutes
    for row in rows(config, device):
        measure.print_row(*row)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if time.monotonic() > end:
            measure.print_row("the rest is left out: time is up", "", "", "")
            break
    return 0


def main(argv=None) -> int:
    with reported("benchmarks.device"):
        return launch(run, parse(DeviceBenchmark, argv))


if __name__ == "__main__":
    sys.exit(main())
