"""Linear classifiers on a trunk, frozen or not: the training of `lincls.py --head linear`."""

from copy import deepcopy
from math import isfinite

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adco.data.loader import EpochBatches, batch_loader
from adco.data.pictures import Pictures
from adco.data.views import normalised
from adco.encoder import Encoder, Trunk
from adco.probe.data import ProbeRun, ProbeViews, features_of_share, probe_recipe, scoring_loader
from adco.probe.features import Features, blocks, check_features
from adco.probe.metrics import Accuracy, accuracies, best_index, count_right
from ops.distributed import broadcast_from_first_, sum_across_ranks_
from ops.errors import RunFailed
from ops.journal import Stopwatch
from ops.training import checksum, settle_buckets_, wrap_encoder
from ops.workers import check_shared_memory, workers_per_process


class TrunkWithHeads(nn.Module):
    """A trunk under linear heads that start equal: pictures [n, 3, H, W] to scores [n, C] per head.

    One dropout mask serves all heads. A frozen trunk stays in eval mode and gets no gradient.
    """

    def __init__(self, encoder: Encoder, num_classes: int, num_heads: int, dropout, frozen: bool):
        super().__init__()
        self.trunk = Trunk(encoder).requires_grad_(not frozen)
        self.frozen, self.dropout = frozen, nn.Dropout(dropout)
        # Equal starts and one dropout mask: heads differ by their learning rate alone.
        head = nn.utils.skip_init(nn.Linear, encoder.inplanes, num_classes)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(deepcopy(head) for _ in range(num_heads))

    def train(self, mode: bool = True):
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self

    def forward(self, pictures: Tensor) -> list[Tensor]:
        features = self.dropout(self.trunk(pictures))
        return [head(features) for head in self.heads]


class HeadTraining:
    """A run with linear heads: its model and optimizer, one epoch, the scores, the best epoch."""

    def __init__(self, run: ProbeRun):
        self.run, self.config, self.encoder, self.sets = run, run.config, run.encoder, run.sets
        self.world, self.device, self.journal = run.world, run.device, run.journal
        self.frozen = self.config.trainable == "fc"
        self.lrs = self.config.rates()  # one per head
        torch.manual_seed(self.config.seed)
        num_classes, dropout = len(self.sets.train.classes), self.config.dropout
        model = TrunkWithHeads(self.encoder, num_classes, len(self.lrs), dropout, self.frozen)
        self.model = model.to(self.device)
        self.trained = self.model.heads if self.frozen else self.model
        self.trunk_before = self.trunk_checksums()
        self.optimizer = self.build_optimizer()
        self.epoch = self.config.start_epoch  # the next one
        # Of each head its best score so far and the epoch, from 0; the best head, and the weights
        # at its epoch.
        self.peaks: list[tuple[Accuracy, int]] = [(Accuracy(-1, -1, 0), -1)] * len(self.lrs)
        self.best, self.best_weights = 0, {}
        self.cached: dict[str, Features] = {}  # of a frozen trunk, by the name of the pictures

    # ---- the trunk and the heads as one network

    def build_optimizer(self) -> torch.optim.SGD:
        """SGD with a parameter group per head, and one for a trunk that moves."""
        config, parts = self.config, [*zip(self.model.heads, self.lrs, strict=True)]
        if not self.frozen:
            parts.append((self.model.trunk, config.trunk_lr))
        # initial_lr: what torch's schedules begin with, which other programs go on with.
        groups = [{"params": x.parameters(), "lr": lr, "initial_lr": lr} for x, lr in parts]
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)

    def trunk_weights(self) -> dict[str, Tensor]:
        """The trunk, BatchNorm statistics included, under the names of build_trunk."""
        return {n: t for n, t in self.encoder.state_dict().items() if n.split(".")[0] != "fc"}

    def trunk_checksums(self) -> dict[str, int]:
        return {name: checksum(value) for name, value in self.trunk_weights().items()}

    def check_trunk_is_unmoved(self) -> None:
        """Raise RuntimeError where a frozen trunk has changed, were it by a bit."""
        after = self.trunk_checksums()
        moved = [name for name, before in self.trunk_before.items() if after[name] != before]
        if self.frozen and moved:
            raise RuntimeError(f"the frozen trunk moved: {', '.join(moved)} changed in training")

    # ---- training

    def start_training(self) -> None:
        """Build the loader of the training views, and wrap the model for all processes."""
        config = self.config
        train, recipe = self.sets.train, probe_recipe(config)
        views = ProbeViews(train, recipe, bool(config.randcrop), config.seed)
        least = 1 if self.frozen else 2  # BatchNorm in train mode needs two pictures
        M = config.global_batch_size
        self.batches = EpochBatches(len(views), M, self.world, config.seed, least)
        workers = workers_per_process(config.workers, self.world.local_size)
        size = train.channels * config.image_size**2 * self.batches.sizes[0] // self.world.size
        check_shared_memory(size, workers, self.world.local_size)
        self.loader = batch_loader(views, self.batches, workers, self.device.type == "cuda")
        self.wrapped = wrap_encoder(self.model, self.world)
        blank = torch.zeros(2, train.channels, *2 * [config.image_size], device=self.device)
        settle_buckets_(self.wrapped, blank)

    def rates(self, epoch: float) -> list[float]:
        """Learning rate of each parameter group."""
        rates = [self.config.rate(epoch, lr) for lr in self.lrs]
        # A trunk has one head, and its rate falls in the same proportion.
        return rates if self.frozen else [*rates, rates[0] / self.lrs[0] * self.config.trunk_lr]

    def train_epoch(self) -> None:
        """One pass over the training pictures, in views of their own for each epoch."""
        config, num_steps = self.config, len(self.batches)
        # A generator per epoch makes dropout the same after --resume.
        rng = np.random.default_rng((config.seed, self.epoch, self.world.rank))
        torch.manual_seed(int(rng.integers(2**63)))
        self.model.train()
        self.batches.epoch = self.epoch

        # Sums since the last log line stay on the device: no step waits for them.
        self.journal.open_bar(num_steps, f"epoch {self.epoch}")
        losses, sums = torch.zeros(len(self.lrs), device=self.device), np.zeros(len(self.lrs))
        counts = torch.zeros(len(self.lrs), 3, dtype=torch.long, device=self.device)
        stopwatch, seconds = Stopwatch(), 0.0
        for i, (pictures, labels) in enumerate(self.loader):
            # The rates of this step; those of --sgdr move within an epoch.
            rates = self.rates(self.epoch + i / num_steps)
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

            # All heads take a step on the same features.
            labels = labels.to(self.device, non_blocking=True)
            pictures = normalised(pictures.to(self.device, non_blocking=True))
            scores = self.wrapped(pictures)
            losses += self.step(scores, labels, self.batches.sizes[i])
            counts += torch.stack([count_right(of_head.detach(), labels) for of_head in scores])

            # The log is a collective: every process comes here at the same steps.
            seconds += stopwatch.lap()
            self.journal.bar.update()
            if i % config.print_freq == 0 or i + 1 == num_steps:
                self.check_losses(losses, pictures)
                # Over the epoch in float64, which not every device can add in.
                sums += sum_across_ranks_(losses, self.world).tolist()
                losses.zero_()
                self.log(i, num_steps, seconds / (i + 1), rates, sums, counts)
        self.journal.bar.close()
        self.epoch += 1

    def step(self, scores: list[Tensor], labels: Tensor, total: int) -> Tensor:
        """One step of SGD on the mean over the global batch. Returns summed losses [heads].

        scores: [n, C] per head. total: pictures in the global batch.
        """
        losses = torch.stack([F.cross_entropy(s, labels, reduction="sum") for s in scores])
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages gradients over processes; the loss is a mean over the pictures of them all.
        # In a sum over heads each head has its own gradient, as if it were alone.
        (losses.sum() * (self.world.size / total)).backward()
        self.optimizer.step()
        return losses.detach()

    def check_losses(self, losses: Tensor, pictures: Tensor) -> None:
        """Raise RunFailed where a head is not finite, InputError where a frozen trunk is why."""
        weights = torch.stack([head.weight.sum() for head in self.model.heads])
        sums = sum_across_ranks_(losses + weights, self.world).tolist()
        bad = [lr for lr, total in zip(self.lrs, sums, strict=True) if not isfinite(total)]
        if bad and self.frozen:
            check_features(self.model.trunk(pictures))
        if bad:
            fault = f"the loss or the head is not finite in epoch {self.epoch} at lr {bad[0]:g}"
            raise RunFailed(f"{fault}; lower the learning rate, or leave it out of --lr_sweep")

    def log(self, i, num_steps, step_seconds, rates, sums: np.ndarray, counts: Tensor) -> None:
        """Record the epoch so far, over all processes. The line shows the best head."""
        accuracy = accuracies(counts, self.world)
        means = [loss / found.total for loss, found in zip(sums.tolist(), accuracy, strict=True)]
        head = best_index(accuracy)
        best, loss = accuracy[head], means[head]
        where = f"Epoch: [{self.epoch}][{i:{len(str(num_steps))}d}/{num_steps}]"
        spent = f"Time {step_seconds:6.3f}\tlr {rates[head]:.6g}"
        found = f"Loss {loss:.4e}\tAcc@1 {best.acc1:6.2f}\tAcc@5 {best.acc5:6.2f}"
        shown = {"loss": f"{loss:.3f}", "acc1": f"{best.acc1:.1f}"}
        self.journal.progress(f"{where}\t{spent}\t{found}", **shown)

        # The record has the numbers of every head, told apart by their learning rates.
        values = {"epoch": self.epoch, "seconds_per_step": step_seconds}
        # The rate of a trunk that moves is the last.
        for lr, rate, mean, found in zip(self.lrs, rates, means, accuracy, strict=False):
            name = f"_{lr:g}" if len(self.lrs) > 1 else ""
            values |= {f"lr{name}": rate, f"loss{name}": mean, f"acc1{name}": found.acc1}
        self.journal.record("probe", self.epoch * num_steps + i, values)

    # ---- scoring

    def score(self, pictures: Pictures, name: str) -> list[Accuracy]:
        """Accuracy of each head on test views of all pictures, each counted once.

        name: under which the features of a frozen trunk are kept for the next call.
        """
        # In training each process has had BatchNorm statistics of its own.
        if not self.frozen:
            broadcast_from_first_(self.model.buffers(), self.world)
        self.model.eval()
        # Counts of each head's right labels, then their sum over processes.
        counts = torch.zeros(len(self.lrs), 3, dtype=torch.long, device=self.device)
        with torch.no_grad():
            for features, labels in self.feature_batches(pictures, name):
                counts += torch.stack([count_right(h(features), labels) for h in self.model.heads])
        return accuracies(counts, self.world)

    def feature_batches(self, pictures: Pictures, name: str):
        """(features, labels) of this process's share. Those of a frozen trunk are computed once."""
        if name not in self.cached:
            if not self.frozen:
                trunk, device = self.model.trunk, self.device
                loader = scoring_loader(pictures, self.config, self.world)
                return ((trunk(normalised(x.to(device))), y.to(device)) for x, y in loader)
            self.cached[name] = features_of_share(self.run, pictures, unit=False)
        return blocks(self.cached[name])

    def keep_if_best(self, found: list[Accuracy]) -> bool:
        """Whether a head beats every epoch before; its weights are then kept.

        Notes each head's own best epoch too. found: the accuracy of each head.
        """
        # self.epoch is the next one already. Of equal scores the first stays.
        done = self.epoch - 1
        self.peaks = [
            (new, done) if new.right1 > old.right1 else (old, epoch)
            for new, (old, epoch) in zip(found, self.peaks, strict=True)
        ]
        order = [(peak.right1, -epoch) for peak, epoch in self.peaks]
        self.best = order.index(max(order))
        if self.peaks[self.best][1] < done:
            return False
        self.best_weights = {n: x.clone() for n, x in self.trained.state_dict().items()}
        return True
