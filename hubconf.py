"""Pre-trained encoders through torch.hub.

model = torch.hub.load("/path/to/this/folder", "adco_resnet50", source="local", weights="FILE")
"""

dependencies = ["torch", "torchvision"]


def adco_resnet50(weights: str, encoder: str = "query"):
    """A ResNet-50 in eval mode, without its head: pictures [N, 3, H, W] to features [N, 2048].

    weights: a checkpoint of this program, the published AdCo, MoCo or torchvision.
    encoder: query or key, where the file holds both.
    Raises ops.errors.InputError where the file is no ResNet-50.
    """
    # Here, since torch.hub checks `dependencies` after it has imported this file.
    from torch import nn

    from adco.encoder import read_trunk

    model = read_trunk(weights, encoder, "resnet50").build()
    model.fc = nn.Identity()
    return model.eval()
