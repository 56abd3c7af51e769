"""The learnable adversaries: W, their velocity, their ascent."""

import torch
from torch import Tensor, nn

from adco.objective import directions_of


class NegativeBank(nn.Module):
    """K adversaries as columns of W [D, K] with velocity v [D, K], float32 buffers.

    Starts from random normal columns that depend on `seed` alone, so every process has the same.
    The state dict is {"W", "v"}, as in the published checkpoints.
    """

    def __init__(self, num_negatives: int = 65536, dim: int = 128, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("W", torch.randn(dim, num_negatives, generator=generator))
        self.register_buffer("v", torch.zeros(dim, num_negatives))

    @property
    def num_negatives(self) -> int:
        return self.W.shape[1]

    def directions(self) -> Tensor:
        """Unit columns [D, K]: all that the encoder ever sees."""
        return directions_of(self.W)

    @torch.no_grad()
    def ascend_(self, gradient: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        """One step of v <- mu v + g + lambda W, W <- W - eta v  (derived in objective.py).

        gradient: g [D, K], minus the gradient of the objective, the same on every process.
        """
        self.v.mul_(momentum).add_(gradient).add_(self.W, alpha=weight_decay)
        self.W.add_(self.v, alpha=-lr)

    @torch.no_grad()
    def write_columns_(self, keys: Tensor, first: int) -> int:
        """Write keys [M, D] into the columns from `first` on, round and round. Returns the next
        column.
        """
        columns = (first + torch.arange(len(keys), device=keys.device)) % self.num_negatives
        last_round = slice(-self.num_negatives, None)  # of two keys for one column the later stays
        self.W[:, columns[last_round]] = keys.T[:, last_round].to(self.W.dtype)
        return (first + len(keys)) % self.num_negatives
