"""Encoders: a torchvision ResNet that ends in a projection head; trunk weights in and out."""

import json
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from adco.trunk_names import find_trunk, is_counter
from ops import checkpoint
from ops.errors import InputError, shown, some
from ops.options import ARCHITECTURES, STEMS


def build_trunk(arch: str, stem: str = "imagenet", channels: int = 3) -> ResNet:
    """A ResNet with torchvision's parameter names, and a classifier `fc` still to be replaced.

    stem "small": a 3x3 first convolution without stride and no max-pool, for small pictures.
    channels: C of the pictures [N, C, H, W].
    """
    if arch not in ARCHITECTURES:
        raise InputError(f"arch={arch!r}: expected one of {', '.join(ARCHITECTURES)}")
    if arch == "resnet10":
        trunk = ResNet(BasicBlock, [1, 1, 1, 1])
    else:
        trunk = torchvision.models.get_model(arch)
    if stem == "small" or channels != 3:
        shape = {"imagenet": (7, 2, 3), "small": (3, 1, 1)}[stem]  # side, stride, padding
        trunk.conv1 = nn.Conv2d(channels, 64, *shape, bias=False)
        nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
    # The stem usual for CIFAR: the other one would leave 8 of 32 pixels a side.
    if stem == "small":
        trunk.maxpool = nn.Identity()
    return trunk


def build_encoder(
    arch: str, dim: int, mlp: bool, stem: str = "imagenet", channels: int = 3
) -> ResNet:
    """A trunk with the head fc = Linear(d, d), ReLU, Linear(d, dim); mlp False: Linear(d, dim)."""
    encoder = build_trunk(arch, stem, channels)
    width = encoder.fc.in_features  # d
    last = nn.Linear(width, dim)
    encoder.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last) if mlp else last
    return encoder


class Trunk(nn.Module):
    """The part of an encoder below its head: pictures [N, C, H, W] to features [N, d].

    Shares the encoder's weights.
    """

    def __init__(self, encoder: ResNet):
        super().__init__()
        # torchvision's ResNet applies its children in this order.
        below_head = (module for name, module in encoder.named_children() if name != "fc")
        self.layers = nn.Sequential(*below_head)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures).flatten(1)


@dataclass(frozen=True)
class TrunkWeights:
    """A trunk read from a checkpoint: torchvision's names, no head."""

    weights: dict[str, Tensor]
    head: dict[str, Tensor]  # what the file has as `fc` of this trunk
    left_out: dict[str, int]  # number of the file's other tensors, by their part of it
    source: str  # the file
    sha256: str  # of the file
    arch: str
    stem: str = "imagenet"
    channels: int = 3  # of the pictures it takes
    epoch: int | None = None  # epochs trained
    ours: bool = False  # whether this program made the file
    classes: list[str] | None = None  # of a classifier's rows, in files of ours

    def build(self) -> ResNet:
        """A ResNet with these weights and a fresh `fc`. Raises what load_into_ does."""
        trunk = build_trunk(self.arch, self.stem, self.channels)
        self.load_into_(trunk)
        return trunk

    def load_into_(self, trunk: ResNet) -> None:
        """Give a ResNet these weights; its `fc` stays.

        Raises InputError naming keys that are missing, left over, of another shape or not finite.
        """
        # Old torchvision files lack batch counters, which a BatchNorm with a momentum never reads.
        own = {
            name: value
            for name, value in trunk.state_dict().items()
            if name.startswith("fc.") or is_counter(name)
        }
        checkpoint.load_strictly(trunk, {**own, **self.weights}, self.source)

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


def read_trunk(path: str, encoder: str = "query", arch: str | None = None) -> TrunkWeights:
    """The trunk in a checkpoint of any program that uses torchvision's ResNets, and safetensors.

    encoder: query or key, where the file holds both.
    arch: of a file that does not name its own; resnet50 by default.
    Raises InputError where the file holds no such trunk, or names another architecture.
    """
    state = checkpoint.load(path)

    # What the file says of itself.
    named, config = state.get("arch"), own_config(state)
    if named and named not in ARCHITECTURES:
        raise InputError(
            f"{path} holds a {shown(named)}; this program reads {', '.join(ARCHITECTURES)}"
        )
    if arch and named and arch != named:
        raise InputError(f"{path} holds a {named}, not a {arch}: --arch {named}")
    arch = named or arch or "resnet50"

    # Files of ours keep more beside their state_dict, such as the best weights of a probe.
    with torch.device("meta"):
        names = build_trunk(arch).state_dict()
    names = {name for name in names if not name.startswith("fc.") and not is_counter(name)}
    content = state.get("state_dict", state) if config else state
    weights, head, left_out = find_trunk(content, names, encoder, str(path))
    stem, channels = (config.get(n, state.get(n)) for n in ("stem", "channels"))
    epoch, channels = (str(number) for number in (state.get("epoch"), channels))
    return TrunkWeights(
        # A run with --channels_last saves its weights in that layout.
        {name: value.contiguous() for name, value in weights.items()},
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
    )


def own_config(state: dict) -> dict:
    """The options of the run that made a checkpoint; empty where it is none of ours."""
    try:
        config = json.loads(state["config"])
    except (KeyError, TypeError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
