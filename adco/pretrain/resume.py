"""How a run begins: from nothing, or from a checkpoint."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from adco.pretrain.game import Game
from adco.pretrain.options import PretrainConfig
from adco.pretrain.state import KEPT, Progress, unpack_
from ops import checkpoint
from ops.distributed import AsyncFlags, World
from ops.errors import InputError, shown
from ops.journal import Journal

# Options that this program no longer has, with what it does in their place.
FORMER_OPTIONS = {"bn_splits": 1}


@dataclass
class RunStart:
    """Where a run stands before its first step."""

    progress: Progress
    kept: dict = field(default_factory=dict)  # of KEPT, what the checkpoint holds
    source: Path | None = None  # the checkpoint it goes on from
    folder: Path | None = None  # of the run that goes on; None: a new one
    warnings: list[str] = field(default_factory=list)
    note: str = ""

    def tell(self, journal: Journal) -> None:
        """The warnings and the note, for the user."""
        for sentence in self.warnings:
            journal.warn(sentence)
        if self.note:
            journal.say(self.note)


def start_or_resume_(
    game: Game, config: PretrainConfig, world: World, flags: AsyncFlags
) -> RunStart:
    """Fill the game's players from the checkpoint that --resume names; auto: from the newest whole
    one of this configuration. Where there is none they stay as they are.
    """
    num_pictures = len(game.splits.train)
    progress = Progress(config.start_epoch, num_keys=game.num_keys, num_pictures=num_pictures)
    start = RunStart(progress)
    if not config.resume:
        return start
    if config.resume == "auto":
        # One process looks: others might see another state of the same folder.
        path, state = None, None
        if world.first:
            path, state, start.warnings = newest_with(config, log_folder(config))
        name = flags.gather(path and str(path))[0]
        if name is None:
            start.note = f"no run with these options in {log_folder(config)}: starting anew"
            return start
        start.source = Path(name)
        start.folder = start.source.parent  # the same run goes on in the same folder
    else:
        start.source, state = Path(config.resume), None
    state = state or checkpoint.load(start.source)

    source = str(start.source)
    progress = unpack_(state, source, game.model, game.bank, game.optimizer, config.arch)
    if progress.num_pictures not in (0, num_pictures):
        start.warnings.append(
            f"{source} was made with {progress.num_pictures} pictures, here are {num_pictures}: "
            "the order of this epoch is another one"
        )
    progress.num_pictures = num_pictures
    progress.count_in(game.num_keys)
    start.progress = progress
    start.kept = {key: state[key] for key in KEPT if state.get(key) is not None}
    if start.kept.get("scaler"):  # it is empty where the run was not in fp16
        game.scaler.load_state_dict(start.kept["scaler"])
    start.note = f"resumed from {source}, {progress.where()}"
    return start


def log_folder(config: PretrainConfig) -> Path:
    return Path(config.save_path) / config.log_path / config.dataset


def newest_with(config: PretrainConfig, folder: Path) -> tuple[Path | None, dict | None, list[str]]:
    """The newest checkpoint below a folder that was made with this configuration and is whole: its
    path, its content, and a sentence about each newer one that is damaged.

    Where there is none: None, None, and a sentence about the damaged ones or, without such, about
    the newest run with other options.
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
    # Both as JSON gives them: lists, not tuples.
    ours = FORMER_OPTIONS | json.loads(json.dumps(config.changes_numbers()))
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
