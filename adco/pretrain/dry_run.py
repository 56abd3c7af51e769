"""A dry run: everything a run needs is checked, two steps are taken, and nothing is left behind."""

import json
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import timedelta
from math import sqrt
from pathlib import Path

import numpy as np
import torch

from adco.data.loader import workers_per_process
from adco.data.pictures import Pictures
from adco.pretrain.game import Parts, build, play_round
from adco.pretrain.options import PretrainConfig
from adco.pretrain.resume import begin_, log_folder
from adco.pretrain.state import Progress, pack
from ops.device import on_device
from ops.distributed import AsyncFlags, World
from ops.errors import InputError

SAMPLE = 200  # pictures that are read to see whether they can be


def rehearse(config: PretrainConfig, world: World, device: torch.device) -> int:
    """Print what a run with this configuration is going to be. Returns the exit code.

    Raises InputError for whatever would stop the run: unreadable pictures, a batch that does not
    split, a folder that cannot be written, too small a disk.
    """
    parts = build(config, world, device)
    beginning = begin_(parts, config, AsyncFlags(world))
    progress = beginning.progress
    broken = read_sample(parts.splits.train, config)
    seconds = time_steps(parts, config, device)
    state = pack(parts.model, parts.bank, parts.optimizer, progress, config)
    if not world.first:
        return 0

    folder = existing_folder(log_folder(config))
    size = written_size(state, folder)
    # The last two, the best, the one being written, and the numbered ones to come.
    num_files = 4 + (config.epochs - progress.epoch) // config.save_freq
    free = shutil.disk_usage(folder).free
    if num_files * size > free:
        raise InputError(
            f"{num_files} checkpoints of {size / 1e9:.2f} GB do not fit into the {free / 1e9:.2f} "
            f"GB that are free in {str(folder)!r}; make room, choose another --save_path, or raise "
            "--save_freq"
        )

    effective = asdict(config) | {
        "device": str(device),
        "amp": str(parts.model.amp or torch.float32),
        "workers": workers_per_process(config.workers, world) * world.local_size,
    }
    print(json.dumps(effective))
    print("\n".join([*beginning.warnings, beginning.note]).strip())
    total = len(parts.splits.train)
    rows = {
        "pictures": f"{total}; of {min(total, SAMPLE)} tried {broken} are broken",
        **findings(config, world, device, parts, progress, seconds),
        "checkpoints": f"{num_files} of {size / 1e9:.2f} GB in {folder}, {free / 1e9:.1f} GB free",
    }
    for name, text in rows.items():
        print(f"{name + ':':17}{text}")
    print("dry run: everything is there", flush=True)
    return 0


def findings(
    config: PretrainConfig, world: World, device, parts: Parts, progress: Progress, seconds: float
) -> dict[str, str]:
    """What the run is going to be, in words. seconds: of a step."""
    num_keys = parts.loader.batches.global_size
    startup = 0
    if config.ad_init and not progress.playing:
        startup = config.startup_steps(num_keys) - progress.startup_step
    steps = (config.epochs - progress.epoch) * len(parts.loader) - progress.epoch_step
    whole = timedelta(seconds=round((startup + steps) * seconds))
    return {
        "processes": f"{world.size} on {device.type} in {parts.model.amp or torch.float32}, "
        f"{num_keys // world.size} pictures each",
        "steps per epoch": f"{len(parts.loader)} of {num_keys} pictures",
        "adversaries": f"{config.cluster}, {parts.bank.W.shape[1]} on this process",
        "start-up": f"{startup} steps, {startup / len(parts.loader):.2f} passes over the pictures",
        "step": f"{seconds:.3f} s, {num_keys / seconds:.0f} images/s",
        "whole run": f"{whole} for {startup + steps} steps, the kNN scores aside",
        "peak memory": f"{peak_memory(device) / 1e9:.2f} GB per process, loader processes aside",
    }


def read_sample(pictures: Pictures, config: PretrainConfig) -> int:
    """Read some pictures; the number of broken ones.

    Raises InputError where there are clearly more than --bad_images_max of them: of a sample, by
    more than three standard deviations.
    """
    chosen = np.random.default_rng(config.seed).permutation(len(pictures))[:SAMPLE]
    broken = {}
    for index in chosen:
        try:
            pictures.picture(int(index))
        except InputError as error:
            if config.bad_images == "error":
                raise
            broken[pictures.name(int(index))] = str(error.__cause__)
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


def existing_folder(folder: Path) -> Path:
    """The folder, or what exists of the way to it."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


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


def time_steps(parts: Parts, config: PretrainConfig, device: torch.device) -> float:
    """Seconds of the second of two real steps, with the wait for its pictures."""
    parts.model.train()
    pictures = (batch for epoch in (0, 1) for batch in parts.loader.epoch(epoch))
    batches = on_device(pictures, device, parts.layout)
    for _ in range(2):
        start = time.perf_counter()
        result = play_round(parts, next(batches), config)
        result.loss.item()  # waits for the device
    return time.perf_counter() - start


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
