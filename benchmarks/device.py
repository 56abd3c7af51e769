"""What one device does with the published step: right numbers, speed, memory, what safety costs.

python3 -m benchmarks.device                   # the GPU of this machine, at most 8 minutes
python3 -m benchmarks.device --arch resnet18 --batch_size 8 --cluster 16384   # a CPU
python3 -m benchmarks.device --nproc 2 --batch_size 8   # what safety costs several processes
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from adco.data.loader import RENDERERS
from adco.pretrain.options import PretrainConfig
from adco.pretrain.state import Progress, pack
from adco.pretrain.upkeep import CHECK_STEPS
from benchmarks import measure, rounds, train, views
from ops import checkpoint
from ops.arguments import AT_LEAST_1, POSITIVE, option, parse
from ops.device import tune
from ops.distributed import ALONE, Flags, World, broadcast_from_first_
from ops.errors import InputError, reported
from ops.launch import launch
from ops.training import BufferSnapshot, check_finite, check_ranks_agree

PRECISIONS = ("bf16", "fp16", "none")
SAVE_SECONDS = 60 * PretrainConfig().save_minutes


@dataclass(frozen=True)
class DeviceBenchmark(measure.StepBenchmark):
    """One table of one device: parity, steps, memory, bank, renderers, and what safety costs."""

    cluster: int = option(65536, "K", AT_LEAST_1)
    repeats: int = option(7, "times that each is taken", AT_LEAST_1)
    minutes: float = option(8.0, "after which what is left is left out", POSITIVE)


def rows(config: DeviceBenchmark, world: World, device: torch.device) -> Iterator[tuple[str, ...]]:
    """(what, ms or number, images/s, GB at most), as they are measured."""
    if world.size == 1:
        yield from parity(device)
        for amp in PRECISIONS:
            for compiled in (0, 1):
                yield step_row(config, device, amp, compiled)
        yield from other_rows(config, device)
    yield from upkeep_rows(config, world, device)


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
        game, batch, _ = measure.game_of(config, ALONE, device, **more)
    except InputError as error:
        return name, str(error).partition(";")[0], "", ""
    return timed(name, config, device, lambda: game.play(batch))


def other_rows(config: DeviceBenchmark, device: torch.device) -> Iterator[tuple[str, ...]]:
    """The published way, the bank's share, and the renderers, on a core."""
    size = (config.batch_size, 3, config.image_size, config.image_size)
    batch = [torch.randn(size, device=device) for _ in range(2)]
    published = train.published(config.arch, config.cluster, lambda: batch, device)
    yield timed("published", config, device, published)
    round_ = rounds.way("ours", config.batch_size, config.cluster, 128, device, ALONE)
    yield timed("a round of the bank alone", config, device, round_)
    data = views.jpeg(views.Image.fromarray(views.made_up().read(0)))
    for name, renderer in RENDERERS.items():
        way = partial(views.ours, renderer, 0, data)
        seconds = measure.interleaved({"": way}, config.repeats, device)[""]
        rate = 1 / measure.spread(seconds)[0]
        yield f"two views of a JPEG, {name}", measure.milliseconds(seconds), f"{rate:.0f}", ""


def timed(name: str, config: DeviceBenchmark, device: torch.device, way) -> tuple[str, ...]:
    measure.reset_peak(device)
    seconds = measure.interleaved({"": way}, config.repeats, device)[""]
    rate = config.batch_size / measure.spread(seconds)[0]
    memory = measure.peak_bytes(device) / 1e9
    return name, measure.milliseconds(seconds), f"{rate:.1f}", f"{memory:.2f}"


def upkeep_rows(
    config: DeviceBenchmark, world: World, device: torch.device
) -> Iterator[tuple[str, ...]]:
    """A step, and what comes between two steps so that a run is never lost."""
    game, batch, options = measure.game_of(config, world, device, cluster=config.cluster)
    flags = Flags(world)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / checkpoint.LAST

        def guard():
            buffers = BufferSnapshot(game.model)
            _, dropped = check_finite(game.model, game.bank.W, game.bank.W[0, 0])
            buffers.restore_if_(dropped)

        def check():
            broadcast_from_first_(game.model.buffers(), world)
            check_ranks_agree(game.model.state_dict(), world)

        def save():
            state = pack(game.players, Progress(), options, {})
            if world.first:
                checkpoint.save(state, path)

        ways: dict[str, Callable] = {
            "step": lambda: game.play(batch),
            "guard": guard,
            "flags": lambda: flags.exchange(0, 0, 0, 0),
            "check": check,
            "save": save,
        }
        seconds = measure.interleaved(ways, config.repeats, device)
    # At the default settings.
    step = measure.spread(seconds["step"])[0]
    periods = {"guard": step, "flags": step, "check": CHECK_STEPS * step, "save": SAVE_SECONDS}
    yield "step", measure.milliseconds(seconds["step"]), "", ""
    for name, period in periods.items():
        share = measure.spread(seconds[name])[0] / period
        times = measure.milliseconds(seconds[name])
        yield f"between steps: {name}", times, f"{share:.3%} of the time", ""


def run(config: DeviceBenchmark, world: World, device: torch.device) -> int:
    torch.zeros(1, device=device)
    if world.first:
        print(measure.describe(device))
        size = f"N {config.batch_size} on {world.size} process(es), {config.image_size} px"
        print(f"{config.arch}, {size}, K {config.cluster}\n")
        measure.print_head("what", "ms, median and quartiles", "images/s", "GB at most")
    end = time.monotonic() + 60 * config.minutes
    for row in rows(config, world, device):
        if world.first:
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
