"""The effective rank of features: how good they are, as far as that shows without labels."""

from math import nan

import torch
from torch import Tensor

from ops.distributed import World, sum_across_ranks_


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
