"""Whole training steps, from JPEG files to new weights and a new bank: ours, the published way, and
MoCo v2 as lightly builds it.

python3 -m benchmarks.train                                     # ResNet-50
python3 -m benchmarks.train --arch resnet18 --batch_size 32     # lighter
python3 -m benchmarks.train --device cuda --batch_size 64       # pictures by one core all the same
"""

import copy
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from adco.data.datasets import from_folders
from adco.data.pictures import FolderPictures
from adco.encoder import Trunk, build_encoder, build_trunk
from benchmarks import measure
from benchmarks.rounds import DECAY, MOCO_T, MOMENTUM, play_published, whole_bank
from benchmarks.views import jpeg, made_up, published_recipe
from ops.arguments import AT_LEAST_1, option, parse
from ops.device import tune
from ops.distributed import ALONE, World
from ops.errors import reported
from ops.launch import launch
from ops.options import ARCHITECTURES, ProcessOptions

EMA, LR = 0.999, 0.03


@dataclass(frozen=True)
class TrainBenchmark(ProcessOptions):
    """Time of a whole training step of single-crop pre-training, loading included."""

    data: str = option("", "folder of pictures; none: one of its own making")
    arch: str = option("resnet50", "encoder", choices=ARCHITECTURES)
    batch_size: int = option(8, "N", AT_LEAST_1)
    image_size: tuple[int, ...] = option((224, 160, 96), "sides of the views, pixels")
    cluster: int = option(65536, "K, columns of the bank or keys of the queue", AT_LEAST_1)
    amp: str = option("auto", "ours: precision", choices=("auto", "bf16", "fp16", "none"))
    repeats: int = option(7, "times that each way is taken, in turn with the others", AT_LEAST_1)


def ours(config: TrainBenchmark, files: FolderPictures, size: int, device, amp: str, last: int):
    """What main_adco.py does in a step, with its loader in this process."""
    how = dict(data=str(files.root), cluster=config.cluster, amp=amp, channels_last=last)
    game, *_ = measure.game_of(replace(config, image_size=size), ALONE, device, "folder", **how)
    batches = chain.from_iterable(game.batches(epoch) for epoch in count())
    return lambda: game.play(next(batches))


def published(arch: str, cluster: int, views: Callable[[], list[Tensor]], device):
    """Our own plain writing of it: float32, channels first, three passes over the bank, a momentum
    update a parameter at a time.
    """
    encoder_q = build_encoder(arch, 128, mlp=True).to(device)
    encoder_k = copy.deepcopy(encoder_q).requires_grad_(False)
    W, v = whole_bank(cluster, 128, device)
    optimizer = torch.optim.SGD(encoder_q.parameters(), LR, MOMENTUM, weight_decay=DECAY)

    def step():
        query_view, key_view = views()
        queries = F.normalize(encoder_q(query_view), dim=1)
        with torch.no_grad():
            for key, query in zip(encoder_k.parameters(), encoder_q.parameters(), strict=True):
                key.mul_(EMA).add_(query, alpha=1 - EMA)
            keys = F.normalize(encoder_k(key_view), dim=1)
        optimizer.zero_grad()
        play_published(queries, keys, W, v, ALONE)
        optimizer.step()

    return step


def lightlys(config: TrainBenchmark, files: FolderPictures, size: int, device):
    """MoCo v2 put together from lightly's transform, head, loss with its queue, and update."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.transforms import MoCoV2Transform

    trunk = build_trunk(config.arch)
    width = trunk.fc.in_features
    query_encoder = nn.Sequential(Trunk(trunk), MoCoProjectionHead(width, width, 128)).to(device)
    key_encoder = copy.deepcopy(query_encoder).requires_grad_(False)
    criterion = NTXentLoss(MOCO_T, memory_bank_size=(config.cluster, 128)).to(device)
    optimizer = torch.optim.SGD(query_encoder.parameters(), LR, MOMENTUM, weight_decay=DECAY)
    transform = MoCoV2Transform(input_size=size)

    def step():
        query_view, key_view = load(files, transform, device)
        update_momentum(query_encoder, key_encoder, m=EMA)
        queries = query_encoder(query_view)
        with torch.no_grad():
            keys = key_encoder(key_view)
        loss = criterion(queries, keys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def load(files: FolderPictures, transform: Callable, device) -> list[Tensor]:
    """A batch [N, 3, S, S] per view, by a transform of Pillow pictures."""
    rows = [transform(Image.fromarray(files.read(index))) for index in range(len(files))]
    return [torch.stack(views).to(device) for views in zip(*rows, strict=True)]


def ways(config: TrainBenchmark, files: FolderPictures, size: int, device) -> dict[str, Callable]:
    recipe = published_recipe(size)
    by_pillow = partial(load, files, lambda picture: [recipe(picture), recipe(picture)], device)
    found = {
        "ours": ours(config, files, size, device, config.amp, last=1),
        "ours, float32": ours(config, files, size, device, "none", last=1),
        "ours, float32, channels first": ours(config, files, size, device, "none", last=0),
        "published": published(config.arch, config.cluster, by_pillow, device),
    }
    try:
        found["lightly's MoCo v2"] = lightlys(config, files, size, device)
    except ImportError as error:
        print(f"lightly is left out: {error}\n")
    return found


def run(config: TrainBenchmark, _: World, device: torch.device) -> int:
    tune(device, tf32=True)
    print(measure.describe(device))
    print(f"{config.arch}, N {config.batch_size}, K {config.cluster}, {config.repeats} turns\n")
    measure.print_head("side", "way", "ms a step", "images/s", "times ours")
    with tempfile.TemporaryDirectory() as folder:
        files = write_jpegs(config, Path(folder))
        for size in config.image_size:
            steps = ways(config, files, size, device)
            seconds = measure.interleaved(steps, config.repeats, device)
            for name, turns in seconds.items():
                rate = config.batch_size / measure.spread(turns)[0]
                measure.print_row(
                    size, name, measure.milliseconds(turns), f"{rate:.1f}",
                    measure.ratio(turns, seconds["ours"]),
                )  # fmt: skip
    return 0


def write_jpegs(config: TrainBenchmark, folder: Path) -> FolderPictures:
    """N JPEG files of 500 x 375 pixels."""
    pictures = from_folders(Path(config.data), False).train if config.data else made_up()
    names = [f"{i}.jpg" for i in range(config.batch_size)]
    for i, name in enumerate(names):
        picture = pictures.read(i % len(pictures))
        (folder / name).write_bytes(jpeg(Image.fromarray(picture)))
    return FolderPictures(folder, names)


def main(argv=None) -> int:
    with reported("benchmarks.train"):
        return launch(run, parse(TrainBenchmark, argv))


if __name__ == "__main__":
    sys.exit(main())
