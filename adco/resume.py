"""How a run begins: from nothing, or from a checkpoint."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO

from adco.parts import Parts
from adco.state import Extras, Progress, unpack_
from ops import checkpoint
from ops.arguments import from_dict
from ops.distributed import Poll, current_world
from ops.errors import InputError
from ops.journal import lock_folder
from ops.pretrain_options import PretrainConfig


@dataclass
class Beginning:
    """Where a run stands before its first step."""

    progress: Progress
    extras: Extras = field(default_factory=Extras)
    source: Path | None = None  # the checkpoint it goes on from
    folder: Path | None = None  # of the run that goes on; None: a new one
    lock: TextIO | None = None  # that keeps the folder for this process
    note: str = ""  # for the user
    damaged: list[str] = field(default_factory=list)  # a sentence for each file passed over


def begin_(parts: Parts, config: PretrainConfig, poll: Poll) -> Beginning:
    """Fill `parts` from the checkpoint that --resume names, or with auto from the newest usable one
    of this configuration; leave them as they are where there is none.
    """
    num_keys = parts.loader.batches.global_size
    beginning = Beginning(Progress(epoch=config.start_epoch, num_keys=num_keys))
    if not config.resume:
        return beginning
    source = Path(config.resume)
    if config.resume == "auto":
        # One process looks: others might see another state of the same folder.
        first = current_world().first
        found, beginning.damaged = newest_with(config, log_folder(config)) if first else (None, [])
        name = poll.gather(str(found.path) if found else None)[0]
        if name is None:
            beginning.note = f"nothing to resume in {log_folder(config)}: starting anew"
            return beginning
        source = Path(name)
        beginning.folder = source.parent  # the same run goes on in the same folder
        beginning.lock = found.lock if found else None
        state = found.state if found else checkpoint.load(source)
    else:
        state = checkpoint.load(source)
    name = str(source)
    progress = unpack_(state, name, parts.model, parts.bank, parts.optimizer, config.arch)
    progress.count_in(num_keys)
    beginning.progress, beginning.source = progress, source
    beginning.extras = Extras.read(state, name)
    beginning.note = f"resumed from {source}, {progress.where()}"
    return beginning


def log_folder(config: PretrainConfig) -> Path:
    return Path(config.save_path) / config.log_path / config.dataset


class Found(NamedTuple):
    path: Path
    state: dict
    lock: TextIO  # of its folder


def newest_with(config: PretrainConfig, log_folder: Path) -> tuple[Found | None, list[str]]:
    """The newest usable checkpoint below a folder that was made with this configuration; and a
    sentence for each newer one that is damaged. Raises InputError where its run is still going on.
    """
    damaged = []
    for path in sorted(log_folder.rglob("checkpoint_*.pth.tar"), key=written_at, reverse=True):
        if not made_with(path.parent / "config.json", config):
            continue
        lock = lock_folder(path.parent)
        try:
            return Found(path, checkpoint.load(path), lock), damaged
        except InputError as error:
            damaged.append(f"passed over: {error}")
    return None, damaged


def written_at(path: Path) -> float:
    """Modification time; 0 where the file has just been renamed by another run."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def made_with(path: Path, config: PretrainConfig) -> bool:
    """Whether a run's config.json says what `config` says, as far as it decides the numbers."""
    try:
        found = from_dict(PretrainConfig, json.loads(path.read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError):  # none, torn, or of another program
        return False
    return found.changes_numbers() == config.changes_numbers()
