"""What a pre-training run consists of, made from its configuration."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD

from adco.data.datasets import Splits, load_splits
from adco.data.loader import EpochBatches, TrainingLoader, TrainingViews, workers_per_process
from adco.data.views import Recipe, training_recipes
from adco.model import AdCo
from adco.negatives import NegativeBank
from adco.plan import Term, view_plan
from adco.pretrain.options import PretrainConfig
from adco.step import Round, train_step
from ops.device import amp_dtype, compile_, tune
from ops.distributed import World, wrap_encoder


@dataclass
class Parts:
    """The pictures, both players, and how they meet."""

    plan: list[Term]
    splits: Splits
    loader: TrainingLoader
    layout: torch.memory_format  # of the views
    model: AdCo
    wrapped: nn.Module  # the model, in DistributedDataParallel where there are several processes
    bank: NegativeBank
    optimizer: SGD  # of the encoders
    scaler: GradScaler  # of the loss; without effect unless in fp16


def build(config: PretrainConfig, world: World, device: torch.device) -> Parts:
    """Everything on its device, with random weights that depend on the seed alone."""
    torch.manual_seed(config.seed)
    recipes = recipes_of(config)
    splits = load_splits(config.dataset, config.data, bool(config.download))
    images = config.images_per_process(world.local_size)  # N
    loader = TrainingLoader(
        TrainingViews(
            splits.train, recipes, config.seed, config.augment, config.bad_images == "skip"
        ),
        EpochBatches(len(splits.train), images * world.size, world, config.seed, least=images),
        workers_per_process(config.workers, world),
        pin_memory=device.type == "cuda",
    )
    tune(device, bool(config.tf32))
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = AdCo(
        config.arch, config.moco_dim, config.moco_m, bool(config.mlp), config.stem, config.seed,
        amp_dtype(config.amp, device),
    ).to(device, memory_format=layout)  # fmt: skip
    if config.compile:
        compile_(model.children(), device)
    bank = NegativeBank(config.cluster, config.moco_dim, config.seed).to(device)
    # Both encoders, as in the published checkpoints; the key encoder has no gradient and stays.
    optimizer = SGD(
        model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay,
        fused=True,
    )  # fmt: skip
    scaler = GradScaler(device.type, enabled=model.amp is torch.float16)
    plan = view_plan(bool(config.sym), bool(config.multi_crop), len(recipes))
    wrapped = wrap_encoder(model, world)
    return Parts(plan, splits, loader, layout, model, wrapped, bank, optimizer, scaler)


def describe(parts: Parts, config: PretrainConfig, world: World, device: torch.device) -> str:
    """What meets what, for the log."""
    text = (
        f"{len(parts.splits.train)} pictures, {len(parts.loader)} steps of "
        f"{parts.loader.batches.global_size} an epoch, {len(parts.plan)} term(s), {world.size} "
        f"process(es) on {device.type} in {parts.model.amp or torch.float32}"
    )
    if config.knn_freq and parts.splits.val is None:
        text += "\nno kNN monitor: it needs labelled pictures in train/CLASS and val/CLASS"
    return text


def play_round(parts: Parts, views: list[Tensor], config: PretrainConfig) -> Round:
    """One step of both players on views [N, 3, H, W], with the numbers of the configuration."""
    return train_step(
        parts.wrapped,
        parts.bank,
        parts.optimizer,
        views,
        parts.plan,
        moco_t=config.moco_t,
        mem_t=config.mem_t,
        memory_lr=config.memory_lr,
        memory_momentum=config.momentum,
        mem_wd=config.mem_wd,
        accum_steps=config.accum_steps,
        scaler=parts.scaler,
    )


def recipes_of(config: PretrainConfig) -> list[Recipe]:
    return training_recipes(
        config.image_size, config.min_scale, config.blur, config.flip, config.sym,
        config.multi_crop,
        config.size_crops, config.nmb_crops, config.min_scale_crops, config.max_scale_crops,
    )  # fmt: skip
