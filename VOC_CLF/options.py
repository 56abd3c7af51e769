"""What VOC_CLF/main.py can be told."""

from dataclasses import dataclass
from typing import ClassVar

from ops.arguments import AT_LEAST_0, AT_LEAST_1, BELOW_1, POSITIVE, option, switch
from ops.errors import InputError
from ops.options import ARCHITECTURES, DEVICES, PictureOptions


@dataclass(frozen=True)
class VocConfig(PictureOptions):
    """Score a frozen encoder on VOC2007 classification. Defaults are the published protocol."""

    FIRST: ClassVar = (
        "data", "pretrained", "protocol", "epochs", "batch_size", "lr", "workers",
        "gpu", "save_path", "seed",
    )  # fmt: skip
    GROUPS: ClassVar = PictureOptions.GROUPS | {"arch": "protocol", "log_path": "the run"}

    data: str = option("data", "folder that holds VOCdevkit/VOC2007")
    channels: int = option(3, "the pictures are RGB", choices=(3,))
    pretrained: str = option("", "checkpoint of the encoder (AdCo, MoCo or torchvision names)")
    arch: str = option(None, "where the file does not say", names=("-a",), choices=ARCHITECTURES)
    protocol: str = option("linear", "a linear layer, or SVMs", choices=("linear", "svm"))
    bn_adapt: int = switch(0, "linear: 1 lets BatchNorm take the statistics of VOC, as published")
    image_size: int = option(None, "side, pixels (linear 300, svm 224)", "[32, inf)")
    epochs: int = option(100, "linear: epochs to train", AT_LEAST_1)
    batch_size: int = option(16, "pictures per step", AT_LEAST_1, names=("-b",))
    lr: float = option(0.05, "linear: learning rate", POSITIVE, names=("--learning_rate",))
    momentum: float = option(0.9, "linear: SGD momentum", BELOW_1)
    workers: int = option(32, "loader processes, at most the cores", AT_LEAST_0, names=("-j",))
    save_path: str = option(".", "folder below which logs are written")
    log_path: str = option("train_log", "log folder below --save_path", names=("--log",))
    run_num: int = option(None, "a level run_N in the path of the run folder", AT_LEAST_0)
    gpu: int = option(None, "use this GPU, by its number", AT_LEAST_0)
    device: str = option("auto", "where to compute; auto: a GPU, else cpu", choices=DEVICES)
    choose: str = option(None, "GPU to use, as in 0 (sets CUDA_VISIBLE_DEVICES)")
    seed: int = option(0, "seed of everything random; same seed, same run", AT_LEAST_0)

    def __post_init__(self):
        if not self.pretrained:
            raise InputError("no encoder to score; give its checkpoint with --pretrained FILE")
        if self.bn_adapt and self.protocol == "svm":
            raise InputError("bn_adapt=1 belongs to --protocol linear; SVMs train no trunk")

    def picture_size(self) -> int:
        return self.image_size or {"linear": 300, "svm": 224}[self.protocol]
