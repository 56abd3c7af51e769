"""A pre-training run: start the bank, epochs, log, save, resume, stop."""

from dataclasses import asdict

import torch

from adco.pretrain.bad_pictures import BadPictures
from adco.pretrain.dry_run import rehearse
from adco.pretrain.game import build, describe, play_round
from adco.pretrain.health import Streak, Watch
from adco.pretrain.knn_monitor import knn_score
from adco.pretrain.meter import EpochMeter
from adco.pretrain.options import PretrainConfig
from adco.pretrain.resume import Beginning, begin_, log_folder
from adco.pretrain.saving import Checkpoints
from adco.pretrain.state import pack
from adco.step import startup_step
from ops.device import on_device
from ops.distributed import (
    AsyncFlags,
    World,
    broadcast_from_first_,
    check_ranks_agree,
    mean_across_ranks_,
)
from ops.errors import EXIT_STOPPED, InputError, RunFailed
from ops.journal import Journal, new_run_folder
from ops.schedule import set_rate
from ops.signals import StopRequest

CHECK_STEPS = 1000  # between two checks that all processes hold the same numbers


def run(config: PretrainConfig, world: World, device: torch.device) -> int:
    """Pre-train as configured, as one process of `world`. Returns the exit code."""
    if config.dry_run:
        return rehearse(config, world, device)
    with StopRequest() as stop:
        training = Pretraining(config, world, device, stop)
        try:
            training.start()
            while training.progress.epoch < config.epochs:
                training.train_epoch()
                training.finish_epoch()
            training.finish()
        except Stopped:
            return EXIT_STOPPED
        finally:
            training.journal.close()
    return 0


class Stopped(Exception):
    """The run was asked to stop, and has saved."""


class Pretraining:
    """A run: its parts, where it stands, and what is done with them."""

    def __init__(
        self, config: PretrainConfig, world: World, device: torch.device, stop: StopRequest
    ):
        self.config, self.world, self.device, self.stop = config, world, device, stop
        self.parts = parts = build(config, world, device)
        self.plan, self.splits, self.loader = parts.plan, parts.splits, parts.loader
        self.model, self.wrapped = parts.model, parts.wrapped
        self.bank, self.optimizer, self.scaler = parts.bank, parts.optimizer, parts.scaler
        self.layout = parts.layout
        self.num_keys = self.loader.batches.global_size  # M

        self.flags = AsyncFlags(world)
        beginning = begin_(parts, config, self.flags)
        self.progress, kept = beginning.progress, beginning.kept
        self.goes_on = beginning.source is not None
        if "scaler" in kept:
            self.scaler.load_state_dict(kept["scaler"])
        weight = sum(term.weight for term in self.plan)
        patience = max(200, 2 * len(self.loader))
        self.watch = Watch(self.num_keys, weight, patience, kept.get("watch"))
        known = kept.get("bad_pictures", {})
        self.bad_pictures = BadPictures(config.bad_images_max, len(self.splits.train), known)
        self.meter: EpochMeter | None = None  # inside an epoch
        self.meter_state = kept.get("meter")  # of an interrupted epoch
        self.streak = Streak(device)
        self.journal = Journal(None)
        self.saves: Checkpoints | None = None  # on the first process
        self.open_journal(beginning)

    # ---- before the first step

    def open_journal(self, beginning: Beginning) -> None:
        if not self.world.first:
            return
        config = self.config
        folder = beginning.folder or new_run_folder(
            log_folder(config) / f"lr_{config.lr}_memlr{config.memory_lr}" / f"cos_{config.cos}"
        )
        size = beginning.kept.get("journal_size") if beginning.folder else None
        self.journal = Journal(folder, size)
        self.saves = Checkpoints(folder, config.save_minutes, self.journal, beginning.source)
        self.journal.write_config(asdict(config))
        self.journal.say(f"run folder: {folder}")
        self.journal.say(describe(self.parts, config, self.world, self.device))
        for sentence in beginning.warnings:
            self.journal.warn(sentence)
        if beginning.note:
            self.journal.say(beginning.note)

    def start(self) -> None:
        """The score of random weights, then the start-up of the adversaries."""
        self.settle_ranks()
        if not self.goes_on:
            self.knn_score()
        if not self.progress.playing and self.config.ad_init:
            self.start_bank()
        self.progress.playing = True

    def start_bank(self) -> None:
        """Fill the bank with keys, taking an encoder step with each batch of them."""
        config, progress = self.config, self.progress
        num_steps = config.startup_steps(self.num_keys)
        set_rate(self.optimizer, config.lr)
        self.model.train()
        self.journal.open_bar(num_steps, "start-up")
        while progress.startup_step < num_steps:
            a_pass, first = divmod(progress.startup_step, len(self.loader))
            for views in self.batches(-1 - a_pass, first):
                loss, dropped = startup_step(
                    self.wrapped,
                    self.bank,
                    self.optimizer,
                    views,
                    self.plan[0],
                    first_column=progress.startup_step * self.num_keys % config.cluster,
                    moco_t=config.moco_t,
                    accum_steps=config.accum_steps,
                    scaler=self.scaler,
                )
                self.streak.count_(dropped)
                progress.startup_step = step = progress.startup_step + 1
                self.journal.advance()
                if step % config.print_freq == 0 or step == num_steps:
                    value = mean_across_ranks_(loss, self.world).item()
                    self.journal.progress(
                        f"Start-up: [{step}/{num_steps}]\tLoss {value:.4e}", loss=f"{value:.3f}"
                    )
                    self.journal.record("startup", step, {"loss": value})
                    self.stop_if_diverged()
                if step == num_steps:
                    break
                self.between_steps()
        self.journal.close_bar()
        self.model.copy_query_to_key()

    # ---- epochs

    def train_epoch(self) -> None:
        config, progress = self.config, self.progress
        self.model.train()
        num_steps = len(self.loader)
        self.journal.open_bar(num_steps, f"epoch {progress.epoch}", progress.epoch_step)
        self.meter = EpochMeter(
            self.journal, self.world, self.device, progress.epoch, num_steps, self.num_keys,
            self.meter_state,
        )  # fmt: skip
        for views in self.batches(progress.epoch, progress.epoch_step):
            i = progress.epoch_step
            self.meter.data_is_here()
            set_rate(self.optimizer, config.rate(progress.epoch + i / num_steps))
            result = play_round(self.parts, views, config)
            progress.step += 1
            progress.epoch_step += 1
            self.journal.advance()
            self.meter.step_is_done(result)
            self.streak.count_(result.dropped)
            if i % config.print_freq == 0 or i + 1 == num_steps:
                self.log(i)
            self.between_steps()
        self.journal.close_bar()

    def log(self, i: int) -> None:
        extra = {
            "lr": self.optimizer.param_groups[0]["lr"],
            "bank_norm": mean_across_ranks_(self.bank.W.norm(dim=0).mean(), self.world).item(),
            "bad_pictures": self.bad_pictures.count,
        }
        values = self.meter.log(i, self.progress.step, extra)
        self.stop_if_diverged()
        for warning in self.watch.read(
            self.progress.step, values["loss"], values["mass"], values["spread"]
        ):
            self.journal.warn(warning)

    def batches(self, epoch: int, first: int):
        return on_device(self.loader.epoch(epoch, first), self.device, self.layout)

    def finish_epoch(self) -> None:
        """Log, score, save."""
        config, progress = self.config, self.progress
        done = progress.epoch + 1
        self.settle_ranks()
        scored = bool(config.knn_freq) and (done % config.knn_freq == 0 or done == config.epochs)
        if scored and self.flags.any_process(self.world.first and self.saves.age() > 1):
            self.save()  # on a large data set the score takes a while
        self.meter.log_epoch(progress.step)
        self.meter = self.meter_state = None
        progress.epoch, progress.epoch_step = done, 0
        score = self.knn_score() if scored else None
        names, best_before = [], progress.best_acc
        if score is not None and score > progress.best_acc:
            progress.best_acc = score
            names.append("checkpoint_best.pth.tar")
        if done % config.save_freq == 0:
            names.append(f"checkpoint_{done - 1:04d}.pth.tar")
        if not self.save(tuple(names)):
            progress.best_acc = best_before  # the best is what is on disk
        if done < config.epochs and self.flags.any_process(self.stop.received is not None):
            self.leave()

    def knn_score(self) -> float | None:
        score = knn_score(
            self.config, self.model, self.splits, self.world, self.device, self.between_batches
        )
        if score is not None:
            values = {"epoch": self.progress.epoch, "accuracy": score}
            self.journal.say(f" * kNN {score:.2f} after {self.progress.epoch} epochs")
            self.journal.record("knn", self.progress.step, values)
        return score

    def finish(self) -> None:
        if self.saves:
            self.saves.check()
        self.journal.say(f"finished: {self.journal.folder}")

    # ---- between two steps

    def between_steps(self) -> None:
        """Whatever is due: broken pictures, a check that the processes agree, a save, a stop."""
        steps = self.progress.startup_step + self.progress.step
        asked, time_is_up = self.stop.received is not None, self.world.first and self.saves.due()
        stop, save, news = self.flags.exchange(asked, time_is_up, len(self.loader.news))
        if news:
            self.note_bad_pictures()
            self.stop_if_too_many_are_broken()
        if save or stop or steps % CHECK_STEPS == 0:
            self.settle_ranks()
        if save or stop:
            self.save()
        if stop:
            self.leave()

    def between_batches(self) -> None:
        """While features are scored: a stop, without a save, for the score is taken again."""
        if self.flags.exchange(self.stop.received is not None, 0, 0)[0]:
            self.leave()

    def note_bad_pictures(self) -> None:
        """Name and count what the processes have met."""
        for news in self.flags.gather(self.loader.take_news()):
            for sentence in self.bad_pictures.add(news):
                self.journal.warn(sentence)

    def stop_if_too_many_are_broken(self) -> None:
        complaint = self.bad_pictures.complaint(self.journal.folder) if self.world.first else ""
        if complaint := self.flags.gather(complaint)[0]:
            self.save()
            self.flags.gather(None)  # nobody ends before it is written
            raise InputError(complaint)

    def stop_if_diverged(self) -> None:
        """The first process knows what is saved; all end with its sentence."""
        last = self.saves.last if self.saves else None
        if complaint := self.streak.complaint(self.progress.where(), last):
            raise RunFailed(self.flags.gather(complaint)[0])

    def leave(self) -> None:
        saved = "" if not (self.saves and self.saves.failed) else ", BUT NOT SAVED"
        where = self.progress.where()
        self.journal.say(f"stopped by {self.stop.name} {where}{saved}: go on with --resume auto")
        raise Stopped

    def settle_ranks(self) -> None:
        """Give every process rank 0's BatchNorm statistics, and check that all else is equal."""
        broadcast_from_first_(self.model.buffers(), self.world)
        check_ranks_agree(self.model.state_dict(), self.world)

    def save(self, more_names: tuple[str, ...] = ()) -> bool:
        """Save everything; whether it is on disk, which the first process knows."""
        # On every process: news, sums and the columns of a sharded bank come together here.
        self.note_bad_pictures()
        state = pack(self.model, self.bank, self.optimizer, self.progress, self.config)
        meter = self.meter.state() if self.meter else None
        if not self.world.first:
            return True
        state |= {
            "meter": meter,
            "watch": self.watch.state(),
            "journal_size": self.journal.size,
            "bad_pictures": dict(self.bad_pictures.known),
            "scaler": self.scaler.state_dict(),
        }
        return self.saves.save(state, more_names)
