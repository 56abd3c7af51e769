"""The learnable adversaries: W, their velocity, their ascent, in one place or spread over
processes.
"""

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from adco.objective import directions_of
from ops.distributed import ALONE, current_world, gather_rows
from ops.errors import InputError


class NegativeBank(nn.Module):
    """K adversaries as columns of W [D, K] with velocity v [D, K], float32 buffers.

    Starts from random normal columns that depend on `seed` alone, so every process has the same.
    The state dict is {"W", "v"}, as in the published checkpoints.

    shard: of the R processes of the group, which is up already, each keeps the K / R columns that
    are its own, [D, K / R]. The state dict is whole all the same, on every process, and so is the
    one to be loaded: both are for all processes to call or for none, and neither cares how many
    there were before. Raises InputError where K does not split.
    """

    def __init__(
        self, num_negatives: int = 65536, dim: int = 128, seed: int = 0, shard: bool = False
    ):
        super().__init__()
        world = current_world()
        self.shards = world if shard else ALONE  # the processes that hold the columns together
        self.copies = ALONE if shard else world  # the processes that hold the same columns
        if num_negatives % self.shards.size:
            raise InputError(
                f"cluster={num_negatives} columns do not split over {self.shards.size} processes; "
                f"take a multiple of {self.shards.size}, or --bank replicated"
            )
        generator = torch.Generator().manual_seed(seed)
        whole = torch.randn(dim, num_negatives, generator=generator)
        self.register_buffer("W", self._own_columns(whole))
        self.register_buffer("v", torch.zeros_like(self.W))

    @property
    def num_negatives(self) -> int:
        """K, those of other processes included."""
        return self.W.shape[1] * self.shards.size

    def directions(self) -> Tensor:
        """Unit columns, all that the encoder ever sees: [D, K], of a sharded bank [D, K / R]."""
        return directions_of(self.W)

    @torch.no_grad()
    def ascend_(
        self,
        gradient: Tensor,
        lr: float,
        momentum: float,
        weight_decay: float,
        dropped: Tensor | None = None,
    ) -> None:
        """One step of v <- mu v + g + lambda W, W <- W - eta v  (derived in objective.py).

        gradient: g, of the shape of W, minus the gradient of the objective; the same on every
        process that holds the same columns.
        dropped: 0-d float32, 1 where W and v are to stay as they are. The device reads it, not the
        host.
        """
        sgd(
            [self.W], [gradient.contiguous()], [self.v], fused=True, found_inf=dropped,
            lr=lr, momentum=momentum, weight_decay=weight_decay,
            dampening=0, nesterov=False, maximize=False,
        )  # fmt: skip

    @torch.no_grad()
    def write_columns_(self, keys: Tensor, first: int) -> int:
        """Write keys [M, D] into the columns from `first` on, round and round. Returns the next
        column.

        In place of a key that is not finite the column keeps what it has.
        """
        end = first + len(keys)
        keys = keys[-self.num_negatives :]  # of two keys for one column the later stays
        columns = torch.arange(end - len(keys), end) % self.num_negatives
        columns = columns - self.shards.rank * self.W.shape[1]
        here = ((columns >= 0) & (columns < self.W.shape[1])).nonzero()[:, 0]
        # Found on the CPU: a device would have to be waited for to say how many there are.
        columns, here = (x.to(keys.device, non_blocking=True) for x in (columns[here], here))
        new = keys[here].T.to(self.W.dtype)
        self.W[:, columns] = torch.where(new.isfinite().all(dim=0), new, self.W[:, columns])
        return end % self.num_negatives

    def _own_columns(self, whole: Tensor) -> Tensor:
        """This process's part [D, K / R] of [D, K]."""
        return whole.chunk(self.shards.size, dim=1)[self.shards.rank].clone()

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, part in self.named_buffers():
            if self.shards.size > 1:
                parts = gather_rows(part[None], self.shards)  # [R, D, K / R]
                destination[prefix + name] = parts.transpose(0, 1).flatten(1)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        own = {
            name: self._own_columns(whole) if name in (prefix + "W", prefix + "v") else whole
            for name, whole in state_dict.items()
        }
        super()._load_from_state_dict(own, prefix, *rest)
