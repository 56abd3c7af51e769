"""Options that follow from the data: --recipe auto. The reasons are measured in docs/study.md."""

from collections.abc import Iterator
from dataclasses import replace
from math import log2

import numpy as np

from adco.data.datasets import Splits, sample_of
from adco.data.list_files import listed_splits
from adco.data.pictures import BrokenPicture, Pictures
from adco.pretrain.options import CHOSEN, PUBLISHED, PretrainConfig
from ops.distributed import Flags, World
from ops.options import TIMM

LOOKED_AT = 50  # pictures, to know their size
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
    values, lines = {}, []
    # One process looks: what another one reads may be broken there.
    side = Flags(world).gather(usual_side(splits.train) if world.first else None)[0]
    for name, value, reason in choices(config, len(splits.train), side):
        if getattr(config, name) is None:
            values[name] = value
            lines.append(f"recipe: --{name} {value} ({reason})")
    # What the kind of negatives has no use for.
    values |= {n: PUBLISHED[n] for n in CHOSEN if n not in values and getattr(config, n) is None}
    return replace(config, **values), splits, lines


def choices(config: PretrainConfig, num_pictures: int, side: int) -> Iterator[tuple]:
    """(option, value, reason) of CHOSEN. side: of most pictures, pixels."""
    M = config.global_batch_size
    steps = config.epochs * num_pictures // M
    # How the pictures are shown.
    size = config.image_size or min(224, side)
    small = size <= SMALL_VIEWS
    yield "image_size", size, f"the pictures have about {side} pixels a side"
    large = int(size > SHARP_VIEWS)
    yield "eval_crop", large, f"views of {size} pixels"
    yield "blur", large, f"views of {size} pixels"
    fits = small and not config.init and not config.arch.startswith(TIMM)
    yield "stem", "small" if fits else "imagenet", f"views of {size} pixels"

    # How the encoder learns.
    yield "sym", 1, "both views as queries: worth two points of kNN on small data"
    yield "lr", float(f"{0.06 * M / 256:.2g}"), f"0.06 for 256 pictures a step, here {M}"
    follow = min(0.01, max(0.001, 20 / max(1, steps)))
    why = f"0.99 to 0.999, for the key encoder to follow in {steps} steps"
    yield "moco_m", round(1 - follow, 4), why

    # What it learns against.
    kind = config.negatives or "learned"
    why = "begun late they help a small batch, and harm no large one: docs/study.md"
    yield "negatives", kind, why
    if kind in ("learned", "queue"):
        least = min(256, num_pictures / 2)
        columns = 2 ** round(log2(max(least, min(65536, num_pictures / 16))))
        yield "cluster", columns, f"a sixteenth of {num_pictures} pictures, 256 or half at least"
    if kind == "learned":
        yield "memory_lr", "auto", "a turn that depends neither on K nor on mem_t"
        yield "mem_t", 0.03, "colder, columns stand still; warmer, they become class centres"
        yield "refresh", max(1, M // 32), "columns that turn into class centres are replaced"
        late = 0.25 if config.batch_keys and not config.init_steps else 0.0
        yield "adversaries_from", late, "in place of a start-up (--init_steps)"


def usual_side(pictures: Pictures) -> int:
    """Median of the shorter sides of some pictures."""
    sides = []
    for index in sample_of(pictures, seed=0, most=LOOKED_AT):
        try:
            sides.append(min(pictures.read(index).shape[:2]))
        except BrokenPicture:  # told when it is met in training
            continue
    return int(np.median(sides)) if sides else 224
