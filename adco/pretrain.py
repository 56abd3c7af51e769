"""A pre-training run: wire, start the bank, epochs, log, save, resume."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch.amp import GradScaler

from adco.data import (
    EpochBatches,
    TrainingLoader,
    TrainingViews,
    check_loader,
    load_splits,
    workers_per_process,
)
from adco.meter import EpochMeter
from adco.model import AdCo
from adco.negatives import NegativeBank
from adco.plan import view_plan
from adco.probe import extract_features, knn_accuracy
from adco.state import Progress, newest_with, pack, unpack_
from adco.step import startup_step, train_step
from adco.views import training_recipes
from adco.watch import Watch
from ops import checkpoint
from ops.device import amp_dtype, compile_, has_fused_sgd, on_device, tune
from ops.distributed import (
    World,
    broadcast_from_first_,
    check_ranks_agree,
    mean_across_ranks_,
    wrap_encoder,
)
from ops.journal import Journal, new_run_folder
from ops.pretrain_options import PretrainConfig
from ops.schedule import set_rate


def run(config: PretrainConfig, world: World, device: torch.device) -> int:
    """Pre-train as configured, as one process of `world`. Returns the exit code."""
    training = Pretraining(config, world, device)
    try:
        training.resume()
        training.open_journal()
        training.start()
        while training.progress.epoch < config.epochs:
            training.train_epoch()
            training.finish_epoch()
        training.journal.say(f"finished: {training.folder}")
    finally:
        training.journal.close()
    return 0


class Pretraining:
    """The parts of a run, and what is done with them."""

    def __init__(self, config: PretrainConfig, world: World, device: torch.device):
        self.config, self.world, self.device = config, world, device
        self.images = config.images_per_process(world.local_size)  # N
        self.num_keys = self.images * world.size  # M
        torch.manual_seed(config.seed)

        recipes = training_recipes(
            config.image_size, config.min_scale, config.blur, config.flip, config.sym,
            config.multi_crop,
            config.size_crops, config.nmb_crops, config.min_scale_crops, config.max_scale_crops,
        )  # fmt: skip
        self.plan = view_plan(bool(config.sym), bool(config.multi_crop), len(recipes))
        self.splits = load_splits(config.dataset, config.data, bool(config.download))
        workers = workers_per_process(config.workers, world)
        self.loader = TrainingLoader(
            TrainingViews(self.splits.train, recipes, config.seed, config.augment),
            EpochBatches(len(self.splits.train), self.images, world, config.seed),
            workers,
            pin_memory=device.type == "cuda",
        )

        tune(device, bool(config.tf32))
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = AdCo(
            config.arch, config.moco_dim, config.moco_m, bool(config.mlp), config.stem,
            config.seed, amp_dtype(config.amp, device), config.bn_splits,
        ).to(device, memory_format=self.layout)  # fmt: skip
        if config.compile:
            compile_(self.model.children(), device)
        shard = config.shards_bank(world.size)
        self.bank = NegativeBank(config.cluster, config.moco_dim, config.seed, shard).to(device)
        self.wrapped = wrap_encoder(self.model, world)
        # Both encoders, as in the published checkpoints; the key encoder has no gradient and stays.
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), config.lr, momentum=config.momentum,
            weight_decay=config.weight_decay, fused=has_fused_sgd(device),
        )  # fmt: skip
        self.scaler = GradScaler(device.type, enabled=self.model.amp is torch.float16)
        self.progress = Progress(epoch=config.start_epoch)
        self.resumed_from: Path | None = None
        self.bank_is_playing = False
        self.folder: Path | None = None
        self.journal = Journal(None)

    # ---- before the first epoch

    def log_folder(self) -> Path:
        return Path(self.config.save_path) / self.config.log_path / self.config.dataset

    def resume(self) -> None:
        """Take up the checkpoint that --resume names, or with auto the newest one of this
        configuration.
        """
        if not self.config.resume:
            return
        if self.config.resume == "auto":
            found = newest_with(self.config, self.log_folder())
            if found is None:
                return
            self.resumed_from, state = found
            self.folder = self.resumed_from.parent  # the same run goes on in the same folder
        else:
            self.resumed_from = Path(self.config.resume)
            state = checkpoint.load(self.resumed_from)
        self.progress, self.bank_is_playing = unpack_(
            state, str(self.resumed_from), self.model, self.bank, self.optimizer, self.config.arch
        )

    def open_journal(self) -> None:
        if not self.world.first:
            return
        config = self.config
        if self.folder is None:
            self.folder = new_run_folder(
                self.log_folder() / f"lr_{config.lr}_memlr{config.memory_lr}" / f"cos_{config.cos}"
            )
        self.journal = Journal(self.folder)
        self.journal.write_config(asdict(config))
        self.journal.say(f"run folder: {self.folder}")
        self.journal.say(
            f"{len(self.splits.train)} pictures, {len(self.loader)} steps of {self.num_keys} an "
            f"epoch, {self.world.size} process(es) on {self.device.type}, {len(self.plan)} term(s)"
        )
        if config.resume:
            self.journal.say(
                f"resumed from {self.resumed_from}, next epoch {self.progress.epoch}"
                if self.resumed_from
                else f"nothing to resume below {self.log_folder()}: starting from the beginning"
            )
        if config.knn_freq and self.splits.val is None:
            self.journal.say(
                "no kNN monitor: it needs labelled pictures in train/CLASS and val/CLASS"
            )

    def start(self) -> None:
        """The score of random weights, then the start-up of the adversaries."""
        weight = sum(term.weight for term in self.plan)
        self.watch = Watch(self.num_keys, weight, patience=max(200, 2 * len(self.loader)))
        if self.resumed_from is None:
            self.progress.knn_random = self.knn_score()
        if not self.bank_is_playing and self.config.ad_init:
            self.start_bank()
        self.settle_ranks()

    def start_bank(self) -> None:
        """Fill the bank with keys, taking an encoder step with each batch of them."""
        config = self.config
        num_steps = max(config.init_steps, -(-config.cluster // self.num_keys))
        set_rate(self.optimizer, config.lr)
        self.model.train()
        self.journal.open_bar(num_steps, "start-up")
        first = step = 0
        while step < num_steps:
            for views in self.batches(-1 - step // len(self.loader)):
                loss, first = startup_step(
                    self.wrapped,
                    self.bank,
                    self.optimizer,
                    views,
                    self.plan[0],
                    first,
                    config.moco_t,
                    accum_steps=config.accum_steps,
                    scaler=self.scaler,
                )
                step += 1
                self.journal.advance()
                if step % config.print_freq == 0 or step == num_steps:
                    value = mean_across_ranks_(loss, self.world).item()
                    self.journal.progress(
                        f"Start-up: [{step}/{num_steps}]\tLoss {value:.4e}", loss=f"{value:.3f}"
                    )
                    self.journal.record("startup", step, {"loss": value})
                if step == num_steps:
                    break
        self.journal.close_bar()
        self.model.copy_query_to_key()

    # ---- epochs

    def train_epoch(self) -> None:
        config, progress = self.config, self.progress
        self.model.train()
        self.journal.open_bar(len(self.loader), f"epoch {progress.epoch}")
        meter = EpochMeter(
            self.journal, self.world, self.device, progress.epoch, len(self.loader), self.num_keys
        )
        for i, views in enumerate(self.batches(progress.epoch)):
            meter.data_is_here()
            set_rate(self.optimizer, config.rate(progress.epoch + i / len(self.loader)))
            result = train_step(
                self.wrapped,
                self.bank,
                self.optimizer,
                views,
                self.plan,
                moco_t=config.moco_t,
                mem_t=config.mem_t,
                memory_lr=config.memory_lr,
                memory_momentum=config.momentum,
                mem_wd=config.mem_wd,
                accum_steps=config.accum_steps,
                scaler=self.scaler,
            )
            progress.step += 1
            self.journal.advance()
            meter.step_is_done(result)
            if i % config.print_freq == 0 or i + 1 == len(self.loader):
                self.log(meter, i)
        self.journal.close_bar()
        meter.log_epoch(progress.step)
        progress.epoch += 1

    def log(self, meter: EpochMeter, i: int) -> None:
        extra = {
            "lr": self.optimizer.param_groups[0]["lr"],
            "bank_norm": mean_across_ranks_(self.bank.W.norm(dim=0).mean(), self.world).item(),
        }
        values = meter.log(i, self.progress.step, extra)
        for warning in self.watch.read(
            self.progress.step, values["loss"], values["mass"], values["spread"]
        ):
            self.journal.warn(warning)

    def batches(self, epoch: int):
        return on_device(self.loader.epoch(epoch), self.device, self.layout)

    def finish_epoch(self) -> None:
        """Score, then save. `progress.epoch` already names the next epoch."""
        self.settle_ranks()
        done = self.progress.epoch
        score = None
        if self.config.knn_freq and (
            done % self.config.knn_freq == 0 or done == self.config.epochs
        ):
            score = self.knn_score()
        best = score is not None and score > self.progress.best_acc
        if best:
            self.progress.best_acc = score
        self.save(best)

    def knn_score(self) -> float | None:
        """kNN accuracy on val in percent; None where there are no labels or --knn_freq is 0."""
        config = self.config
        if self.splits.val is None or not config.knn_freq:
            return None
        workers = workers_per_process(config.workers, self.world)
        train, val = (
            extract_features(
                self.model.encoder_q,
                check_loader(
                    pictures, config.image_size, self.images, workers, self.world, config.augment
                ),
                self.device,
            )
            for pictures in (self.splits.labelled, self.splits.val)
        )
        score = 100 * knn_accuracy(train, val, self.world)
        self.journal.say(f" * kNN {score:.2f} after {self.progress.epoch} epochs")
        self.journal.record(
            "knn", self.progress.step, {"epoch": self.progress.epoch, "accuracy": score}
        )
        return score

    def settle_ranks(self) -> None:
        """Give every process rank 0's BatchNorm statistics, and check that all else is equal."""
        broadcast_from_first_(self.model.buffers(), self.world)
        check_ranks_agree({**self.model.state_dict(), **self.bank.state_dict()}, self.world)

    def save(self, best: bool) -> None:
        # On every process: the columns of a sharded bank come together here.
        state = pack(self.model, self.bank, self.optimizer, self.progress, self.config)
        if not self.world.first:
            return
        done = self.progress.epoch - 1
        names = ["checkpoint_last.pth.tar"]
        if best:
            names.append("checkpoint_best.pth.tar")
        if self.progress.epoch % self.config.save_freq == 0:
            names.append(f"checkpoint_{done:04d}.pth.tar")
        for name in names:
            checkpoint.save(state, self.folder / name)
