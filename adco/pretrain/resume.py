"""How a run begins: from nothing, or from a checkpoint."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from adco.pretrain.game import Parts
from adco.pretrain.options import PretrainConfig
from adco.pretrain.state import KEPT, Progress, unpack_
from ops import checkpoint
from ops.distributed import AsyncFlags, current_world
from ops.errors import InputError, shown

# Options that this program no longer has, with what it does in their place.
FORMER_OPTIONS = {"bn_splits": 1}


@dataclass
class Beginning:
    """Where a run stands before its first step."""

    progress: Progress
    kept: dict = field(default_factory=dict)  # of KEPT, what the checkpoint holds
    source: Path | None = None  # the checkpoint it goes on from
    folder: Path | None = None  # of the run that goes on; None: a new one
    note: str = ""  # for the user
    warnings: list[str] = field(default_factory=list)


def begin_(parts: Parts, config: PretrainConfig, flags: AsyncFlags) -> Beginning:
    """Fill `parts` from the checkpoint that --resume names, or with auto from the newest usable one
    of this configuration; leave them as they are where there is none.
    """
    num_keys = parts.loader.batches.global_size
    num_pictures = len(parts.splits.train)
    beginning = Beginning(
        Progress(config.start_epoch, num_keys=num_keys, num_pictures=num_pictures)
    )
    if not config.resume:
        return beginning
    source = Path(config.resume)
    if config.resume == "auto":
        # One process looks: others might see another state of the same folder.
        first = current_world().first
        path, state = None, None
        if first:
            path, state, beginning.warnings = newest_with(config, log_folder(config))
        name = flags.gather(path and str(path))[0]
        if name is None:
            beginning.note = f"no run with these options in {log_folder(config)}: starting anew"
            return beginning
        source = Path(name)
        beginning.folder = source.parent  # the same run goes on in the same folder
        state = state or checkpoint.load(source)
    else:
        state = checkpoint.load(source)
    name = str(source)
    progress = unpack_(state, name, parts.model, parts.bank, parts.optimizer, config.arch)
    if progress.num_pictures not in (0, num_pictures):
        beginning.warnings.append(
            f"{source} was made with {progress.num_pictures} pictures, here are {num_pictures}: "
            "the order of this epoch is another one"
        )
    progress.num_pictures = num_pictures
    progress.count_in(num_keys)
    beginning.progress, beginning.source = progress, source
    beginning.kept = {key: state[key] for key in KEPT if state.get(key) is not None}
    beginning.note = f"resumed from {source}, {progress.where()}"
    return beginning


def log_folder(config: PretrainConfig) -> Path:
    return Path(config.save_path) / config.log_path / config.dataset


def newest_with(config: PretrainConfig, folder: Path) -> tuple[Path | None, dict | None, list[str]]:
    """The newest checkpoint below a folder that was made with this configuration and is whole: its
    path, its content, and a sentence about each newer one that is damaged.

    Where there is none: None, None, and the damaged ones, or else the newest run with other
    options.
    """
    damaged, other = [], None
    for path in sorted(folder.rglob("checkpoint_*.pth.tar"), key=written_at, reverse=True):
        differences = made_otherwise(path.parent / "config.json", config)
        if differences:
            other = other or f"{path} was made with {differences}: --resume PATH goes on from it"
            continue
        try:
            return path, checkpoint.load(path), damaged
        except InputError as error:
            damaged.append(f"passed over: {error}")
    if damaged:
        return None, None, damaged
    return None, None, [other] if other else []


def written_at(path: Path) -> float:
    """Modification time; 0 where the file has just been renamed by another run."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def made_otherwise(path: Path, config: PretrainConfig) -> str:
    """The options by which a run's config.json differs from `config`, of those that change the
    numbers, in words; nothing where there are none.
    """
    ours = FORMER_OPTIONS | json.loads(json.dumps(config.changes_numbers()))  # tuples as lists
    defaults = FORMER_OPTIONS | json.loads(json.dumps(PretrainConfig().changes_numbers()))
    try:
        # An option that is newer than the file had its default.
        theirs = defaults | json.loads(path.read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError):  # none, torn, or of another program
        return "a configuration that cannot be read"
    return ", ".join(
        f"{name} {shown(theirs[name])}, here {shown(value)}"
        for name, value in ours.items()
        if theirs[name] != value
    )
