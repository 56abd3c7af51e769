"""The game that a pre-training run plays: pictures, encoders, adversaries, and how they meet.

Made from the configuration once. The method, which is called from here, gets plain values.
"""

from collections.abc import Iterator
from functools import partial
from math import ceil

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD, AdamW, Optimizer

from adco.data.datasets import Splits, hold_out, introduction
from adco.data.list_files import listed_splits
from adco.data.loader import EpochBatches, TrainingLoader, TrainingViews
from adco.data.pictures import Pictures
from adco.data.shards import TarPictures
from adco.data.views import Recipe, normalised
from adco.encoder import check_sides
from adco.model import AdCo
from adco.negatives import NegativeBank
from adco.objective import Denominator
from adco.plan import query_views, view_plan
from adco.pretrain.init import begin_with_, read_init
from adco.pretrain.options import WITHOUT_BANK, PretrainConfig
from adco.pretrain.recipe import takes_scores, with_recipe
from adco.step import Round, simclr_step, startup_step, train_step
from ops.device import amp_dtype, compile_, on_device, tune
from ops.distributed import World
from ops.errors import InputError, optional
from ops.training import settle_buckets_, wrap_encoder
from ops.workers import check_shared_memory, workers_per_process

ANGLE = 0.005  # radians that the adversaries turn in a step with --memory_lr auto, on average
UNUSED = 1024  # columns of a bank that does not count: so many processes may share it


class Game:
    """Both players, and the pictures they play with.

    Everything is on its device, with random weights that depend on the seed alone; with --init,
    the trunks have those of the file. config: the options, with what the recipe has chosen, which
    chosen tells. beginning: what was taken of the file, in sentences.
    monitor: which score is taken, knn, rank or none. held_out: whether val is a part of train.
    """

    def __init__(self, config: PretrainConfig, world: World, device: torch.device):
        config, found, self.chosen = with_recipe(config, world)
        unused = config.negatives in WITHOUT_BANK
        if config.cluster < world.size and not unused:
            raise InputError(
                f"cluster={config.cluster}: expected {world.size}, one a process, or more"
            )
        self.config, self.world = config, world
        torch.manual_seed(config.seed)
        tune(device, bool(config.tf32))
        recipes = training_recipes(config)

        # The encoders, and the layout of their filters and of the views. They come before the
        # pictures, where the recipe did not need these: a model may take no views of these sizes.
        self.device = device
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        precision = amp_dtype(config.amp, device)
        self.model = AdCo(
            config.arch, config.moco_dim, config.moco_m, config.mlp, config.stem, config.seed,
            precision, config.channels, config.mlp_width, bool(config.mlp_bn),
        )  # fmt: skip
        sides = {recipe.size for recipe in recipes}
        check_sides(self.model.encoder_q, config.channels, sides)
        self.model.to(device, memory_format=self.layout)
        init = read_init(config)
        self.beginning = begin_with_(self.model, init) if init else []
        if config.compile:
            compile_(self.model.children(), device)
        self.wrapped = wrap_encoder(self.model, world)  # in DDP, where there are several processes
        self.optimizer = build_optimizer(config, self.model)
        self.scaler = GradScaler(device.type, enabled=precision is torch.float16)

        # Pictures, and which of their views are queries and keys.
        found = found or listed_splits(config, world)
        self.splits, self.monitor = scored_by(config, found)
        self.held_out = self.splits is not found
        self.plan = view_plan(bool(config.sym), bool(config.multi_crop), len(recipes))
        self.loader = build_loader(config, self.splits.train, recipes, world, device)
        sides = [recipes[i].size for i in query_views(self.plan)]
        settle_buckets_(self.wrapped, [self.as_input(self.blank_view(side)) for side in sides])

        # The adversaries.
        columns = UNUSED if unused else config.cluster
        self.bank = NegativeBank(columns, config.moco_dim, config.seed).to(device)
        self.players = (self.model, self.bank, self.optimizer)
        self.plays = False  # whether the adversaries have begun to play

    @property
    def num_steps(self) -> int:
        """Of all epochs that a new run takes."""
        return (self.config.epochs - self.config.start_epoch) * len(self.loader)

    @property
    def first_played(self) -> int:
        """The step of a new run in which late adversaries begin: keys have filled all of them."""
        config, share = self.config, self.config.adversaries_from
        begin = ceil((share * config.epochs - config.start_epoch) * len(self.loader))
        return max(begin, ceil(config.cluster / self.num_keys)) if share else 0

    @property
    def num_keys(self) -> int:
        """M, pictures per step over all processes."""
        return self.loader.batches.global_size

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[Tensor]]:
        """Views [N, C, S, S] of an epoch on the device, from batch `first` on.

        Epochs -1, -2, ... are the passes of the start-up.
        """
        for views in on_device(self.loader.epoch(epoch, first), self.device):
            yield [self.as_input(view) for view in views]

    def blank_view(self, side: int) -> Tensor:
        """Of as many pictures as a step forwards at once: a compiler takes the first sizes it meets
        for all.
        """
        N = self.config.images_per_process(self.world.size) // self.config.accum_steps
        return torch.zeros(N, self.config.channels, side, side, device=self.device)

    def as_input(self, view: Tensor) -> Tensor:
        """Pixels [N, C, S, S] as the encoders take them."""
        return normalised(view, self.model.precision(view) or torch.float32, self.layout)

    def play(self, views: list[Tensor], step: int = 0, done: float = 1.0) -> Round:
        """One step of both players. step: its number.  done: the share of the run that is over."""
        config, kind = self.config, self.config.negatives
        if kind == "simclr":
            return simclr_step(
                self.wrapped, self.optimizer, views, moco_t=config.moco_t,
                decoupled=bool(config.decoupled), scaler=self.scaler,
            )  # fmt: skip

        # How the columns move, how many of them become keys, and whether they count.
        moves, refresh = dict(memory_lr=0.0), 0
        late = config.adversaries_from
        is_time = not late or (done >= late and step * self.num_keys >= config.cluster)
        self.plays = kind == "learned" and (self.plays or is_time)
        if self.plays:
            refresh, moves = config.refresh, dict(memory_lr=config.memory_lr)
            if config.memory_lr == "auto":
                # An angle that falls with the encoder's learning rate.
                moves = dict(angle=ANGLE * self.optimizer.param_groups[0]["lr"] / config.lr)
        elif kind in ("learned", "queue"):  # adversaries will begin as a queue
            refresh = self.num_keys
        count = self.plays or kind == "queue"
        denominator = Denominator(count, bool(config.batch_keys), bool(config.decoupled))
        first = step * refresh % self.bank.num_negatives
        return train_step(
            self.wrapped, self.bank, self.optimizer, views, self.plan, scaler=self.scaler,
            moco_t=config.moco_t, mem_t=config.mem_t, memory_momentum=config.momentum,
            mem_wd=config.mem_wd, accum_steps=config.accum_steps,
            refresh=refresh, first_column=first, denominator=denominator, **moves,
        )  # fmt: skip

    def start_up(self, views: list[Tensor], step: int) -> tuple[Tensor, Tensor]:
        """Step number `step` of the start-up: its loss, and whether it was dropped."""
        return startup_step(
            self.wrapped, self.bank, self.optimizer, views, self.plan[0],
            first_column=step * self.num_keys % self.bank.num_negatives,
            moco_t=self.config.moco_t, accum_steps=self.config.accum_steps, scaler=self.scaler,
        )  # fmt: skip


def build_optimizer(config: PretrainConfig, model: AdCo) -> Optimizer:
    """That of both encoders, as in the published checkpoints; the key encoder has no gradient.

    Fused: one kernel for all parameters, and a dropped step is skipped on the device. timm's LARS
    is not: there the host waits for the device once a step, to read whether it is dropped.
    """
    lr, momentum, decay = config.lr, config.momentum, config.weight_decay
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1 or config.decay_norms]}]
    if not config.decay_norms:
        flat = [p for p in model.parameters() if p.ndim <= 1]
        groups.append({"params": flat, "weight_decay": 0.0})
    if config.optimizer == "adamw":
        return AdamW(groups, lr, (momentum, 0.999), weight_decay=decay, fused=True)
    if config.optimizer == "lars":
        timm = optional("timm.optim", "--optimizer lars")
        return timm.Lars(groups, lr, momentum, weight_decay=decay)
    return SGD(groups, lr, momentum, weight_decay=decay, fused=True)


def scored_by(config: PretrainConfig, splits: Splits) -> tuple[Splits, str]:
    """Which score is taken, knn, rank or none, and the pictures: of train a part is held out where
    there is no val (--val_split). Raises InputError where they do not allow the score wanted.
    """
    if not takes_scores(config):
        return splits, "none"
    if splits.val is None and config.val_split:
        splits = hold_out(splits, config.val_split, config.seed)
    possible = ["knn"] * (splits.labelled is not None) + ["rank"] * (splits.val is not None)
    if config.monitor and config.monitor not in possible:
        raise InputError(
            f"monitor={config.monitor} cannot be taken in {config.data!r}: it needs a val (or "
            "--val_split 0.1), and knn classes too"
        )
    return splits, config.monitor or [*possible, "none"][0]


def build_loader(
    config: PretrainConfig, pictures: Pictures, recipes: list[Recipe], world: World, device
) -> TrainingLoader:
    """The batches of N views of this process, and the loader processes that make them."""
    images = config.images_per_process(world.size)  # N
    skip_broken = config.bad_images == "skip"
    views = TrainingViews(pictures, recipes, config.seed, config.augment, skip_broken)
    # Whole batches only: what does not fill one waits for the next epoch.
    batches = EpochBatches(len(views), images * world.size, world, config.seed, least=images)
    if config.shuffle_block:
        if not isinstance(pictures, TarPictures):
            raise InputError(
                f"shuffle_block={config.shuffle_block}: expected packed pictures (adco.pack)"
            )
        batches.shuffle = partial(pictures.block_order, config.shuffle_block)
    workers = workers_per_process(config.workers, world.local_size)
    size = images * sum(config.channels * r.size**2 for r in recipes)
    check_shared_memory(size, workers, world.local_size)
    return TrainingLoader(views, batches, workers, pin_memory=device.type == "cuda")


def training_recipes(config: PretrainConfig) -> list[Recipe]:
    """One recipe per view, in the order in which the view plan numbers them.

    Multi-crop and symmetric together have two full-size views, and the smaller ones of the crops.
    """
    # Full-size views and crops differ in size and scale alone.
    switches = dict(blur_p=0.5 * config.blur, flip_p=0.5 * config.flip)
    full = Recipe(config.image_size, config.min_scale, **switches)
    if not config.multi_crop:
        return [full, full]
    kinds = zip(
        config.size_crops, config.nmb_crops, config.min_scale_crops, config.max_scale_crops,
        strict=True,
    )  # fmt: skip
    crops = [
        Recipe(size, low, high, **switches)
        for size, count, low, high in kinds
        for _ in range(count)
        if not (config.sym and size >= config.image_size)
    ]
    return [full, full, *crops] if config.sym else [full, *crops]


def describe(game: Game) -> str:
    """What is trained on, and what meets what, for the log."""
    splits, share = game.splits, game.config.val_split
    val = f"val, held out of train (--val_split {share:g})" if game.held_out else "val"
    lines = introduction({"train": splits.train, val: splits.val})
    lines.append(
        f"{len(game.loader)} steps of {game.num_keys} an epoch, {len(game.plan)} term(s), "
        f"{game.world.size} process(es) on {game.device.type} in {game.model.amp or torch.float32}"
    )
    if not game.model.has_batchnorm:
        lines.append(f"{game.config.arch} has no BatchNorm: no shuffle, --accum_steps saves memory")
    if game.monitor == "rank":
        lines.append("score: effective rank of val's features (RankMe), without labels")
        lines.append("checkpoint_best has the largest: a weaker sign than kNN accuracy")
    elif game.monitor == "none":
        remedy = "for one: a val, or --val_split 0.1"
        remedy = remedy if takes_scores(game.config) else "as the options have it"
        lines.append(f"no score, so no checkpoint_best; {remedy}")
    return "\n".join(lines)
