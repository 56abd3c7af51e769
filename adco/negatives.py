"""The learnable adversaries: W, their velocity and their ascent, spread over the processes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.sgd import sgd

from ops.distributed import current_world, gather_uneven_rows, sum_across_ranks_

SHORTEST = 1e-12  # a gradient that is shorter turns nothing


class NegativeBank(nn.Module):
    """K adversaries as columns of W [D, K] with velocity v [D, K], float32 buffers.

    Starts from random normal columns that depend on `seed` alone, whatever the processes.

    Where a process group is up, each of its R processes keeps its own K / R columns, [D, K / R]
    (the first ones one more, where K does not split evenly). The state dict is {"W", "v"}, whole
    on every process, as in the published checkpoints; the one to be loaded is whole too. Saving and
    loading are for all processes to call, and their number may change in between.
    Raises ValueError where a process would have no column.
    """

    def __init__(self, num_negatives: int = 65536, dim: int = 128, seed: int = 0):
        super().__init__()
        self.num_negatives = num_negatives
        self.world = current_world()  # the processes that hold the columns together
        if num_negatives < self.world.size:
            raise ValueError(
                f"{num_negatives} negatives for {self.world.size} processes: expected one or more "
                "for each; take more negatives"
            )
        whole = torch.randn(dim, num_negatives, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("W", self.own(whole))
        self.register_buffer("v", torch.zeros_like(self.W))
        # What each column was given since it was last looked at (pretrain/monitor.py).
        self.register_buffer("attention", torch.zeros_like(self.W[0]), persistent=False)

    @torch.no_grad()
    def ascend_(
        self,
        gradient: Tensor,
        lr: float,
        momentum: float,
        weight_decay: float,
        dropped: Tensor | None = None,
        angle: float | None = None,
    ) -> None:
        """One step of v <- mu v + g + lambda W, W <- W - eta v  (derived in objective.py).

        With an angle, turn_ in its place; with lr 0 nothing.

        gradient: g, of the shape of W, minus the gradient of the objective.
        dropped: 0-d float32, 1 where W and v are to stay as they are. Only the device reads it.
        """
        if angle is not None:
            return self.turn_(gradient, angle, momentum, dropped)
        if lr == 0:
            return None
        if self.W.device.type == "mps":
            return self.step_(gradient, lr, momentum, weight_decay, dropped)
        # Private (torch 2.9 to 2.15), for found_inf. Plain alternative: step_.
        return sgd(
            [self.W], [gradient.contiguous()], [self.v], fused=True, found_inf=dropped,
            lr=lr, momentum=momentum, weight_decay=weight_decay,
            dampening=0, nesterov=False, maximize=False,
        )  # fmt: skip

    @torch.no_grad()
    def step_(self, gradient: Tensor, lr, momentum, weight_decay, dropped: Tensor | None = None):
        """ascend_ in plain operations: MPS has fused ones that obey found_inf since 2026 only."""
        v = momentum * self.v + gradient + weight_decay * self.W
        self.move_unless_(dropped, self.W - lr * v, v)

    def move_unless_(self, dropped: Tensor | None, W: Tensor, v: Tensor) -> None:
        stay = self.W.new_zeros(()).bool() if dropped is None else dropped.bool()
        self.W.copy_(torch.where(stay, self.W, W))
        self.v.copy_(torch.where(stay, self.v, v))

    @torch.no_grad()
    def turn_(
        self, gradient: Tensor, angle: float, momentum: float, dropped: Tensor | None = None
    ) -> None:
        """Ascend by an angle: v <- mu v + g, then every column turns along -v, all of them by
        `angle` radians on average, and has unit length.

        So the step does not depend on K, on tau_a or on how long the columns are.
        gradient, dropped: as in ascend_.
        """
        v = momentum * self.v + gradient
        u = F.normalize(self.W, dim=0)
        tangent = v - u * (u * v).sum(dim=0)
        length = sum_across_ranks_(tangent.norm(dim=0).sum(), self.world) / self.num_negatives
        turned = F.normalize(u - angle * tangent / length.clamp_min(SHORTEST), dim=0)
        self.move_unless_(dropped, turned, v)

    @torch.no_grad()
    def write_columns_(self, keys: Tensor, first: int) -> None:
        """Write keys [M, D] into the columns from `first` on, round and round.

        They begin without velocity. A key that is not finite is skipped. If M > K, the last key
        written to a column wins.
        """
        # Where each key goes, among all K columns.
        end = first + len(keys)
        keys = keys[-self.num_negatives :]
        columns = torch.arange(end - len(keys), end) % self.num_negatives

        # Those that are on this process, counted from its first column. Found on the CPU: a
        # device would have to be waited for to say how many there are.
        columns = columns - self.first_column()
        here = ((columns >= 0) & (columns < self.W.shape[1])).nonzero()[:, 0]
        columns, here = (x.to(keys.device, non_blocking=True) for x in (columns[here], here))

        new = keys[here].T.to(self.W.dtype)
        self.W[:, columns] = torch.where(new.isfinite().all(dim=0), new, self.W[:, columns])
        self.v.index_fill_(1, columns, 0.0)

    def first_column(self) -> int:
        """Of this process, among all K. As tensor_split has it, the first shards are the wider."""
        width, wider = divmod(self.num_negatives, self.world.size)
        return self.world.rank * width + min(self.world.rank, wider)

    def own(self, whole: Tensor) -> Tensor:
        """This process's part [D, K / R] of [D, K]; of [K] too."""
        return whole.tensor_split(self.world.size, dim=-1)[self.world.rank].clone()

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("W", "v"):
            whole = gather_uneven_rows(getattr(self, name).T, self.world).T  # [D, K]
            destination[prefix + name] = whole.contiguous()

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        own = {n: self.own(whole) for n, whole in state_dict.items() if n.startswith(prefix)}
        super()._load_from_state_dict(own, prefix, *rest)
