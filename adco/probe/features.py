"""Features of the frozen trunk, and those of all processes together."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adco.data.views import normalised
from adco.encoder import Trunk
from ops.distributed import World, gather_uneven_rows
from ops.errors import InputError


class Features(NamedTuple):
    rows: Tensor  # [n, d]
    labels: Tensor  # [n] int64

    def batches(self, size: int = 1024):
        """(rows [size, d], labels [size]) in order; the last batch may be smaller."""
        return zip(self.rows.split(size), self.labels.split(size), strict=True)


@torch.no_grad()
def extract_features(encoder, loader, device, unit: bool = True, check: bool = False) -> Features:
    """Trunk features of all pictures of a loader of (bytes, labels), BatchNorm in eval mode.

    unit: divide each by its length.  check: raise InputError where one is not finite.
    A batch may be empty, where broken pictures are left out. The encoder is left in its mode.
    """
    trunk = Trunk(encoder)
    was_training = encoder.training
    encoder.eval()
    rows, labels = [], []
    for pictures, numbers in loader:
        # kNN and logistic regression need float32, whatever the trunk computes in.
        features = trunk(normalised(pictures.to(device, non_blocking=True))).float()  # [n, d]
        if check:
            check_features(features)
        rows.append(F.normalize(features, dim=1) if unit else features)
        labels.append(numbers.to(device, non_blocking=True))
    encoder.train(was_training)
    return Features(torch.cat(rows), torch.cat(labels))


def check_features(features: Tensor) -> None:
    """Raise InputError where the length of a row of [n, d] is not finite."""
    if not features.norm(dim=1).isfinite().all():
        raise InputError(
            "the trunk gives features that are not finite: its weights are too large, or its "
            "BatchNorm statistics are broken; take another checkpoint"
        )


def gather_features(share: Features, world: World) -> Features:
    """Features of all processes, in the order of the pictures.

    The order is not exact where broken pictures are left out.
    """
    # Gathered they lie one process after the other.
    rows, labels = (gather_uneven_rows(part, world) for part in share)
    # Process r holds pictures r, r + R, r + 2R, ... (check_loader): sorting by number interleaves.
    held = torch.cat([torch.arange(r, len(labels), world.size) for r in range(world.size)])
    order = torch.argsort(held).to(labels.device)
    return Features(rows[order], labels[order])
