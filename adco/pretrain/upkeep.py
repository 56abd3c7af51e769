"""What a run does between two steps: save, check, count broken pictures, stop if it has to."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from adco.pretrain.game import Game, describe
from adco.pretrain.health import MOST_DROPPED, BadPictures, CollapseWatch, DropStreak
from adco.pretrain.meter import EpochMeter
from adco.pretrain.monitor import Look
from adco.pretrain.options import PretrainConfig
from adco.pretrain.resume import RunStart
from adco.pretrain.saving import Checkpoints, Reports
from adco.pretrain.state import pack
from ops.distributed import Flags, broadcast_from_first_
from ops.errors import InputError, RunFailed
from ops.journal import Journal
from ops.run_folder import new_run_folder
from ops.signals import StopRequest, WaitInterrupted
from ops.training import check_ranks_agree

CHECK_STEPS = 1000  # between two checks that all processes hold the same numbers


class Stopped(Exception):
    """The run was asked to stop, and has saved."""


class Requests(NamedTuple):
    """What a process asks of all processes, and their sums."""

    stop: int = 0
    save: int = 0
    broken: int = 0  # pictures that it has found broken
    failed: int = 0  # it cannot go on


class Upkeep:
    """Keeps a run healthy and its state on disk. Every process has one; the first one writes."""

    def __init__(self, game: Game, flags: Flags, start: RunStart, stop: StopRequest):
        config, world = game.config, game.world
        self.game, self.config, self.world, self.flags, self.stop = game, config, world, flags, stop
        self.progress, self.data = start.progress, start.data
        self.meter: EpochMeter | None = None  # inside an epoch
        self.torn = False  # whether a step has begun and not ended

        # What watches over the run. A run that goes on keeps what was seen before.
        weight = sum(term.weight for term in game.plan)
        patience = max(200, 2 * len(game.loader))
        seen = start.kept.get("watch")
        self.watch = CollapseWatch.of(config, game.num_keys, weight, patience, seen)
        known = start.kept.get("bad_pictures", {})
        self.bad_pictures = BadPictures(config.bad_images_max, len(game.splits.train), known)
        self.streak = DropStreak(game.device)
        # A file of the published program does not say whether they play; its bank is full.
        late, is_full = config.adversaries_from * config.epochs, self.progress.playing
        game.plays = start.source is not None and is_full and self.progress.epoch >= late > 0
        self.look = Look(game, start.kept.get("look"))

        # What writes, on the first process.
        self.journal = open_journal(config, start, game.chosen) if world.first else Journal(None)
        folder, every = self.journal.folder, config.report_epochs if world.first else 0
        self.saves = Checkpoints(folder, config.save_minutes, self.journal, start.source)
        self.reports = Reports(folder, every, self.journal)
        self.journal.say(f"run folder: {folder}")
        if world.first:
            self.journal.say(describe(game))  # it looks at pictures
        start.tell(self.journal)

    # ---- between two steps

    def arriving(self, batches: Iterator, number: int) -> Iterator:
        """So many batches. Before each is handed on, whatever is due is done, on all processes.

        While a batch is awaited the state is that of the last step: a stop, or an error in making
        the batch, saves it.
        """
        for _ in range(number):
            batch, error = self.await_batch(batches)
            if self.meter:  # what follows is no wait for pictures
                self.meter.data_is_here()
            self.between_steps(error)
            yield batch

    def scoring(self, batches: Iterator, number: int) -> Iterator:
        """The batches of a score; `number`: the most that any process has.

        A stop is without a save: the run that goes on scores again.
        """
        for _ in range(number):
            batch, error = self.await_batch(batches)
            self.end_if_asked(self.agree(error), error)
            if batch is not None:
                yield batch

    def await_batch(self, batches: Iterator) -> tuple:
        """The next batch, or None: there is none, or a stop came; and the error, if it failed."""
        try:
            with self.stop.waiting():
                return next(batches, None), None
        except WaitInterrupted:
            return None, None
        except Exception as error:
            return None, error

    def agree(self, error: Exception | None, **requests: int) -> Requests:
        """What all processes ask together: one small all-reduce, so that all do the same next.

        error: why this process cannot go on.
        """
        ours = Requests(stop=self.stop.received is not None, failed=error is not None, **requests)
        return Requests(*self.flags.exchange(*ours))

    def end_if_asked(self, requests: Requests, error: Exception | None) -> None:
        """Raise the error of the first process that has one, on all of them; Stopped, for a stop.

        It has been told what is saved, and where the traceback of an unforeseen one is.
        """
        if not (requests.failed or requests.stop):
            return
        self.saves.wait()
        if requests.failed:
            if self.saves.last.exists():
                self.journal.say(f"{self.saves.last} is good: go on from it with --resume auto")
            self.flags.raise_first(error)
        saved = ", BUT NOT SAVED" if self.saves.failed else ""
        where = self.progress.where()
        self.journal.say(f"stopped by {self.stop.name} {where}{saved}: go on with --resume auto")
        raise Stopped

    @contextmanager
    def undivided(self):
        """The block changes the state as one: an error in it leaves nothing that could be saved."""
        self.torn = True
        yield
        self.torn = False

    def between_steps(self, error: Exception | None = None) -> None:
        """Whatever is due: broken pictures, a check that the processes agree, a save, a stop.

        error: why this process has no batch.
        """
        steps = self.progress.startup_step + self.progress.step
        broken = len(self.game.loader.newly_broken)
        requests = self.agree(error, save=self.saves.due(), broken=broken)
        if requests.broken:
            self.note_bad_pictures()
            if complaint := self.bad_pictures.complaint(self.journal.folder):
                self.save()
                # In the words of the first process, which has the folder, and once it has written.
                self.flags.raise_first(InputError(complaint))
        saves = requests.save or requests.stop or (requests.failed and steps)
        if saves or (steps and steps % CHECK_STEPS == 0):
            self.sync_and_check_ranks()
        if saves:
            self.save(in_background=not (requests.stop or requests.failed))
        self.end_if_asked(requests, error)

    def rescue(self) -> None:
        """After an error that nobody foresaw: save, where the state is whole and all is here."""
        steps = self.progress.startup_step + self.progress.step
        if steps and not self.torn and self.world.size == 1:
            with suppress(Exception):  # the first error is the one to tell
                self.save()

    # ---- what can go wrong

    def note_bad_pictures(self) -> None:
        """Name and count what the processes have met."""
        for newly_broken in self.flags.gather(self.game.loader.take_newly_broken()):
            for sentence in self.bad_pictures.add(newly_broken):
                self.journal.warn(sentence)

    def stop_if_diverged(self, whole_epoch: bool = False) -> None:
        """Raise RunFailed on all processes, with the first one's message (it knows the saves).

        whole_epoch: whether every step of the epoch was dropped, however few there are.
        """
        # The only read of the device, on log steps. After so many no weight will ever move again.
        longest = int(self.streak.longest.item())
        if longest < MOST_DROPPED and not whole_epoch:
            return
        self.saves.wait()  # whether something is saved is part of what is said
        saved = f"go on from {self.saves.last}, which is good, with"
        advice = saved if self.saves.last.exists() else "nothing is saved yet; take"
        complaint = (
            f"diverged: loss or gradient not finite in {longest} steps in a row, "
            f"{self.progress.where()}. None of them moved the encoder; {advice} a lower --lr"
        )
        self.journal.note(complaint)
        self.flags.raise_first(RunFailed(complaint))

    def check_health(self, values: dict[str, float]) -> None:
        """Read what was logged of this step: warn of a collapse, stop where it diverged."""
        self.stop_if_diverged()
        for warning in self.watch.read(
            self.progress.step, values["loss"], values["mass"], values["spread"], self.game.plays
        ):
            self.journal.warn(warning)

    def take_a_look(self) -> None:
        """Record how adversaries and embeddings lie; warn where the adversaries are of no use."""
        step, epoch = self.progress.step, self.progress.epoch
        records = self.look.take(self.scoring, step)
        for kind, values in records.items():
            self.journal.record(kind, step, {"epoch": epoch, **values})
        for warning in self.watch.read_look(step, **records):
            self.journal.warn(warning)

    def sync_and_check_ranks(self) -> None:
        """Give every process rank 0's BatchNorm statistics, and check that all else is equal."""
        broadcast_from_first_(self.game.model.buffers(), self.world)
        check_ranks_agree(self.game.model.state_dict(), self.world)

    # ---- saving

    def save(self, more_names: tuple[str, ...] = (), in_background: bool = False) -> bool:
        """Save everything. False where it could not be written; only the first process knows.

        in_background: the state is copied now, and written while the run goes on.
        """
        self.saves.wait()  # what it has to say is in the log before its size is taken
        # On every process: broken pictures, sums and the bank's columns come together here.
        self.note_bad_pictures()
        state = pack(self.game.players, self.progress, self.config, self.data) | {
            "meter": self.meter.state() if self.meter else None,
            "look": self.look.state(),
            "watch": self.watch.state(),
            "journal_size": self.journal.size,
            "bad_pictures": dict(self.bad_pictures.known),
            "scaler": self.game.scaler.state_dict(),
        }
        saved = self.saves.save(state, more_names, in_background)
        self.flags.exchange(0)  # who waits for the first process's disk says so
        return saved


def open_journal(config: PretrainConfig, start: RunStart, chosen: list[str]) -> Journal:
    """The log in the folder of the run that goes on, or in a new one."""
    rates = Path(f"lr_{config.lr}_memlr{config.memory_lr}") / f"cos_{config.cos}"
    folder = start.folder or new_run_folder(config.log_folder / rates)
    # What was logged after the checkpoint is of steps that will be taken again.
    size = start.kept.get("journal_size") if start.folder else None
    return Journal(folder, asdict(config), start.data, size, recipe=chosen)
