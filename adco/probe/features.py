"""Features of the frozen trunk: every process has those of its own share of the pictures."""

from collections.abc import Iterator
from math import nan
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adco.data.views import normalised
from adco.encoder import Trunk
from ops.distributed import World, sum_across_ranks_
from ops.errors import InputError

BLOCK = 4096  # rows that are computed with at a time


class Features(NamedTuple):
    rows: Tensor  # [n, d]; int16: their directions
    labels: Tensor  # [n] int64


def directions(rows: Tensor) -> Tensor:
    """[n, d] int16: each row in units of 1/32767 of its largest number, without its length.

    As small as half precision and finer: kNN scores moved by at most 0.03 points, with half
    precision by up to 0.16 (docs/probe.md). A row that is not finite becomes 0.
    """
    largest = rows.abs().amax(dim=1, keepdim=True)
    return (rows / largest * 32767).round().nan_to_num().to(torch.int16)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [n, d] of unit length, float32, of directions. Other rows stay as they are."""
    if rows.dtype != torch.int16:
        return rows
    rows = rows.float()
    return F.normalize(rows, dim=1, out=rows)


def blocks(*shares: Features):
    """(rows [BLOCK, d], labels [BLOCK]) of one share after the other; the last may be smaller."""
    for rows, labels in shares:
        for block, numbers in zip(rows.split(BLOCK), labels.split(BLOCK), strict=True):
            yield unit_rows(block), numbers


@torch.no_grad()
def features_of(network: nn.Module, loader, check: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
    """(features [n, d] float32 on the network's device, labels [n]) of each batch of a loader of
    (bytes, labels).

    check: raise InputError where a feature is not finite.
    """
    device = next(network.parameters(), torch.empty(0)).device
    for pictures, labels in loader:
        if not len(labels):  # all are broken: most models of timm take no batch of none
            pictures = pictures.new_zeros(1, *pictures.shape[1:])
        # The sum of their squares needs float32, whatever the network computes in.
        features = network(normalised(pictures.to(device, non_blocking=True))).float()
        features = features[: len(labels)]
        if check:
            check_features(features)
        yield features, labels


def extract_features(encoder, loader, number: int, *, unit=True, check=False) -> Features:
    """Trunk features of all pictures of a loader of (bytes, labels), BatchNorm in eval mode.

    number: of the pictures; there may be fewer, and batches may be empty, where broken ones are
    left out.  unit: keep their directions.  check: as features_of. The encoder is left in its mode.
    """
    device, was_training = next(encoder.parameters()).device, encoder.training
    encoder.eval()
    # Rows in their final place from the start: to join batches takes the memory twice.
    dtype = torch.int16 if unit else torch.float32
    rows = torch.empty(number, encoder.inplanes, dtype=dtype, device=device)  # [n, d]
    labels = [torch.empty(0, dtype=torch.long, device=device)]  # there may be no batch
    end = 0
    for features, numbers in features_of(Trunk(encoder), loader, check):
        place, end = slice(end, end + len(features)), end + len(features)
        rows[place] = directions(features) if unit else features
        labels.append(numbers.to(device, non_blocking=True))
    encoder.train(was_training)
    return Features(rows[:end], torch.cat(labels))


def check_features(features: Tensor) -> None:
    """Raise InputError where the length of a row of [n, d] is not finite."""
    if not features.norm(dim=1).isfinite().all():
        raise InputError(
            "the trunk gives features that are not finite: its weights are too large, or its "
            "BatchNorm statistics are broken; take another checkpoint"
        )


def effective_rank(rows: Tensor, world: World) -> float:
    """exp of the entropy of the singular values, divided by their sum, of all processes' features.

    RankMe (Garrido et al., arXiv:2210.02885), from 1 (one direction) to min(n, d) (all alike). As
    there, the features are not centred. Its epsilon is not needed: 0 log 0 is 0 here.
    rows: [n, d] of this process. nan where one is not finite. Every process calls it.
    """
    # Singular values are the roots of the eigenvalues of F^T F, a sum over rows: no row travels.
    # MPS has no float64.
    rows = (rows.cpu() if rows.device.type == "mps" else rows).double()
    gram = sum_across_ranks_(rows.T @ rows, world)  # [d, d]
    if not gram.isfinite().all():
        return nan
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()  # [d]
    return torch.special.entr(values / values.sum()).sum().exp().item()
