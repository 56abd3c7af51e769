"""What it costs that a run is never lost: saves, checks, the poll and the guard, beside a step.

python3 -m benchmarks.upkeep                    # ResNet-50 on two processes
python3 -m benchmarks.upkeep --arch resnet18
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from adco.pretrain.game import Game
from adco.pretrain.options import PretrainConfig
from adco.pretrain.state import Progress, pack
from adco.pretrain.upkeep import CHECK_STEPS
from benchmarks import measure
from ops import checkpoint
from ops.arguments import AT_LEAST_1, option, parse
from ops.distributed import Flags, World, broadcast_from_first_
from ops.errors import reported
from ops.launch import launch
from ops.options import ARCHITECTURES, ProcessOptions
from ops.training import BufferSnapshot, check_finite, check_ranks_agree


@dataclass(frozen=True)
class UpkeepBenchmark(ProcessOptions):
    """Time of everything between two steps, at the default settings."""

    arch: str = option("resnet50", "encoder", choices=ARCHITECTURES)
    batch_size: int = option(8, "N of each process", AT_LEAST_1)
    image_size: int = option(224, "side of the views, pixels", AT_LEAST_1)
    repeats: int = option(5, "times that each is taken", AT_LEAST_1)


def game_of(
    config: UpkeepBenchmark, world: World, device: torch.device, **more
) -> tuple[Game, list[torch.Tensor], PretrainConfig]:
    """A game, the views of one step, and the options they follow from. more: further options."""
    options = PretrainConfig(
        dataset="digits", arch=config.arch, image_size=config.image_size, workers=0,
        global_batch_size=config.batch_size * world.size, **more,
    )  # fmt: skip
    game = Game(options, world, device)
    return game, next(game.batches(0)), options


def run(config: UpkeepBenchmark, world: World, device: torch.device) -> int:
    players = game_of(config, world, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / checkpoint.LAST
        seconds = measure.interleaved(parts(*players, world, path), config.repeats, device)
        if world.first:
            print_table(config, world, seconds, path.stat().st_size)
    return 0


def parts(
    game: Game, views: list[torch.Tensor], options: PretrainConfig, world: World, path: Path
) -> dict[str, Callable]:
    """A step, and what comes between two steps. path: of the checkpoint."""
    model, bank, flags = game.model, game.bank, Flags(world)

    def guard():
        buffers = BufferSnapshot(model)
        _, dropped = check_finite(model, bank.W, bank.W[0, 0])
        buffers.restore_if_(dropped)

    def check():
        broadcast_from_first_(model.buffers(), world)
        check_ranks_agree(model.state_dict(), world)

    def save():
        state = pack(model, bank, game.optimizer, Progress(), options, {})
        if world.first:
            checkpoint.save(state, path)

    return {
        "step": lambda: game.play(views),
        "guard": guard,
        "flags": lambda: flags.exchange(0, 0, 0, 0),
        "check": check,
        "save": save,
    }


def print_table(config: UpkeepBenchmark, world: World, seconds: dict, size: int) -> None:
    print(
        f"{config.arch}, {world.size} process(es), N {config.batch_size} each, views of "
        f"{config.image_size} pixels; a checkpoint has {size / 1e6:.0f} MB\n"
    )
    step = measure.spread(seconds["step"])[0]
    minutes = PretrainConfig().save_minutes
    often = {
        "step": ("", step),
        "guard": ("every step", step),
        "flags": ("every step", step),
        "check": (f"every {CHECK_STEPS} steps, and with each save", CHECK_STEPS * step),
        "save": (f"every {minutes:g} minutes", 60 * minutes),
    }
    measure.print_head("what", "ms", "how often", "share of the time")
    total = 0.0
    for name, (text, period) in often.items():
        share = measure.spread(seconds[name])[0] / period
        total += share if text else 0
        measure.print_row(
            name, measure.milliseconds(seconds[name]), text, f"{share:.3%}" if text else ""
        )
    measure.print_row("all", "", "", f"{total:.3%}")


def main(argv=None) -> int:
    with reported("benchmarks.upkeep"):
        config = parse(UpkeepBenchmark, argv)
        return launch(run, replace(config, nproc=max(2, config.nproc)))


if __name__ == "__main__":
    sys.exit(main())
