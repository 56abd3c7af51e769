"""AdCo: a query encoder, and a key encoder that follows it as an exponential moving average."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from adco.encoder import build_encoder
from ops.distributed import current_world, exchange_rows


class AdCo(nn.Module):
    """Both encoders, encoder_q.* and encoder_k.* in the state dict.

    Calling the model embeds queries, so that DistributedDataParallel sees everything with a
    gradient.
    seed: of the batch shuffles, which have to be the same on every process.
    """

    def __init__(
        self,
        arch: str = "resnet50",
        dim: int = 128,
        momentum: float = 0.999,
        mlp: bool = True,
        stem: str = "imagenet",
        seed: int = 0,
    ):
        super().__init__()
        self.encoder_q = build_encoder(arch, dim, mlp, stem)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.momentum = momentum
        self.seed = seed
        self.num_shuffles = (
            0  # shuffles drawn so far: with the seed, the whole state of the randomness
        )
        self._ema = get_ema_multi_avg_fn(momentum)

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        """Query embeddings [N, D] of unit length, one forward pass per view [N, 3, H, W]."""
        return [embed(self.encoder_q, view) for view in views]

    @torch.no_grad()
    def embed_keys(self, views: list[Tensor]) -> list[Tensor]:
        """Key embeddings [N, D] of this process's pictures, encoded with shuffled BatchNorm."""
        return [self._embed_shuffled(view) for view in views]

    def _embed_shuffled(self, view: Tensor) -> Tensor:
        """Encode a random N of the global batch instead of one's own.

        BatchNorm statistics of the own N would tell a query which key belongs to it.
        """
        world = current_world()
        if world.size == 1:
            return embed(self.encoder_k, view)
        permutation = self._draw_permutation(len(view) * world.size)
        embedded = embed(self.encoder_k, exchange_rows(view, permutation, world))
        return exchange_rows(embedded, torch.argsort(permutation), world)

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


def embed(encoder: nn.Module, view: Tensor) -> Tensor:
    """Embeddings [N, D] of unit length, at least float32 (the objective is never computed in
    half).
    """
    embedded = encoder(view)
    if embedded.dtype in (torch.float16, torch.bfloat16):
        embedded = embedded.float()
    return F.normalize(embedded, dim=1)
