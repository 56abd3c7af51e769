"""What main_adco.py can be told: a frozen dataclass, checked as far as values alone can be."""

from dataclasses import dataclass, fields
from math import cos, floor, pi
from typing import ClassVar

from ops.arguments import AT_LEAST_0, AT_LEAST_1, BELOW_1, POSITIVE, SHARE, free, option, switch
from ops.errors import InputError
from ops.options import ARCHITECTURES, DATASETS, STEMS, RunOptions
from ops.schedule import cosine, steps

MONITORS = ("knn", "rank", "none")
WITHOUT_BANK = ("batch", "simclr")  # kinds of negatives
# What --recipe auto chooses where it is not given: None until the pictures are known (recipe.py).
CHOSEN = (
    "image_size", "stem", "blur", "eval_crop", "sym", "lr", "lr_final", "moco_m", "negatives",
    "cluster", "memory_lr", "mem_t", "refresh", "adversaries_from",
)  # fmt: skip


def number_or_auto(word: str) -> float | str:
    return word if word == "auto" else float(word)


@dataclass(frozen=True)
class PretrainConfig(RunOptions):
    """Everything `main_adco.py` can be told. Defaults are the published run on ImageNet."""

    FIRST: ClassVar = (
        "data", "dataset", "arch", "image_size", "cluster", "epochs", "batch_size",
        "lr", "save_path", "resume",
    )  # fmt: skip
    GROUPS: ClassVar = RunOptions.GROUPS | {
        "recipe": "pictures", "sym": "method", "arch": "encoder", "epochs": "optimisation",
        "save_freq": "scores and checkpoints",
    }  # fmt: skip
    FOLLOWS: ClassVar = RunOptions.FOLLOWS | {
        "init_sha256": ("init",), "size_crops": ("image_size", "multi_crop", "recipe"),
    }  # fmt: skip

    # Pictures
    data: str = free("data", "folder of the pictures, or several (or positional)", nargs="+")
    recipe: str = free(
        "published", "auto (all sets but ImageNet): what is not given follows from the pictures",
        choices=("auto", "published"),
    )  # fmt: skip
    dataset: str = option("ImageNet", "data set; digits come with the program", choices=DATASETS)
    shuffle_block: int = option(
        0, "tar: shards in random order, so many pictures shuffled at a time; 0: all", AT_LEAST_0
    )
    image_size: int = option(224, "side of the full-size views, pixels", AT_LEAST_1)
    min_scale: float = option(0.2, "smallest share of the picture in a full-size view", SHARE)
    blur: int = switch(1, "1: Gaussian blur in the views")
    flip: int = switch(1, "1: horizontal flips in the views")
    augment: str = option("fast", "renderer: OpenCV and torch, or Pillow", choices=("fast", "pil"))
    bad_images: str = free(
        "skip", "a picture that cannot be read; skip: use another one; error: stop",
        choices=("skip", "error"),
    )  # fmt: skip
    bad_images_max: float = free(
        0.01, "share of the pictures that may be broken before the run stops", "[0, 1]",
    )  # fmt: skip
    size_crops: tuple[int, ...] = option(
        None, "multi-crop: sides (of --image_size 224: 224 192 160 128 96)", AT_LEAST_1
    )
    nmb_crops: tuple[int, ...] = option(
        (1, 1, 1, 1, 1), "multi-crop: crops of each size", AT_LEAST_1
    )
    min_scale_crops: tuple[float, ...] = option(
        (0.2, 0.172, 0.143, 0.114, 0.086), "multi-crop: smallest area share of each size", SHARE
    )
    max_scale_crops: tuple[float, ...] = option(
        (1.0, 0.86, 0.715, 0.571, 0.429), "multi-crop: largest area share of each size", SHARE
    )

    # Method
    sym: int = switch(0, "1: symmetric loss, both views are query and key")
    multi_crop: int = switch(0, "1: smaller query crops beside the key view")
    negatives: str = option(
        "learned",
        "adversaries; queue: earlier keys, as in MoCo v2; batch: the keys of the batch; simclr: "
        "both views of the batch, with a gradient through both",
        choices=("learned", "queue", "batch", "simclr"),
    )
    batch_keys: int = switch(1, "1: the keys of the batch are negatives too")
    decoupled: int = switch(0, "1: the own key is left out of the sum (decoupled contrast)")
    cluster: int = option(65536, "K, the number of learnable negatives", AT_LEAST_1)
    moco_dim: int = option(128, "D, width of the embedding", AT_LEAST_1)
    moco_m: float = option(0.999, "m, momentum of the key encoder", BELOW_1)
    moco_t: float = option(0.12, "tau, temperature of the encoder's loss", POSITIVE)
    mem_t: float = option(0.02, "tau_a, temperature of the adversaries' loss", POSITIVE)
    memory_lr: float = option(
        3.0, "eta, learning rate of the adversaries; auto: a turn of .005 a step", AT_LEAST_0,
        type=number_or_auto, metavar="RATE",
    )  # fmt: skip
    refresh: int = option(0, "R columns a step are overwritten by keys, in turn", AT_LEAST_0)
    adversaries_from: float = option(0.0, "share of the epochs without them: no start-up", BELOW_1)
    mem_wd: float = option(1e-4, "lambda, weight decay of the adversaries", AT_LEAST_0)
    ad_init: int = switch(1, "1: start the adversaries from keys of the pictures; 0: random normal")
    init_steps: int = option(0, "start-up steps, no fewer than fill the K columns", AT_LEAST_0)

    # Encoder
    arch: str = option("resnet50", "architecture", names=("-a",), choices=ARCHITECTURES)
    stem: str = option("imagenet", "small: 3x3 first convolution, no max-pool", choices=STEMS)
    init: str = free("", "checkpoint whose trunk both encoders begin with")
    init_sha256: str = option(None, "SHA-256 that it has to have (default: what it has)")
    mlp: int = option(1, "hidden layers of the projection head; 0: one linear layer", AT_LEAST_0)
    mlp_width: int = option(None, "their width (default: that of the features)", AT_LEAST_1)
    mlp_bn: int = switch(0, "1: BatchNorm after each of them, in place of a bias")
    amp: str = option(
        "auto",
        "precision of the encoders; auto: bf16 where the device computes in it; none: float32",
        choices=("auto", "bf16", "fp16", "none"),
    )
    tf32: int = switch(1, "1: on CUDA, float32 convolutions in TensorFloat-32")
    channels_last: int = switch(1, "1: pictures and filters laid out channels last")
    compile: int = switch(0, "1: compile the encoders; the first steps take long")

    # Optimisation
    epochs: int = option(200, "epochs to train", AT_LEAST_1)
    accum_steps: int = free(1, "micro-batches; BatchNorm as on so many GPUs", AT_LEAST_1)
    lr: float = option(0.03, "learning rate of the encoder", POSITIVE, names=("--learning_rate",))
    lr_final: float = option(0.0006, "learning rate at the end of --cos 1", AT_LEAST_0)
    cos: int = option(1, "1: cosine to lr_final; 2: quarter cosine; 0: steps", choices=(0, 1, 2))
    schedule: tuple[int, ...] = option((120, 160), "--cos 0: lr drops tenfold there", nargs="*")
    warmup_epochs: int = option(0, "epochs over which lr rises linearly from 0", AT_LEAST_0)
    optimizer: str = option("sgd", "of the encoder", choices=("sgd", "adamw", "lars"))
    momentum: float = option(
        0.9, "momentum (adamw: beta_1) of the encoder, and of the adversaries", BELOW_1
    )
    weight_decay: float = option(1e-4, "weight decay of the encoder", AT_LEAST_0, names=("--wd",))
    decay_norms: int = switch(1, "0: no weight decay on biases and norms")

    # Scores and checkpoints
    save_freq: int = free(10, "epochs between numbered checkpoints", AT_LEAST_1)
    save_minutes: float = free(
        15.0, "minutes between two checkpoints inside an epoch; 0: only after epochs", AT_LEAST_0,
    )  # fmt: skip
    report_epochs: int = option(
        -1, "epochs between two pages (adco.report); -1: at the end; 0: never", "[-1, inf)",
        may_change=True,
    )  # fmt: skip
    dry_run: int = switch(0, "1: check, time two steps, and leave nothing", may_change=True)
    monitor: str = option(None, "score (default: knn with labels, else rank)", choices=MONITORS)
    val_split: float = option(0.0, "share of train held out for scores if there is no val", BELOW_1)
    knn_freq: int = option(10, "epochs between two scores; 0: never", AT_LEAST_0)
    knn_k: int = option(200, "neighbours that vote in a kNN score", AT_LEAST_1)
    knn_t: float = option(0.07, "temperature of their vote", POSITIVE)
    resume: str = free("", "checkpoint to go on from, or auto: the newest")

    def __post_init__(self):
        super().__post_init__()
        if self.size_crops is None and self.image_size:
            scale = self.image_size / 224 if self.multi_crop else 1
            sizes = tuple(max(1, round(size * scale)) for size in SIZE_CROPS)
            object.__setattr__(self, "size_crops", sizes)
        if self.multi_crop and self.image_size:
            check_crops(self)
        check_negatives(self)
        if self.monitor in ("knn", "rank") and not self.knn_freq:
            raise InputError(f"monitor={self.monitor} with knn_freq=0: no score is ever taken")
        if not self.mlp and (self.mlp_width or self.mlp_bn):
            raise InputError("mlp=0 has no hidden layer; leave out --mlp_width and --mlp_bn")
        if self.optimizer == "lars" and not self.weight_decay:
            raise InputError("optimizer=lars adapts what decays only: give --weight_decay above 0")
        if self.init and self.resume not in ("", "auto"):
            raise InputError(f"resume={self.resume!r} has its own weights; leave --init out")
        self.check_micro_batches(self.global_batch_size or self.batch_size)

    def images_per_process(self, size: int) -> int:
        """N: the M pictures of a step over all `size` processes."""
        total = self.global_batch_size
        if total % size:
            raise InputError(
                f"{total} pictures a step do not split over {size} processes; take a multiple of "
                f"{size} with --batch_size (of a node) or --global_batch_size (of all)"
            )
        if self.refresh > total:
            raise InputError(f"refresh={self.refresh}: a step has {total} keys; take no more")
        self.check_micro_batches(total // size)
        return total // size

    def check_micro_batches(self, num_images: int) -> None:
        """Refuse a number of pictures that BatchNorm cannot take in the micro-batches wanted."""
        steps = self.accum_steps
        if num_images < 2:
            raise InputError(
                f"{num_images} picture(s) a process; BatchNorm needs at least 2: raise --batch_size"
            )
        if num_images % steps or num_images < 2 * steps:
            raise InputError(
                f"accum_steps={steps} micro-batches of {num_images} pictures: expected at least 2 "
                f"pictures in each, as many in all; take a multiple of {2 * steps} a process with "
                "--batch_size, or fewer steps"
            )

    @property
    def has_startup(self) -> bool:
        """Whether columns are filled with keys before the first epoch."""
        counts = self.negatives == "learned" and not self.adversaries_from
        return bool(self.ad_init) and (counts or self.negatives == "queue")

    def startup_steps(self, num_keys: int) -> int:
        """Steps until all K columns are written by M = num_keys keys a step, or --init_steps."""
        return max(self.init_steps, -(-self.cluster // num_keys))

    def rate(self, epoch: float, after_warmup: bool = True) -> float:
        """Learning rate of the encoder at `epoch`, which counts steps as fractions.

        The warm-up rises from 0 with every step; after it the rate holds still within an epoch, and
        a cosine goes over the epochs that are left.  after_warmup False: over all epochs, as in
        runs of earlier versions.
        """
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        # Published: the rate is set once an epoch.
        epoch = floor(epoch)
        begin = self.warmup_epochs if after_warmup else 0
        done, period = epoch - begin, max(1, self.epochs - begin)
        if self.cos == 1:
            return cosine(done, period, self.lr, self.lr_final)
        if self.cos == 2:
            return self.lr * cos(pi * done / (2 * period))
        return steps(epoch, self.lr, self.schedule)


def check_negatives(config):
    """Refuse options that the kind of negatives does not have."""
    kind = config.negatives
    if kind == "simclr" and (config.multi_crop or config.accum_steps > 1):
        whole = "both views of the whole batch at once, so no --multi_crop and no --accum_steps"
        raise InputError(f"negatives=simclr needs {whole}; or take --negatives batch")
    keyless = kind in WITHOUT_BANK or config.decoupled or config.adversaries_from
    if not config.batch_keys and keyless:
        others = "--negatives batch or simclr, --decoupled 1 and --adversaries_from"
        raise InputError(f"batch_keys=0 leaves no negatives with {others}; leave out one of them")
    if kind not in ("learned", None) and (config.refresh or config.adversaries_from):
        remedy = "give --refresh 0 and --adversaries_from 0"
        raise InputError(f"negatives={kind}: no adversaries to refresh or to start late; {remedy}")
    if config.adversaries_from and config.init_steps:
        late = "adversaries that begin late have no start-up"
        remedy = "leave it out, or give --adversaries_from 0"
        raise InputError(f"init_steps={config.init_steps}: {late}; {remedy}")


CROPS = ("size_crops", "nmb_crops", "min_scale_crops", "max_scale_crops")
SIZE_CROPS = (224, 192, 160, 128, 96)  # published, for full-size views of 224 pixels


def check_crops(config):
    lengths = {name: len(getattr(config, name)) for name in CROPS}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{length} in --{name}" for name, length in lengths.items())
        raise InputError(f"the four lists of crops need one length, found {found}; give all four")
    least, most = min(config.size_crops), max(config.size_crops)
    if most > config.image_size or (config.sym and least == config.image_size):
        raise InputError(
            f"size_crops={config.size_crops} with image_size={config.image_size}: expected no crop "
            "larger than the full-size views, and with --sym 1 a smaller one; leave --size_crops "
            "out, and they follow --image_size"
        )
    for low, high in zip(config.min_scale_crops, config.max_scale_crops, strict=True):
        if low > high:
            raise InputError(f"crop scales {low} to {high}: expected smallest <= largest")


AUTO = dict.fromkeys(CHOSEN)
PUBLISHED = {f.name: f.default for f in fields(PretrainConfig) if f.name in CHOSEN}
# Defaults that differ from ImageNet's. An option that is given always wins.
CIFAR = dict(recipe="auto", arch="resnet18", image_size=32, knn_freq=1)
DATASET_PRESETS = {
    "folder": dict(recipe="auto", knn_freq=1, val_split=0.1),
    "tar": dict(recipe="auto", val_split=0.1),
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "stl10": dict(CIFAR, image_size=96),
    "digits": dict(  # ImageNet's stem is sixteen times as fast
        recipe="auto", arch="resnet10", image_size=28, eval_crop=0, stem="imagenet", flip=0,
        min_scale=0.75, batch_size=64, epochs=20, knn_freq=1, knn_k=20, lr=0.06, moco_t=0.2,
        weight_decay=5e-4,
    ),
}  # fmt: skip
# Rates for 256 pictures a step: of MoCo v3's ViTs, and of SimCLR.
ADAMW = dict(lr=1.5e-4, lr_final=0.0, weight_decay=0.1)
LARS = dict(lr=0.3, lr_final=0.0, weight_decay=1e-6, decay_norms=0)
PRESETS = {
    "recipe": {"auto": AUTO, "published": PUBLISHED},
    "dataset": DATASET_PRESETS,
    "optimizer": {"adamw": ADAMW, "lars": LARS},
}
