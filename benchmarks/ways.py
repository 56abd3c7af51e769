"""One round on given embeddings, each player's gradient and the step of W and v, in two ways."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from adco.fused import contrast
from adco.negatives import NegativeBank
from adco.objective import Pair, contrastive_logits, directions_of, info_nce, own_key
from ops.distributed import World, gather_rows, mean_across_ranks_

MOCO_T, MEM_T, RATE, MOMENTUM, DECAY = 0.12, 0.02, 3.0, 0.9, 1e-4
WAYS = ("ours", "replicated", "published")


def play_ours(queries: Tensor, keys: Tensor, bank: NegativeBank, world: World) -> None:
    """adco.step without its encoders."""
    pairs = [Pair(queries, keys, 1.0)]
    result = contrast(pairs, bank.W, MOCO_T, MEM_T, world.rank, bank.shards)
    result.loss.backward()
    gradient = mean_across_ranks_(result.bank_gradient, bank.copies)
    bank.ascend_(gradient, RATE, MOMENTUM, DECAY)


def play_published(queries: Tensor, keys: Tensor, bank: NegativeBank, world: World) -> None:
    """The published way, written plainly from the paper: logits [N, M + K] whole, autograd for
    each player and a third pass for the mass, the bank and its gradient on every process.
    """
    target = own_key(len(queries), world.rank, queries.device)
    logits = contrastive_logits(queries, keys, directions_of(bank.W))
    info_nce(logits, target, MOCO_T).backward()

    W = bank.W.detach().requires_grad_()
    logits = contrastive_logits(queries.detach(), keys, directions_of(W))
    (gradient,) = torch.autograd.grad(info_nce(logits, target, MEM_T), W)
    with torch.no_grad():
        (logits / MEM_T).softmax(dim=1)[:, : len(keys)].sum(dim=1).mean()
        gradient = mean_across_ranks_(gradient, world)
        bank.v.mul_(MOMENTUM).sub_(gradient).add_(bank.W, alpha=DECAY)
        bank.W.sub_(bank.v, alpha=RATE)


def way(name: str, N: int, K: int, D: int, device, world: World) -> Callable[[], None]:
    """A round of the way `name`, one of WAYS, to be called again and again.

    N: queries of this process.  replicated: ours, with the whole bank on every process.
    """
    torch.manual_seed(world.rank)
    queries, own = (F.normalize(torch.randn(N, D, device=device), dim=1) for _ in range(2))
    queries.requires_grad_()
    keys = gather_rows(own, world)
    shard = name == "ours" and world.size > 1
    bank = NegativeBank(K, D, shard=shard).to(device)
    play = play_published if name == "published" else play_ours

    def round_():
        queries.grad = None
        play(queries, keys, bank, world)

    return round_


def products(N: int, K: int, D: int, device) -> Callable[[], None]:
    """The three matrix products that no way can do without: cosines, a gradient for each player."""
    queries, directions = torch.randn(N, D, device=device), torch.randn(D, K, device=device)
    cosines, for_bank = torch.empty(N, K, device=device), torch.empty(D, K, device=device)

    def round_():
        torch.mm(queries, directions, out=cosines)
        torch.mm(cosines, directions.T)
        torch.mm(queries.T, cosines, out=for_bank)

    return round_
