"""A dry run: everything a run needs is checked, two steps are taken, and nothing is left behind."""

import json
import shutil
import tempfile
import time
from dataclasses import asdict
from datetime import timedelta
from math import sqrt
from pathlib import Path

import torch

from adco.data.datasets import SAMPLE, sample_of
from adco.data.pictures import BrokenPicture, Pictures
from adco.pretrain.game import Game, describe
from adco.pretrain.options import CROPS, WITHOUT_BANK, PretrainConfig
from adco.pretrain.resume import start_or_resume_
from adco.pretrain.state import Progress, pack
from adco.probe.knn import bytes_held
from ops.device import free_memory, peak_memory
from ops.distributed import Flags, World
from ops.errors import InputError
from ops.workers import workers_per_process


def dry_run(config: PretrainConfig, world: World, device: torch.device) -> int:
    """Print what a run with this configuration is going to be. Returns the exit code.

    Raises InputError for whatever would stop the run: unreadable pictures, a batch that does not
    split, a folder that cannot be written, too small a disk.
    """
    # Everything that the run would do first.
    game = Game(config, world, device)
    start, config = start_or_resume_(game, Flags(world)), game.config
    num_broken = read_sample(game.splits.train, config)
    seconds = time_steps(game)
    state = pack(game.players, start.progress, config, start.data)
    if not world.first:
        return 0

    wanted = config.log_folder.absolute()
    folder = next(path for path in (wanted, *wanted.parents) if path.exists())
    size = written_size(state, folder)
    # As run.finish_epoch keeps them: the last two, the best, the numbered ones, and one in writing.
    num_files = 4 + (config.epochs - start.progress.epoch) // config.save_freq
    free = shutil.disk_usage(folder).free
    if num_files * size > free:
        raise InputError(
            f"{num_files} checkpoints of {size / 1e9:.2f} GB do not fit into the {free / 1e9:.2f} "
            f"GB that are free in {str(folder)!r}; make room, choose another --save_path, or raise "
            "--save_freq"
        )

    # The options as they are carried out, without lists that nothing reads.
    effective = asdict(config) | {
        "device": str(device),
        "amp": str(game.model.amp or torch.float32),
        "workers": workers_per_process(config.workers, world.local_size) * world.local_size,
    }
    without = () if config.multi_crop else CROPS
    print(json.dumps({name: x for name, x in effective.items() if name not in without}))
    print("\n".join([describe(game), *start.warnings, start.note]).strip())
    total = len(game.splits.train)
    rows = {
        "pictures": f"{total}; of {min(total, SAMPLE)} tried {num_broken} are broken",
        **findings(game, start.progress, seconds),
        **memory_of_scores(game),
        "checkpoints": f"{num_files} of {size / 1e9:.2f} GB in {folder}, {free / 1e9:.1f} GB free",
    }
    for name, text in rows.items():
        print(f"{name + ':':17}{text}")
    print("dry run: everything is there", flush=True)
    return 0


def findings(game: Game, progress: Progress, seconds: float) -> dict[str, str]:
    """What the run is going to be, in words. seconds: of a step."""
    config, num_keys, steps_per_epoch = game.config, game.num_keys, len(game.loader)
    # Steps that are still to be taken.
    startup = 0
    if config.has_startup and not progress.playing:
        startup = config.startup_steps(num_keys) - progress.startup_step
    steps = (config.epochs - progress.epoch) * steps_per_epoch - progress.epoch_step
    whole = timedelta(seconds=round((startup + steps) * seconds))
    memory = peak_memory(game.device) / 1e9
    others = f"{config.cluster}, {game.bank.W.shape[1]} on this process"
    if game.first_played:
        others += f", from step {game.first_played} on"
    if config.negatives in WITHOUT_BANK:
        others = "none, the other pictures of the batch"
    return {
        "steps per epoch": f"{steps_per_epoch} of {num_keys} pictures",
        "adversaries": others,
        "start-up": f"{startup} steps, {startup / steps_per_epoch:.2f} passes over the pictures",
        "step": f"{seconds:.3f} s, {num_keys / seconds:.0f} images/s",
        "whole run": f"{whole} for {startup + steps} steps, the kNN scores aside",
        "peak memory": f"{memory:.2f} GB per process, loader processes aside",
    }


def memory_of_scores(game: Game) -> dict[str, str]:
    """What a kNN score will hold, in words. Raises InputError where the GPU lacks the memory."""
    splits = game.splits
    if game.monitor != "knn":
        return {}  # the features of a sample
    num_pictures = len(splits.labelled) + len(splits.val)
    held = bytes_held(num_pictures, game.model.encoder_q.inplanes, game.world)
    free = free_memory(game.device)
    if held > free:
        raise InputError(
            f"a kNN score takes {held / 1e9:.2f} GB of a GPU, and {free / 1e9:.2f} GB are free; "
            "take more GPUs, a smaller --batch_size, or --knn_freq 0"
        )
    text = f"{held / 1e9:.2f} GB more per process, of the features of {num_pictures} pictures"
    return {"kNN scores": text}


def read_sample(pictures: Pictures, config: PretrainConfig) -> int:
    """Read some pictures; the number of broken ones.

    Raises InputError where there are clearly more than --bad_images_max of them: of a sample, by
    more than three standard deviations.
    """
    chosen, broken = sample_of(pictures, config.seed), {}
    for index in chosen:
        try:
            pictures.read(index)
        except BrokenPicture as error:
            if config.bad_images == "error":
                raise
            broken[pictures.name(index)] = error.reason
    # A sample may by chance hold more broken pictures than its share.
    expected = config.bad_images_max * len(chosen)
    allowed = expected + (3 * sqrt(expected) if len(chosen) < len(pictures) else 0)
    if len(broken) > allowed:
        name, reason = next(iter(broken.items()))
        raise InputError(
            f"{len(broken)} of {len(chosen)} pictures that were tried are broken, more than "
            f"--bad_images_max {config.bad_images_max:g} allows; first: {name} ({reason}); remove "
            "them or raise the limit"
        )
    return len(broken)


def written_size(state: dict, folder: Path) -> int:
    """Bytes of a checkpoint, by writing one. Raises InputError where that cannot be done."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            torch.save(state, file)
            return file.tell()
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of a full disk
        raise InputError(
            f"cannot write a checkpoint in {str(folder)!r}: {error}; make room or choose another "
            "--save_path"
        ) from error


def time_steps(game: Game) -> float:
    """Seconds of the second of two real steps, with the wait for its pictures."""
    game.model.train()
    game.plays = True  # late adversaries too
    batches = (views for epoch in (0, 1) for views in game.batches(epoch))
    # The first step makes what later ones reuse: only the second is timed.
    for _ in range(2):
        start = time.perf_counter()
        result = game.play(next(batches))
        result.loss.item()  # waits for the device
    return time.perf_counter() - start
