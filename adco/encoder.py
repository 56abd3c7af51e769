"""Encoders: a trunk that ends in a projection head; trunk weights in and out.

A trunk is a torchvision ResNet or, as timm:NAME, a model of timm inside a Backbone. Both give
features [N, inplanes] to the layer `fc`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from adco.trunk_names import find_trunk, is_counter
from ops import checkpoint
from ops.errors import InputError, one_line, optional, shown, some
from ops.options import ARCHITECTURES, STEMS, TIMM, differences


class Backbone(nn.Module):
    """A timm model as `trunk`, under a head `fc` still to be set.

    Built without dropout and without drop path: nothing in it draws at random, so a run that goes
    on takes the steps of one that never stopped.
    """

    def __init__(self, arch: str, channels: int):
        super().__init__()
        timm, name = optional("timm", f"arch={arch}"), arch.removeprefix(TIMM)
        if name not in timm.list_models():
            near = " or ".join(get_close_matches(name, timm.list_models())) or "timm.list_models()"
            raise InputError(f"arch={arch}: timm {timm.__version__} has no such model; try {near}")
        self.args = {"in_chans": channels, "dynamic_img_size": True}
        try:  # positions that follow the size of the pictures, where a model has positions
            self.trunk = timm.create_model(name, num_classes=0, **self.args)
        except TypeError:
            del self.args["dynamic_img_size"]
            self.trunk = timm.create_model(name, num_classes=0, **self.args)
        for module in self.trunk.modules():
            for rate in ("p", "drop_prob", "drop_rate"):
                if isinstance(getattr(module, rate, None), float):
                    setattr(module, rate, 0.0)
        self.arch, self.fc = arch, nn.Identity()
        self.inplanes = self.trunk.head_hidden_size
        # Layers that timm's own files have on top: a name, several, or none.
        heads = self.trunk.pretrained_cfg.get("classifier") or []
        self.heads = [heads] if isinstance(heads, str) else heads

    def forward(self, pictures: Tensor) -> Tensor:
        return self.fc(self.trunk(pictures))


Encoder = ResNet | Backbone
RUN = ("config", "data", "best_acc", "best_of", "best_acc1")  # what a run of ours says of itself


def build_trunk(arch: str, stem: str = "imagenet", channels: int = 3) -> Encoder:
    """A ResNet with torchvision's parameter names and a classifier, or a Backbone with none, whose
    `fc` is still to be replaced.

    stem "small": a 3x3 first convolution without stride and no max-pool, for small pictures.
    channels: C of the pictures [N, C, H, W].
    """
    if arch not in ARCHITECTURES:
        raise InputError(f"arch={arch!r}: expected one of {', '.join(ARCHITECTURES)}")
    if arch.startswith(TIMM):
        if stem != "imagenet":
            raise InputError(f"stem={stem}: {arch} has first layers of its own; --stem imagenet")
        return Backbone(arch, channels)
    small = arch == "resnet10"
    trunk = ResNet(BasicBlock, [1, 1, 1, 1]) if small else torchvision.models.get_model(arch)
    if stem == "small" or channels != 3:
        shape = {"imagenet": (7, 2, 3), "small": (3, 1, 1)}[stem]  # side, stride, padding
        trunk.conv1 = nn.Conv2d(channels, 64, *shape, bias=False)
        nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
    # The stem usual for CIFAR: the other one would leave 8 of 32 pixels a side.
    if stem == "small":
        trunk.maxpool = nn.Identity()
    return trunk


def build_encoder(
    arch: str, dim: int, mlp: int, stem: str = "imagenet", channels: int = 3,
    mlp_width: int | None = None, mlp_bn: bool = False,
) -> Encoder:  # fmt: skip
    """A trunk with the head fc = Linear(d, d), ReLU, Linear(d, dim); mlp 0: Linear(d, dim).

    mlp: number of hidden layers.  mlp_width: of each of them, d by default.  mlp_bn: whether each
    is followed by BatchNorm, which takes the place of its bias.
    """
    encoder = build_trunk(arch, stem, channels)
    before, layers = encoder.inplanes, []
    width = (mlp and mlp_width) or before
    last = nn.Linear(width, dim)  # drawn first: a seed gives the weights that it always gave
    for _ in range(mlp):
        norm = [nn.BatchNorm1d(width)] * mlp_bn
        layers += [nn.Linear(before, width, bias=not mlp_bn), *norm, nn.ReLU()]
        before = width
    encoder.fc = nn.Sequential(*layers, last) if layers else last
    return encoder


def has_batchnorm(encoder: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())


@torch.no_grad()
def check_sides(encoder: Encoder, channels: int, sides: Iterable[int]) -> None:
    """Raise InputError where a model of timm does not take pictures of one of these sides. Leaves
    it in eval mode.
    """
    for side in sides if isinstance(encoder, Backbone) else ():
        try:
            found = tuple(encoder.trunk.eval()(torch.zeros(1, channels, side, side)).shape)
            if found != (1, encoder.inplanes):
                raise ValueError(f"it gives {found}, not (1, {encoder.inplanes})")
        except (RuntimeError, AssertionError, ValueError) as error:
            why = f"{encoder.arch} takes no pictures of {side} pixels ({one_line(str(error))})"
            raise InputError(f"{why}; choose other --image_size or --size_crops") from error


class Trunk(nn.Module):
    """The part of an encoder below its head: pictures [N, C, H, W] to features [N, d].

    Shares the encoder's weights.
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        # An encoder applies its children in this order.
        below_head = (module for name, module in encoder.named_children() if name != "fc")
        self.layers = nn.Sequential(*below_head)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures).flatten(1)


@dataclass(frozen=True)
class TrunkWeights:
    """A trunk read from a checkpoint: the names of build_trunk, no head."""

    weights: dict[str, Tensor]
    head: dict[str, Tensor]  # what the file has on top of this trunk
    left_out: dict[str, int]  # number of the file's other tensors, by their part of it
    source: str  # the file
    sha256: str  # of the file
    arch: str
    stem: str = "imagenet"
    channels: int = 3  # of the pictures it takes
    epoch: int | None = None  # epochs trained
    ours: bool = False  # whether this program made the file
    classes: list[str] | None = None  # of a classifier's rows, in files of ours
    run: dict = field(default_factory=dict)  # of the run that made it: its options, data, scores

    def build(self) -> Encoder:
        """A trunk with these weights and an `fc` as build_trunk's. Raises what load_into_ does."""
        trunk = build_trunk(self.arch, self.stem, self.channels)
        self.load_into_(trunk)
        return trunk

    def load_into_(self, trunk: Encoder) -> None:
        """Give an encoder these weights; its `fc` stays.

        Raises InputError naming keys that are missing, left over, of another shape or not finite.
        """
        # Old torchvision files lack batch counters, which a BatchNorm with a momentum never reads.
        full = trunk.state_dict()
        own = {n: full[n] for n in full if n.startswith("fc.") or is_counter(n)}
        source = f"{self.source}, taken for a {self.arch},"
        checkpoint.load_strictly(trunk, {**own, **self.weights}, source)

    def classifier(self) -> dict[str, Tensor]:
        """{"weight", "bias"} of the file's linear classifier; empty where it has none.

        A projection head of two layers is none: it has fc.0.weight, ...
        """
        # The published program names its layer fc.1 where dropout, fc.0, comes before it.
        at = "1." if "1.weight" in self.head and "0.weight" not in self.head else ""
        found = {n: self.head[at + n] for n in ("weight", "bias") if at + n in self.head}
        return found if len(found) == 2 else {}

    def tell_left_out(self, say, *used: str) -> None:
        """One line about the file's tensors that are not read. used: parts that are."""
        parts = [f"{part} ({n})" for part, n in self.left_out.items() if part not in used]
        if parts:
            say("left out: " + some(parts).replace(")", " tensors)", 1))


def network_of(trunk: TrunkWeights, of: str, sides=()) -> nn.Module:
    """Pictures [N, C, H, W] to features [N, d]: a file's trunk, or with the head that it has on it.

    sides: of the pictures. Raises InputError where it has none, or does not take such pictures.
    """
    encoder = trunk.build()
    check_sides(encoder, trunk.channels, sides)
    if of == "trunk":
        return Trunk(encoder)
    head, layers = trunk.classifier() or trunk.head, nn.Sequential()
    head = {f"0.{name}": value for name, value in head.items()} if "weight" in head else head
    unknown = InputError(f"{trunk.source} has no head on its trunk that is known; take --of trunk")
    if not head or not all(name[0].isdecimal() for name in head):
        raise unknown
    # Linear layers, which BatchNorm may follow, with a ReLU between two of them.
    for number in sorted({name.partition(".")[0] for name in head}, key=int):
        weight, mean = (head.get(f"{number}.{name}") for name in ("weight", "running_mean"))
        if mean is not None:
            layer = nn.BatchNorm1d(len(mean), affine=weight is not None)
        elif weight is None or weight.dim() != 2:
            raise unknown
        else:
            layer = nn.Linear(weight.shape[1], len(weight), bias=f"{number}.bias" in head)
            if len(layers):
                layers.add_module(f"relu{number}", nn.ReLU())
        layers.add_module(number, layer)
    checkpoint.load_strictly(layers, head, trunk.source)
    return nn.Sequential(Trunk(encoder), layers)


def note_other_views(trunk: TrunkWeights, config, say) -> None:
    """One line where the test views are not those that the trunk's own run had."""
    own, names = trunk.run.get("config", {}), ("image_size", "eval_crop")
    if other := differences(own, {name: getattr(config, name) for name in names}):
        say(f"note: in the run of the checkpoint {', '.join(other)}")


def read_trunk(path: str, encoder: str = "query", arch: str | None = None) -> TrunkWeights:
    """The trunk in a checkpoint of any program that uses torchvision's ResNets or models of timm,
    and in safetensors.

    encoder: query or key, where the file holds both.
    arch: of a file that does not name its own; resnet50 by default.
    Raises InputError where the file holds no such trunk, or names another architecture.
    """
    state = checkpoint.load(path)

    # What the file says of itself.
    named, config = state.get("arch"), own_config(state)
    if arch == f"{TIMM}{named}":  # in a file of timm
        named = arch
    if named and named not in ARCHITECTURES:
        fault = f"{path} holds a {shown(named)}"
        raise InputError(f"{fault}; this program reads {', '.join(ARCHITECTURES)}")
    if arch and named and arch != named:
        raise InputError(f"{path} holds a {named}, not a {arch}: --arch {named}")
    arch = named or arch or "resnet50"

    # Files of ours keep more beside their state_dict, such as the best weights of a probe.
    with torch.device("meta"):
        trunk = build_trunk(arch)
    below, heads = ("trunk.", trunk.heads) if arch.startswith(TIMM) else ("", ["fc"])
    own = (name for name in trunk.state_dict() if not (name.startswith("fc.") or is_counter(name)))
    names = dict.fromkeys(name.removeprefix(below) for name in own)
    content = state.get("state_dict", state) if config else state
    weights, head, left_out = find_trunk(content, names.keys(), heads, encoder, str(path))
    stem, channels = (str(config.get(n, state.get(n))) for n in ("stem", "channels"))
    epoch = str(state.get("epoch"))
    return TrunkWeights(
        # A run with --channels_last saves its weights in that layout.
        {below + name: value.contiguous() for name, value in weights.items()},
        head=head,
        left_out=left_out,
        source=str(path),
        sha256=checkpoint.sha256(path),
        arch=arch,
        stem=stem if stem in STEMS else "imagenet",
        channels=int(channels) if channels.isdecimal() else 3,
        epoch=int(epoch) if epoch.isdecimal() else None,
        ours=bool(config) or state.get("licence") == "MIT",
        classes=state.get("classes") if config else None,
        run={n: x for n, x in {**state, "config": config}.items() if config and n in RUN},
    )


def own_config(state: dict) -> dict:
    """The options of the run that made a checkpoint; empty where it is none of ours."""
    try:
        config = json.loads(state["config"])
    except (KeyError, TypeError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
