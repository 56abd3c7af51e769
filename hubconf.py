"""Pre-trained encoders through torch.hub.

model = torch.hub.load("/path/to/this/folder", "adco_resnet50", source="local", weights="FILE")
"""

import sys
from contextlib import contextmanager

dependencies = ["torch", "torchvision"]


def adco_resnet50(weights: str, encoder: str = "query"):
    """A ResNet-50 in eval mode, without its head: pictures [N, 3, H, W] to features [N, 2048].

    weights: a checkpoint of this program, the published AdCo, MoCo, torchvision, and others.
    encoder: query or key, where the file holds both.
    Raises InputError, a ValueError, where the file is no ResNet-50.
    """
    # Here, since torch.hub checks `dependencies` after it has imported this file.
    from torch import nn

    with own_modules():
        from adco.encoder import read_trunk

        model = read_trunk(weights, encoder, "resnet50").build()
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
