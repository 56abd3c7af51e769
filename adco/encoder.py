"""Encoders: a torchvision ResNet that ends in a projection head; trunk weights in and out."""

import json
from dataclasses import dataclass

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from ops import checkpoint
from ops.errors import InputError
from ops.options import ARCHITECTURES


def build_trunk(arch: str, stem: str = "imagenet") -> ResNet:
    """A ResNet with torchvision's parameter names, and a classifier `fc` still to be replaced.

    stem "small": a 3x3 first convolution without stride and no max-pool, for small pictures.
    """
    if arch not in ARCHITECTURES:
        raise InputError(f"arch={arch!r}: expected one of {', '.join(ARCHITECTURES)}")
    if arch == "resnet10":
        trunk = ResNet(BasicBlock, [1, 1, 1, 1])
    else:
        trunk = torchvision.models.get_model(arch)
    # The stem usual for CIFAR: the other one would leave 8 of 32 pixels a side.
    if stem == "small":
        trunk.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
        trunk.maxpool = nn.Identity()
    return trunk


def build_encoder(arch: str, dim: int, mlp: bool, stem: str = "imagenet") -> ResNet:
    """A trunk with the head fc = Linear(d, d), ReLU, Linear(d, dim); mlp False: Linear(d, dim)."""
    encoder = build_trunk(arch, stem)
    width = encoder.fc.in_features  # d
    last = nn.Linear(width, dim)
    encoder.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last) if mlp else last
    return encoder


class Trunk(nn.Module):
    """The part of an encoder below its head: pictures [N, 3, H, W] to features [N, d].

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
    source: str  # the file
    arch: str
    stem: str = "imagenet"
    epoch: int | None = None  # epochs trained
    ours: bool = False  # whether this program made the file

    def build(self) -> ResNet:
        """A ResNet with these weights and a fresh `fc`.

        Raises InputError naming the keys that are missing, left over or of another shape.
        """
        trunk = build_trunk(self.arch, self.stem)
        # Old torchvision files lack batch counters, which a BatchNorm with a momentum never reads.
        fresh = {
            name: value
            for name, value in trunk.state_dict().items()
            if name.startswith("fc.") or name.endswith("num_batches_tracked")
        }
        checkpoint.load_strictly(trunk, {**fresh, **self.weights}, self.source)
        return trunk


PREFIXES = {"query": "encoder_q.", "key": "encoder_k."}


def read_trunk(path: str, encoder: str = "query", arch: str | None = None) -> TrunkWeights:
    """The trunk in a checkpoint of ours, the published AdCo, MoCo v1 or v2, or torchvision.

    encoder: query or key, where the file holds both.
    arch: of a file that does not name its own; resnet50 by default.
    Raises InputError where the file holds no such trunk, or names another architecture.
    """
    # torchvision's files are a state_dict, all others hold one.
    state = checkpoint.load(path)
    names = state.get("state_dict", state)
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path!r} holds no state_dict; expected a dictionary of named tensors")

    # Of two encoders, the one asked for; a file with one has no prefix.
    names = checkpoint.without_module(names)
    prefix = PREFIXES[encoder]
    if any(name.startswith(tuple(PREFIXES.values())) for name in names):
        names = {
            n.removeprefix(prefix): value for n, value in names.items() if n.startswith(prefix)
        }

    # Everything but the head.
    weights = {name: value for name, value in names.items() if name.split(".")[0] != "fc"}
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(
            f"{path!r} holds no weights of a {encoder} encoder; expected a state_dict with names "
            f"such as module.{prefix}conv1.weight or conv1.weight, "
            f"found {', '.join(map(str, list(state)[:5])) or 'nothing'}"
        )
    # A run with --channels_last saves its weights in that layout.
    weights = {name: value.contiguous() for name, value in weights.items()}

    # What the file says of itself.
    named = state.get("arch")
    if arch and named and arch != named:
        raise InputError(f"{path} holds a {named}, not a {arch}: --arch {named}")
    config = own_config(state)
    return TrunkWeights(
        weights,
        source=str(path),
        arch=named or arch or "resnet50",
        stem=config.get("stem", "imagenet"),
        epoch=state.get("epoch"),
        ours=bool(config),
    )


def own_config(state: dict) -> dict:
    """The options of the run that made a checkpoint; empty where it is none of ours."""
    try:
        config = json.loads(state["config"])
    except (KeyError, TypeError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
