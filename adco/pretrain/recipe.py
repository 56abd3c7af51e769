"""Options that follow from the data: --recipe auto. The reasons are measured in docs/study.md."""

from collections.abc import Iterator
from dataclasses import replace
from math import floor, log2

import numpy as np

from adco.data.datasets import Splits, hold_out, sample_of
from adco.data.list_files import listed_splits
from adco.data.pictures import BrokenPicture, Pictures
from adco.pretrain.options import CHOSEN, PUBLISHED, PretrainConfig
from ops.distributed import Flags, World, once_per_node
from ops.errors import InputError
from ops.options import TIMM

LOOKED_AT = 50  # pictures, to know their size
LEAST_SIDE, PATCH = 16, 32  # pixels: no smaller views; of timm's models a multiple of PATCH
LIFE = 128  # steps after which a column is replaced by a key; of fewer columns none is
SHARP_VIEWS = 96  # pixels: blur takes more from views up to this size than it teaches
SMALL_VIEWS = 48  # pixels: a strided first layer would leave too little of views up to this size


def with_recipe(
    config: PretrainConfig, world: World
) -> tuple[PretrainConfig, Splits | None, list[str]]:
    """The options with a value for each that was left to the recipe; the pictures, where they had
    to be listed for that; and each choice with its reason.
    """
    if all(getattr(config, name) is not None for name in CHOSEN):
        return config, None, []
    splits = listed_splits(config, world)
    values, lines, number = {}, [], len(splits.train)
    if splits.val is None and config.val_split and takes_scores(config):
        number = len(hold_out(splits, config.val_split, config.seed).train)
    # One process's look counts: what another one reads may be broken there.
    side = Flags(world).gather(once_per_node(lambda: usual_side(splits.train), world))[0]
    for name, value, reason in choices(config, number, side):
        if getattr(config, name) is None:
            values[name] = value
            lines.append(f"recipe: --{name} {value} ({reason})")
    # What the kind of negatives has no use for.
    values |= {n: PUBLISHED[n] for n in CHOSEN if n not in values and getattr(config, n) is None}
    return replace(config, **values), splits, lines


def takes_scores(config) -> bool:
    return bool(config.knn_freq) and config.monitor != "none"


def choices(config: PretrainConfig, num_pictures: int, side: int) -> Iterator[tuple]:
    """(option, value, reason) of CHOSEN. side: of most pictures, pixels."""
    M = config.global_batch_size
    steps = config.epochs * (num_pictures // M)
    # How the pictures are shown.
    most, least = min(224, side), LEAST_SIDE
    if config.arch.startswith(TIMM):
        most, least = most // PATCH * PATCH, PATCH
    size = config.image_size or max(least, most)
    small = size <= SMALL_VIEWS
    yield "image_size", size, f"the pictures have about {side} pixels a side"
    large = int(size > SHARP_VIEWS)
    yield "eval_crop", large, f"views of {size} pixels"
    yield "blur", large, f"views of {size} pixels"
    fits = small and not config.init and not config.arch.startswith(TIMM)
    yield "stem", "small" if fits else "imagenet", f"views of {size} pixels"

    # How the encoder learns.
    yield "sym", 1, "both views as queries: worth three points of kNN on small data"
    lr = config.lr or float(f"{0.06 * (M / 256) ** (2 / 3):.2g}")
    yield "lr", lr, f"0.06 for 256 pictures a step, 0.015 for 32, here {M}"
    yield "lr_final", float(f"{min(0.0006, lr / 25):.2g}"), "a twenty-fifth of lr at most"
    follow = min(0.01, max(0.001, 60 / max(1, steps)))
    why = f"0.99 to 0.999, for the key encoder to follow in {steps} steps"
    yield "moco_m", round(1 - follow, 4), why
    yield from negatives(config, num_pictures, steps)


def negatives(config: PretrainConfig, num_pictures: int, steps: int) -> Iterator[tuple]:
    """What the encoder learns against, as choices. steps: of the run."""
    # Late adversaries begin as keys of the first quarter of the run.
    M = config.global_batch_size
    late = config.adversaries_from
    if late is None:
        late = 0.25 if config.batch_keys and config.ad_init and not config.init_steps else 0.0
    kind, why = config.negatives or "learned", "as published"
    if late:
        why = "begun late they help a small batch, and harm no large one: docs/study.md"
    if late and steps < 4 and config.negatives is None:
        kind, why = "batch", f"{steps} steps are too few for adversaries"
    yield "negatives", kind, why
    if kind in ("learned", "queue"):
        columns = max(1, min(256, num_pictures / 2), min(65536, num_pictures / 16))
        columns, why = 2 ** round(log2(columns)), f"of {num_pictures} pictures a sixteenth"
        if late:
            columns = min(columns, 2 ** floor(log2(max(1, M * steps // 4))))
            why += ", and no more than the first quarter of the run fills"
        yield "cluster", columns, f"{why}; for few 256, or half"
    if kind == "learned":
        yield "memory_lr", "auto", "a turn that depends neither on K nor on mem_t"
        yield "mem_t", 0.03, "colder, columns stand still; warmer, they become class centres"
        why = "columns replaced in turn, so that none stays without attention"
        yield "refresh", min(M, (config.cluster or columns) // LIFE), why
        why = "in place of a start-up" if late else "--init_steps, --ad_init or --batch_keys say so"
        yield "adversaries_from", late, why


def usual_side(pictures: Pictures) -> int:
    """Median of the shorter sides of some pictures. Raises InputError where none can be read."""
    sides, fault = [], None
    for index in sample_of(pictures, seed=0, most=LOOKED_AT):
        try:
            sides.append(min(pictures.read(index).shape[:2]))
        except BrokenPicture as error:  # the others are told when they are met in training
            fault = fault or error
    if fault and not sides:
        raise InputError(f"none of the pictures that were tried can be read; {fault}") from fault
    return int(np.median(sides))
