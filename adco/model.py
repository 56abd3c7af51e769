"""AdCo: a query encoder, and a key encoder that follows it as an exponential moving average."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from adco.encoder import build_encoder, has_batchnorm
from ops.distributed import current_world, exchange_rows

# Pixels. In pictures so small, the last stage's strided convolutions meet maps of one pixel. In
# bf16 on a CPU, torch 2.14 leaves parts of their filters' gradient unwritten: any old memory.
TOO_SMALL_FOR_HALF = 16


class AdCo(nn.Module):
    """Both encoders, encoder_q.* and encoder_k.* in the state dict.

    Calling the model embeds queries, so that DistributedDataParallel sees all that has a gradient.
    arch: a name, or an encoder of one's own that ends in the embedding [N, D]; dim, mlp, stem and
    channels then say nothing.
    seed: of the batch shuffles, which have to be the same on every process.
    amp: precision of the encoders' products; None: float32. Embeddings, objective and bank are
    float32 in any case.
    channels: C of the pictures.  mlp, mlp_width, mlp_bn: the head's, as in build_encoder.
    """

    def __init__(
        self,
        arch: str | nn.Module = "resnet50",
        dim: int = 128,
        momentum: float = 0.999,
        mlp: int = True,
        stem: str = "imagenet",
        seed: int = 0,
        amp: torch.dtype | None = None,
        channels: int = 3,
        mlp_width: int | None = None,
        mlp_bn: bool = False,
    ):
        super().__init__()
        own = isinstance(arch, nn.Module)
        head = (mlp, stem, channels, mlp_width, mlp_bn)
        self.encoder_q = arch if own else build_encoder(arch, dim, *head)
        self.has_batchnorm = has_batchnorm(self.encoder_q)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.momentum = momentum
        self.amp = amp
        # With the seed, the whole state of the shuffles' randomness.
        self.seed, self.num_shuffles = seed, 0
        self._ema = get_ema_multi_avg_fn(momentum)

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        """Query embeddings [N, D] of unit length, one forward pass per view [N, C, H, W]."""
        return [self._embed(self.encoder_q, view) for view in views]

    @torch.no_grad()
    def embed_keys(self, views: list[Tensor], accum_steps: int = 1) -> list[Tensor]:
        """Key embeddings [N, D] of this process's pictures, encoded with shuffled BatchNorm.

        accum_steps: micro-batches in which the N are forwarded, one after the other.
        """
        return [self._embed_shuffled(view, accum_steps) for view in views]

    def _embed_shuffled(self, view: Tensor, accum_steps: int) -> Tensor:
        """Encode a random N of the global batch instead of one's own, in a random order.

        BatchNorm statistics over the same pictures would tell a query which key belongs to it.
        """
        # Alone with one batch, or without BatchNorm, there is nothing to shuffle.
        world = current_world()
        if world.size * accum_steps == 1 or not self.has_batchnorm:
            parts = micro_batches(view, accum_steps)
            return torch.cat([self._embed(self.encoder_k, part) for part in parts])
        # The same permutation on every process: who encodes which picture.
        permutation = self._draw_permutation(len(view) * world.size)
        # In the precision of the first layer: there are fewer bytes to move.
        view = view.to(self.precision(view) or view.dtype)
        shuffled = exchange_rows(view, permutation, world)
        parts = [self._embed(self.encoder_k, part) for part in micro_batches(shuffled, accum_steps)]
        return exchange_rows(torch.cat(parts), torch.argsort(permutation), world)

    def _embed(self, encoder: nn.Module, view: Tensor) -> Tensor:
        """Unit rows [N, D], at least float32 (the objective is never computed in half)."""
        # Convolutions in half precision, where the device computes in it.
        half = self.precision(view)
        with torch.autocast(view.device.type, half, enabled=half is not None):
            embedded = encoder(view)
        at_least = torch.promote_types(embedded.dtype, torch.float32)
        return F.normalize(embedded.to(at_least), dim=1)

    def precision(self, view: Tensor) -> torch.dtype | None:
        """In which the encoders take a view [N, C, H, W]; None: float32."""
        return self.amp if min(view.shape[-2:]) > TOO_SMALL_FOR_HALF else None

    def _draw_permutation(self, size: int) -> Tensor:
        # On the CPU, so that every process draws the same.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.num_shuffles)
        self.num_shuffles += 1
        return torch.randperm(size, generator=generator)

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q.

        Parameters only: the key encoder's buffers follow from its own forward passes.
        """
        self._ema(list(self.encoder_k.parameters()), list(self.encoder_q.parameters()), None)

    def copy_query_to_key(self) -> None:
        """theta_k <- theta_q, and no buffers."""
        self.encoder_k.load_state_dict(dict(self.encoder_q.named_parameters()), strict=False)


def micro_batches(view: Tensor, accum_steps: int) -> tuple[Tensor, ...]:
    """Views [N, C, H, W] as A views [N / A, C, H, W]. Raises ValueError where N does not split."""
    if len(view) % accum_steps:
        raise ValueError(
            f"{len(view)} pictures do not split into {accum_steps} micro-batches; take a multiple "
            f"of {accum_steps}"
        )
    return view.chunk(accum_steps)
