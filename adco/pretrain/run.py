"""A pre-training run, phase by phase: begin, fill the bank, epochs, scores, end."""

from collections.abc import Iterator
from itertools import chain, count

import numpy as np
import torch
from torchvision.utils import make_grid

from adco.pretrain.dry_run import dry_run
from adco.pretrain.game import Game
from adco.pretrain.init import with_init_hash
from adco.pretrain.meter import TRIED, EpochMeter, epoch_line, forecast, in_hours
from adco.pretrain.monitor import SCORES, score_trunk
from adco.pretrain.options import WITHOUT_BANK, PretrainConfig
from adco.pretrain.resume import start_or_resume_
from adco.pretrain.upkeep import Stopped, Upkeep
from ops.checkpoint import BEST, numbered
from ops.distributed import Flags, World, mean_across_ranks_
from ops.errors import EXIT_STOPPED, InputError, RunFailed
from ops.journal import Stopwatch
from ops.schedule import set_rate
from ops.signals import StopRequest, WaitInterrupted
from ops.workers import end_workers


def run(config: PretrainConfig, world: World, device: torch.device) -> int:
    """Pre-train as configured, as one process of `world`. Returns the exit code."""
    config = with_init_hash(config.with_global_batch(world.size, world.local_size))
    # Check and time, but leave nothing behind.
    if config.dry_run:
        return dry_run(config, world, device)
    with StopRequest() as stop:
        try:
            with stop.waiting():
                training = Pretraining(config, world, device, stop)
        except WaitInterrupted:
            stop.end()  # nothing is lost yet
        try:
            training.start()
            while training.progress.epoch < config.epochs:
                training.train_epoch()
                training.finish_epoch()
            training.finish()
        except Stopped:
            return EXIT_STOPPED
        except (InputError, RunFailed):
            raise
        except Exception:
            training.upkeep.rescue()
            raise
        finally:
            training.upkeep.saves.wait()
            training.upkeep.reports.end()
            training.journal.close()
            end_workers()
    return 0


class Pretraining:
    """The phases of a run. The step is in adco/step.py; what happens between steps in Upkeep."""

    def __init__(self, config: PretrainConfig, world: World, device, stop: StopRequest):
        self.game = Game(config, world, device)
        self.config, self.world = self.game.config, world

        # From nothing, or from a checkpoint.
        flags = Flags(world)
        start = start_or_resume_(self.game, flags)
        self.progress, self.is_resumed = start.progress, start.source is not None
        self.meter_state = start.kept.get("meter")  # of an interrupted epoch

        self.upkeep = Upkeep(self.game, flags, start, stop)
        self.journal = self.upkeep.journal
        self.last_epoch: dict = {}  # its record, for what the next one changes
        self.has_shown_views = self.has_forecast = False
        self.save_seconds = 0.0

    # ---- before the first epoch

    def start(self) -> None:
        """The score of what the run begins with, then the start-up of the adversaries."""
        # Every process has to begin with the same weights.
        self.upkeep.sync_and_check_ranks()
        if not self.is_resumed and self.config.knn_freq:
            self.score()
        if not self.progress.playing and self.config.has_startup:
            self.fill_bank()
        self.progress.playing = True

    def fill_bank(self) -> None:
        """The start-up (--ad_init): an encoder step with each batch, whose keys fill the bank."""
        # As many steps as fill the K columns with M keys each, or --init_steps.
        game, progress = self.game, self.progress
        num_steps = self.config.startup_steps(game.num_keys)
        set_rate(game.optimizer, self.config.lr)
        game.model.train()
        # One pass over the pictures after the other.
        number, first = divmod(progress.startup_step, len(game.loader))
        passes = (game.batches(-1 - n, first * (n == number)) for n in count(number))
        batches = chain.from_iterable(passes)
        for views in self.steps("start-up", batches, progress.startup_step, num_steps):
            with self.upkeep.undivided():
                loss, dropped = game.start_up(views, progress.startup_step)
                self.upkeep.streak.count_(dropped)
                progress.startup_step += 1
            self.log_startup(loss, progress.startup_step, num_steps)
        # theta_k <- theta_q: both players begin the epochs with one encoder.
        game.model.copy_query_to_key()

    def steps(self, title: str, batches: Iterator, done: int, total: int) -> Iterator:
        """The batches of the steps from `done` to `total`, with a bar. After the first steps of the
        run: what a step costs, and when the run is going to end.
        """
        clock, first = Stopwatch(), done + 1
        self.journal.open_bar(total, title, done)
        for views in self.upkeep.arriving(batches, total - done):
            if self.world.first and not self.has_shown_views:
                self.journal.picture("views", some_of(views))
                self.has_shown_views = True
            yield views
            done += 1
            self.journal.bar.update()
            # Waits for the device, twice in a run. The first step is slower: kernels are chosen.
            if not self.has_forecast and done in (first, first + TRIED):
                self.upkeep.streak.longest.item()
                seconds = clock.lap() / TRIED
                self.has_forecast = done > first
                if self.has_forecast:
                    epochs = self.config.epochs - self.progress.epoch - self.progress.playing
                    left, later = total - done, epochs * len(self.game.loader)
                    self.journal.say(forecast(seconds, left, left + later))
        self.journal.bar.close()

    def log_startup(self, loss: torch.Tensor, step: int, num_steps: int) -> None:
        if step % self.config.print_freq and step < num_steps:
            return
        value = mean_across_ranks_(loss, self.world).item()
        self.journal.progress(
            f"Start-up: [{step}/{num_steps}]\tLoss {value:.4e}", loss=f"{value:.3f}"
        )
        self.journal.record("startup", step, {"loss": value})
        self.upkeep.stop_if_diverged()

    # ---- epochs

    def train_epoch(self) -> None:
        config, game, progress, upkeep = self.config, self.game, self.progress, self.upkeep
        num_steps = len(game.loader)
        game.model.train()
        title = f"epoch {progress.epoch + 1}/{config.epochs}"
        # An interrupted epoch goes on with its sums.
        meter = EpochMeter(game.device, self.world, self.meter_state)
        upkeep.meter = meter
        batches = game.batches(progress.epoch, progress.epoch_step)
        for views in self.steps(title, batches, progress.epoch_step, num_steps):
            i = progress.epoch_step
            # One step of both players.
            rate = config.rate(progress.epoch + i / num_steps, progress.after_warmup)
            set_rate(game.optimizer, rate)
            with upkeep.undivided():
                done = (progress.epoch + i / num_steps) / config.epochs
                result = game.play(views, progress.step, done)
                meter.step_is_done(result)
                upkeep.streak.count_(result.dropped)
                progress.step += 1
                progress.epoch_step += 1

            # Nothing here waits for the device but log().
            if i % config.print_freq == 0 or i + 1 == num_steps:
                self.log(i, num_steps)

    def log(self, i: int, num_steps: int) -> None:
        """One line and one record of step i. Waits for the device."""
        game, progress = self.game, self.progress
        line, shown, values = self.upkeep.meter.read(game.num_keys)
        seconds = self.upkeep.meter.seconds / self.upkeep.meter.steps
        left = (self.config.epochs - progress.epoch) * num_steps - i - 1
        shown["run"] = in_hours(seconds * left)
        self.journal.progress(
            f"Epoch: [{progress.epoch}][{i:{len(str(num_steps))}d}/{num_steps}]\t{line}", **shown
        )
        values |= {
            "epoch": progress.epoch,
            "lr": game.optimizer.param_groups[0]["lr"],
            "bank_norm": mean_across_ranks_(game.bank.W.norm(dim=0).mean(), self.world).item(),
            "bad_pictures": len(self.upkeep.bad_pictures.known),
        }
        if self.config.negatives in WITHOUT_BANK:
            del values["idle"], values["bank_norm"]
        self.journal.record("train", progress.step, values)
        self.upkeep.check_health(values)

    def finish_epoch(self) -> None:
        """Log, score, save."""
        config, progress, upkeep = self.config, self.progress, self.upkeep
        done = progress.epoch + 1
        upkeep.between_steps()
        upkeep.sync_and_check_ranks()
        scored = bool(config.knn_freq) and (done % config.knn_freq == 0 or done == config.epochs)
        # On a large data set the score takes a while.
        if scored and upkeep.agree(None, save=upkeep.saves.age() > 1).save:
            upkeep.save(in_background=True)
        # An error in between leaves the state from before: the run that goes on scores again.
        with upkeep.undivided():
            # The epoch is over: log it, and count from the next one on.
            epoch = {"epoch": progress.epoch, **upkeep.meter.summary()}
            upkeep.stop_if_diverged(whole_epoch=epoch["dropped"] == upkeep.meter.steps)
            self.journal.record("epoch", progress.step, epoch)
            upkeep.meter = self.meter_state = None
            progress.epoch, progress.epoch_step = done, 0

            clock, waited = Stopwatch(), epoch["data_seconds"]
            # The checkpoint is also kept as the best one, and as a numbered one now and then.
            score = self.score() if scored else None
            steps = epoch["seconds"] - waited
            times = {"pictures": waited, "steps": steps, "score": clock.lap()}
            times["saving"] = self.save_seconds  # the save before: this one is to hold the record
            self.journal.record("time", progress.step, {"epoch": done, **times})
            names, best_before = [], progress.best_acc
            if score is not None and score > progress.best_acc:
                progress.best_acc = score
                names.append(BEST)
            if done % config.save_freq == 0:
                names.append(numbered(done - 1))
            if not upkeep.save(tuple(names), in_background=not names):
                progress.best_acc = best_before  # it is not on disk
            self.save_seconds = clock.lap()
            self.tell_epoch(epoch, score, times)
        upkeep.reports.draw(done)
        # A stop may have come while the epoch was saved.
        if done < config.epochs:
            upkeep.end_if_asked(upkeep.agree(None), None)

    def tell_epoch(self, epoch: dict, score: float | None, times: dict[str, float]) -> None:
        """One line of what it changed. times: seconds that it took, by what for."""
        done, num_epochs = self.progress.epoch, self.config.epochs
        title = SCORES[self.game.monitor][1] if score is not None else "score"
        epoch = {**epoch, title: score, "left": (num_epochs - done) * sum(times.values())}
        num_pictures = len(self.game.splits.train)
        self.journal.say(epoch_line(epoch, self.last_epoch, title, num_epochs, num_pictures))
        self.last_epoch = epoch

    def score(self) -> float | None:
        """kNN accuracy of the trunk in percent, or its effective rank; None: no score is taken."""
        kind = self.game.monitor
        score = score_trunk(self.game, self.upkeep.scoring)
        if score is not None:
            (name, title, unit), epoch = SCORES[kind], self.progress.epoch
            self.journal.say(f" * {title} {score:.2f}{unit} after {epoch} epochs")
            self.journal.record(kind, self.progress.step, {"epoch": epoch, name: score})
        self.upkeep.take_a_look()
        return score

    def finish(self) -> None:
        flags, error = self.upkeep.flags, self.upkeep.saves.check()
        if flags.exchange(error is not None)[0]:
            flags.raise_first(error)
        self.journal.say(f"finished: {self.journal.folder}")
        try:
            with self.upkeep.stop.waiting():
                self.upkeep.reports.draw_last()
        except WaitInterrupted:
            if self.config.report_epochs:
                how = f"python3 -m adco.report {self.journal.folder}"
                self.journal.say(f"stopped before the page was drawn: {how}")
        flags.exchange(0)  # who waits for the first process's page says so


def some_of(views: list[torch.Tensor]) -> np.ndarray:
    """What the encoder sees of the first pictures of a batch, in a row for each full-size view."""
    rows = torch.cat([view[:8, :3].float().cpu() for view in views if view.shape == views[0].shape])
    rows = rows if rows.shape[1] == 3 else rows[:, :1]
    return (255 * make_grid(rows, nrow=8, normalize=True)).byte().permute(1, 2, 0).numpy()
