"""Pre-trained encoders through torch.hub.

model = torch.hub.load("/path/to/this/folder", "adco_encoder", source="local", weights="FILE")
"""

import sys
from contextlib import contextmanager

dependencies = ["torch", "torchvision"]


def adco_resnet50(weights: str, encoder: str = "query"):
    """A ResNet-50: adco_encoder where the file holds one. Raises InputError where it does not."""
    return adco_encoder(weights, encoder, "resnet50")


def adco_encoder(weights: str, encoder: str = "query", arch: str | None = None):
    """An encoder in eval mode, without its head: pictures [N, C, H, W] to features [N, d].

    weights: a checkpoint of this program, the published AdCo, MoCo, torchvision, timm, and others.
    encoder: query or key, where the file holds both.
    arch: where the file does not name it (resnet50), or timm:NAME.
    Raises InputError, a ValueError, where the file holds no such encoder.
    """
    # Here, since torch.hub checks `dependencies` after it has imported this file.
    from torch import nn

    with own_modules():
        from adco.encoder import read_trunk

        model = read_trunk(weights, encoder, arch).build()
    model.fc = nn.Identity()
    return model.eval()


@contextmanager
def own_modules():
    """Inside the block `adco` and `ops` are those of this folder; the caller's stay his own."""
    # torch.hub has put this folder first in sys.path.
    theirs = take_out_modules()
    try:
        yield
    finally:
        take_out_modules()
        sys.modules.update(theirs)


def take_out_modules() -> dict:
    """Take modules of these names out of sys.modules, and return them."""
    names = [name for name in sys.modules if name.split(".")[0] in ("adco", "ops")]
    return {name: sys.modules.pop(name) for name in names}
