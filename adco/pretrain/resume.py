"""How a run begins: from nothing, or from a checkpoint."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from adco.data.identity import check_same_everywhere, difference
from adco.encoder import own_config
from adco.pretrain.game import Game
from adco.pretrain.options import WITHOUT_BANK, PretrainConfig
from adco.pretrain.state import KEPT, Progress, unpack_
from ops import checkpoint
from ops.distributed import Flags
from ops.errors import InputError
from ops.journal import Journal
from ops.options import differences

# Options that this program no longer has, with what it does in their place.
FORMER_OPTIONS = {"bn_splits": 1, "mem_weight": 1.0}


@dataclass
class RunStart:
    """Where a run stands before its first step."""

    progress: Progress
    kept: dict = field(default_factory=dict)  # of KEPT, what the checkpoint holds
    data: dict = field(default_factory=dict)  # what the run is made of
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


def start_or_resume_(game: Game, flags: Flags) -> RunStart:
    """Where the run begins, as found_start_. A new one in which adversaries would never play is
    refused.
    """
    start = found_start_(game, flags)
    if start.source is None and game.first_played >= game.num_steps:
        config, num_steps = game.config, game.num_steps
        raise InputError(
            f"{config.cluster} adversaries, which {game.num_keys} keys a step fill in the first "
            f"{config.adversaries_from:.0%} of the run or longer, would never play in {num_steps} "
            "steps; give --adversaries_from 0 (a start-up), a smaller --cluster or more --epochs"
        )
    return start


def found_start_(game: Game, flags: Flags) -> RunStart:
    """Fill the game's players from the checkpoint that --resume names; auto: from the newest whole
    one of this configuration. Where there is none they stay as they are: random, or of --init.
    """
    config, data = game.config, game.splits.identity()
    check_same_everywhere(data, flags)
    options = config.changes_numbers()
    check_same_everywhere(options, flags, "options", lambda *two: ", ".join(differences(*two)))
    progress = Progress(config.start_epoch, **counts(game), best_of=game.monitor)
    start = RunStart(progress, data=data)
    start.note = "\n".join(game.chosen + game.beginning)
    if not config.resume:
        return start
    state = None
    if config.resume == "auto":
        # One process looks: others might see another state of the same folder.
        if game.world.first:
            start.source, state, start.warnings = newest_with(config, config.log_folder, data)
        start.source = flags.gather(start.source)[0]
        if start.source is None:
            if config.init and not game.beginning:
                checkpoint.load(config.init)  # says that it is gone
            anew = f"no run with these options and data in {config.log_folder}: starting anew"
            return replace(start, note=f"{anew}\n{start.note}")
        start.folder = start.source.parent  # the same run goes on in the same folder
    else:
        start.source = Path(config.resume)
    state = state or checkpoint.load(start.source)

    source = str(start.source)
    check_kind(state, source, config)
    progress = unpack_(state, source, game.players, config.arch)
    if config.resume != "auto" and progress.epoch >= config.epochs:
        had = f"{source} has had {progress.epoch} epochs, which leaves nothing"
        raise InputError(f"{had} of epochs={config.epochs}; raise --epochs to go on")
    start.kept = {key: state[key] for key in KEPT if state.get(key) is not None}
    if other := difference(state.get("data"), data):
        start.warnings.append(f"{source} was made of other data ({other}): its best score is void")
        progress.best_acc = 0.0
        start.kept.pop("bad_pictures", None)
    start.warnings += progress.score_by(game.monitor)
    start.warnings += progress.count_in(**counts(game))
    start.progress = progress
    if start.kept.get("scaler"):  # it is empty where the run was not in fp16
        game.scaler.load_state_dict(start.kept["scaler"])
    start.note = f"resumed from {source}, {progress.where()}"
    return start


def check_kind(state: dict, source: str, config: PretrainConfig) -> None:
    """Refuse to go on with a bank from a run that had none, and the other way round."""
    # A file of the published program says nothing, and has a bank.
    unsaid = "learned" if "Memory_Bank" in state else config.negatives
    kind = own_config(state).get("negatives", unsaid)
    if (kind in WITHOUT_BANK) != (config.negatives in WITHOUT_BANK):
        here = f"here it is {config.negatives}, and one of them has no bank"
        raise InputError(f"{source} is of a run with --negatives {kind}, {here}; give the same")


def counts(game: Game) -> dict[str, int]:
    """In what the progress of a run is counted."""
    parts = game.world.size * game.config.accum_steps
    bn_size = game.num_keys // parts if game.model.has_batchnorm else 0
    return dict(num_keys=game.num_keys, num_pictures=len(game.splits.train), bn_size=bn_size)


def newest_with(
    config: PretrainConfig, folder: Path, data: dict
) -> tuple[Path | None, dict | None, list[str]]:
    """The checkpoint that a run of this configuration and data goes on from: its path, its content,
    and a sentence about each one before it that is damaged, or lies where nothing can be written.

    It is the one with the most steps in the folder that was written last. Where there is none:
    None, None, and a sentence about the damaged ones or, without such, about the newest run that
    was made otherwise.
    """
    damaged, other = [], []
    runs = {path.parent for path in folder.rglob("checkpoint_*.pth.tar")}
    for run in sorted(runs, key=lambda run: (written_at(run), run.name), reverse=True):
        if why := made_otherwise(run / "config.json", config, data):
            how = f"--resume PATH goes on from it, or --config {run / 'config.json'} --resume auto"
            other = other or [f"{run} was made otherwise ({why}): {how}"]
            continue
        if not os.access(run, os.W_OK):
            damaged.append(f"passed over: {run} cannot be written by this user, or on this machine")
            continue
        # Times do not tell the order in a folder: a copy may have changed them.
        for path in sorted(run.glob("checkpoint_*.pth.tar"), key=steps_in, reverse=True):
            try:
                return path, checkpoint.load(path), damaged
            except InputError as error:
                damaged.append(f"passed over: {error}")
    return None, None, damaged or other


def written_at(run: Path) -> float:
    """When the newest checkpoint of a run was written; 0 where they have just been renamed."""
    times = [0.0]
    for path in run.glob("checkpoint_*.pth.tar"):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def steps_in(path: Path) -> tuple[float, float, bool]:
    """Steps that a checkpoint has behind it, in order of time; of equal ones the last comes first.

    A file that cannot be read counts as the newest: it is told that it was passed over.
    """
    try:
        state = checkpoint.peek(path)
        return state["step"], state["startup_step"], path.name == checkpoint.LAST
    except Exception:  # as in checkpoint.load
        return inf, inf, path.name == checkpoint.LAST


def made_otherwise(path: Path, config: PretrainConfig, data: dict) -> str:
    """What differs between a run's config.json and this run, of what decides the numbers, in words;
    nothing where nothing does.
    """
    ours = FORMER_OPTIONS | config.changes_numbers()
    defaults = FORMER_OPTIONS | PretrainConfig().changes_numbers()
    try:
        # An option that is newer than the file had its default, or that of the data set.
        content = json.loads(path.read_text())
        of_data_set = {"eval_crop": config.eval_crop, "val_split": config.val_split}
        theirs = {**defaults, **of_data_set, **content["config"]}
        if theirs["global_batch_size"] is None:  # an earlier version, which kept the batch a node
            theirs["global_batch_size"] = theirs["batch_size"] * theirs["world_size"]
        # Of a file of --init that is gone the path is all there is to compare.
        if config.init and ours["init_sha256"] is None:
            same = config.init == theirs.get("init")
            ours["init_sha256"] = theirs["init_sha256"] if same else f"of {config.init}"
        other_data = difference(content.get("data"), data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its configuration cannot be read"  # none, torn, or of another program
    return ", ".join(filter(None, [*differences(theirs, ours), other_data]))
