"""AdCo: a query encoder, and a key encoder that follows it as an exponential moving average."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from adco.encoder import build_encoder
from ops.distributed import current_world, exchange_rows
from ops.errors import InputError

HALVES = (torch.float16, torch.bfloat16)
# Pixels. Where a strided convolution meets a picture of one pixel (the last stage, of pictures so
# small), the gradient of its filters in bf16 comes out of torch 2.14 on a CPU with memory that was
# never written in it.
TOO_SMALL_FOR_HALF = 16


class AdCo(nn.Module):
    """Both encoders, encoder_q.* and encoder_k.* in the state dict.

    Calling the model embeds queries, so that DistributedDataParallel sees everything with a
    gradient.
    seed: of the batch shuffles, which have to be the same on every process.
    amp: precision of the encoders' products where float32 is not wanted; embeddings, objective and
    bank are float32 all the same.
    bn_splits: parts of what is forwarded at once whose BatchNorm statistics are their own, as if
    each were on a GPU of its own. Raises InputError where pictures do not split.
    """

    def __init__(
        self,
        arch: str = "resnet50",
        dim: int = 128,
        momentum: float = 0.999,
        mlp: bool = True,
        stem: str = "imagenet",
        seed: int = 0,
        amp: torch.dtype | None = None,
        bn_splits: int = 1,
    ):
        super().__init__()
        self.encoder_q = build_encoder(arch, dim, mlp, stem)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.momentum = momentum
        self.seed = seed
        self.amp = amp
        self.bn_splits = bn_splits
        self.num_shuffles = (
            0  # shuffles drawn so far: with the seed, the whole state of the randomness
        )
        self._ema = get_ema_multi_avg_fn(momentum)

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        """Query embeddings [N, D] of unit length, one forward pass per view [N, 3, H, W]."""
        return [self._embed(self.encoder_q, view, self.bn_splits) for view in views]

    @torch.no_grad()
    def embed_keys(self, views: list[Tensor], num_parts: int = 1) -> list[Tensor]:
        """Key embeddings [N, D] of this process's pictures, encoded with shuffled BatchNorm.

        num_parts: how many parts of the N are forwarded one after the other.
        """
        return [self._embed_shuffled(view, self.bn_splits * num_parts) for view in views]

    def _embed_shuffled(self, view: Tensor, num_parts: int) -> Tensor:
        """Encode a random N of the global batch instead of one's own, in a random order.

        BatchNorm statistics of the own part would tell a query which key belongs to it.
        """
        world = current_world()
        if world.size * num_parts == 1:
            return self._embed(self.encoder_k, view, 1)
        permutation = self._draw_permutation(len(view) * world.size)
        view = view.to(
            self._precision(view) or view.dtype
        )  # as the first layer would: less to move
        shuffled = exchange_rows(view, permutation, world)
        embedded = self._embed(self.encoder_k, shuffled, num_parts)
        return exchange_rows(embedded, torch.argsort(permutation), world)

    def _embed(self, encoder: nn.Module, view: Tensor, num_parts: int) -> Tensor:
        """Unit rows [N, D], at least float32 (the objective is never computed in half)."""
        half = self._precision(view)
        with torch.autocast(view.device.type, half, enabled=half is not None):
            embedded = torch.cat([encoder(part) for part in even_parts(view, num_parts)])
        if embedded.dtype in HALVES:
            embedded = embedded.float()
        return F.normalize(embedded, dim=1)

    def _precision(self, view: Tensor) -> torch.dtype | None:
        return self.amp if min(view.shape[-2:]) > TOO_SMALL_FOR_HALF else None

    def _draw_permutation(self, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.num_shuffles)
        self.num_shuffles += 1
        return torch.randperm(size, generator=generator)

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q. Parameters only: buffers follow from forward
        passes.
        """
        self._ema(list(self.encoder_k.parameters()), list(self.encoder_q.parameters()), None)

    @torch.no_grad()
    def copy_query_to_key(self) -> None:
        """theta_k <- theta_q."""
        for key, query in zip(
            self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True
        ):
            key.copy_(query)


def even_parts(view: Tensor, num_parts: int) -> tuple[Tensor, ...]:
    """Equally many pictures in each. Raises InputError where [N, 3, H, W] does not split so."""
    if len(view) % num_parts:
        raise InputError(
            f"{len(view)} pictures do not split into {num_parts} parts for accum_steps and "
            f"bn_splits; take a multiple of {num_parts}"
        )
    return view.chunk(num_parts)
