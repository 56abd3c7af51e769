"""Encoders: a torchvision ResNet that ends in a projection head."""

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from ops.errors import InputError
from ops.options import ARCHITECTURES


def build_trunk(arch: str, stem: str = "imagenet") -> ResNet:
    """A ResNet with torchvision's parameter names and a classifier `fc` still to be replaced.

    stem "small": 3x3 first convolution without stride and no max-pool, for small pictures.
    """
    if arch not in ARCHITECTURES:
        raise InputError(f"arch={arch!r}: expected one of {', '.join(ARCHITECTURES)}")
    trunk = (
        ResNet(BasicBlock, [1, 1, 1, 1])
        if arch == "resnet10"
        else torchvision.models.get_model(arch)
    )
    if stem == "small":
        trunk.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
        trunk.maxpool = nn.Identity()
    return trunk


def build_encoder(arch: str, dim: int, mlp: bool, stem: str = "imagenet") -> ResNet:
    """Trunk with head fc = Linear(d, d), ReLU, Linear(d, dim); mlp False: one Linear(d, dim)."""
    encoder = build_trunk(arch, stem)
    width = encoder.fc.in_features
    last = nn.Linear(width, dim)
    encoder.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last) if mlp else last
    return encoder


class Trunk(nn.Module):
    """The frozen part of an encoder: pictures [N, 3, H, W] to features [N, d]. Shares its
    weights.
    """

    def __init__(self, encoder: ResNet):
        super().__init__()
        self.layers = nn.Sequential(
            *(module for name, module in encoder.named_children() if name != "fc")
        )

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures).flatten(1)
