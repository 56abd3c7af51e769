"""What every script can be told: devices and processes, and the names of data sets and encoders."""

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from ops.arguments import AT_LEAST_0, AT_LEAST_1, POSITIVE, check_intervals, free, option, switch
from ops.errors import InputError, shown

# Names of --dataset, and of --arch (torchvision's; resnet10 is ours, one block a stage).
DATASETS = ("ImageNet", "folder", "tar", "cifar10", "cifar100", "stl10", "digits")
STEMS = ("imagenet", "small")
DEVICES = ("auto", "cuda", "cpu", "mps")
TIMM = "timm:"  # before the name of a model of timm


class Architectures(tuple):
    """The names of --arch. Which models timm has is known where one is built."""

    def __contains__(self, name) -> bool:
        return super().__contains__(name) or str(name).startswith(TIMM)


ARCHITECTURES = Architectures((
    "resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
    "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2", "timm:NAME",
))  # fmt: skip


@dataclass(frozen=True)
class ProcessOptions:
    """Which device, how many processes, and how they find one another."""

    device: str = option("auto", "where to compute; auto: a GPU, else cpu", choices=DEVICES)
    nproc: int = option(1, "processes on this node where it has no GPU", AT_LEAST_1)
    ngpu: int = option(8, "use at most this many GPUs of the node", AT_LEAST_1)
    gpu: int = option(None, "use this GPU only, in one process", AT_LEAST_0)
    choose: str = option(None, "GPUs to show to the run: 0,1 (sets CUDA_VISIBLE_DEVICES)")
    multiprocessing_distributed: int = switch(1, "1: one process per GPU; 0: one process")
    world_size: int = option(1, "number of nodes", AT_LEAST_1, names=("--nodes_num",))
    rank: int = option(0, "number of this node, from 0", AT_LEAST_0, names=("--node_rank",))
    master_addr: str = option("127.0.0.1", "address of node 0, where --dist_url is not given")
    master_port: int = option(1234, "port of node 0, where --dist_url is not given")
    dist_url: str = option(
        None,
        "where processes meet: tcp://host:port or env:// (default: a free port, or the master's)",
    )
    dist_timeout: float = option(30.0, "minutes to wait for the other processes", POSITIVE)
    dist_backend: str = option("nccl", "group on GPUs (else gloo)", choices=("nccl", "gloo"))

    def __post_init__(self):
        check_intervals(self)
        if self.rank >= self.world_size:
            numbers = f"0 to {self.world_size - 1}, with {self.world_size} node(s)"
            raise InputError(f"rank={self.rank}: expected the number of this node, {numbers}")
        if self.dist_url and not re.fullmatch(r"env://.*|tcp://.+:\d+/?", self.dist_url):
            raise InputError(f"dist_url={self.dist_url!r}: expected tcp://host:port or env://")


@dataclass(frozen=True)
class PictureOptions:
    """How a picture is read."""

    GROUPS: ClassVar = {"exif": "pictures", "device": "devices and processes", "data": "the run"}

    exif: int = switch(0, "1: turn pictures as their orientation tag says")
    max_megapixels: float = free(179.0, "a larger picture counts as broken", POSITIVE)
    channels: int = option(3, "C of the pictures: 3 RGB, 1 gray, or others as they are", AT_LEAST_1)
    ground: str = option("", "what shows behind transparency", choices=("", "white", "black"))


@dataclass(frozen=True)
class RunOptions(ProcessOptions, PictureOptions):
    """What pre-training and probes share: where the pictures are, and where the run leaves what."""

    FOLLOWS: ClassVar = {"global_batch_size": ("batch_size",)}

    data: str = free("data", "folder of the pictures (or positional)")
    download: int = switch(0, "1: fetch cifar10, cifar100 or stl10", may_change=True)
    train_list: str = free("", "file: pictures to train on", names=("--list",))
    eval_crop: int = switch(
        1, "scores on 1: the centre, Resize(256/224 S) and CenterCrop(S); 0: the whole, Resize(S)"
    )
    workers: int = free(32, "loader processes a node", AT_LEAST_0, names=("-j",))
    batch_size: int = free(256, "pictures per step and node", AT_LEAST_1, names=("-b",))
    global_batch_size: int = option(
        None, "M, pictures per step of all nodes (default: batch_size times nodes)", AT_LEAST_1
    )
    start_epoch: int = option(0, "first epoch, where no checkpoint says it", AT_LEAST_0)
    save_path: str = free(".", "folder below which logs are written")
    log_path: str = free("train_log", "log folder below --save_path")
    print_freq: int = free(10, "steps a log line", AT_LEAST_1, names=("-p",))
    seed: int = option(0, "seed of everything random; same seed, same run", AT_LEAST_0)
    track: str = free("", "wandb: send the log there too", choices=("", "wandb"))

    def __post_init__(self):
        super().__post_init__()
        # A folder of that name has no origin.
        if self.track and getattr(find_spec(self.track), "origin", None) is None:
            remedy = f"python3 -m pip install {self.track}"
            raise InputError(f"track={self.track}: it is not installed; {remedy}")
        first, epochs = self.start_epoch, self.epochs
        if first >= epochs:
            raise InputError(f"start_epoch={first} leaves nothing of epochs={epochs}")

    @property
    def log_folder(self) -> Path:
        """Below which the folders of the runs lie."""
        return Path(self.save_path, self.log_path, self.dataset)

    def with_global_batch(self, size: int, local_size: int):
        """These options with M said: what decides the numbers is not the batch of a node.

        size, local_size: processes in all, and on this node.
        """
        if not self.global_batch_size and size % local_size:
            why = f"nodes differ in their number of processes ({size} in all, {local_size} here)"
            raise InputError(f"{why}: give --global_batch_size")
        wanted = self.global_batch_size or self.batch_size * size // local_size
        return replace(self, global_batch_size=wanted)

    def changes_numbers(self) -> dict:
        """The options that a resumed run has to share with the one it goes on from, as JSON gives
        them: lists, not tuples.
        """
        # Where and on how many processes a run computes may change; so may what is marked so.
        free = {f.name for f in fields(self) if f.metadata["may_change"]}
        free |= {f.name for f in fields(ProcessOptions)}
        all_of_them = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in all_of_them.items() if name not in free}


def differences(theirs: dict, ours: dict) -> list[str]:
    """What differs between the options of two runs, in words; only options that both have."""
    other = [name for name, value in ours.items() if theirs.get(name, value) != value]
    return [f"{name} was {shown(theirs[name])}, here it is {shown(ours[name])}" for name in other]
