"""One round of min over theta, max over W of the objective, for every training mode."""

from typing import NamedTuple

from torch import Tensor

from adco.fused import contrast, own_key_loss
from adco.negatives import NegativeBank
from adco.objective import Pair, own_key
from adco.plan import Term, key_views, query_views
from ops.distributed import (
    average_gradients_,
    current_world,
    gather_rows,
    mean_across_ranks_,
    sum_across_ranks_,
    unwrap,
)


class Round(NamedTuple):
    """What a step reports: 0-d tensors on the model's device, of this process's queries."""

    loss: Tensor  # the encoder's objective, nats
    mass: Tensor  # softmax mass at mem_t on all keys; 1 = the adversaries get no gradient
    top1: Tensor  # share of queries whose own key is nearest among all keys and adversaries
    top5: Tensor
    idle: Tensor  # share of adversaries to which no query of any process gives its chance share
    spread: Tensor  # 1 - |mean query|^2; 0 = all queries point the same way


def embed_pairs(model, views: list[Tensor], plan: list[Term]) -> list[Pair]:
    """Queries of this process and keys of all, per term of the plan (SPEC 3.1 to 3.4)."""
    network = unwrap(model)
    wanted = query_views(plan)
    queries = dict(zip(wanted, model([views[i] for i in wanted]), strict=True))
    network.update_key_encoder()
    wanted = key_views(plan)
    keys = dict(zip(wanted, network.embed_keys([views[i] for i in wanted]), strict=True))
    keys = {i: gather_rows(own, current_world()) for i, own in keys.items()}  # [M, D] each
    return [Pair(queries[term.query], keys[term.key], term.weight) for term in plan]


def descend_(loss: Tensor, model, optimizer) -> None:
    """One optimiser step on the loss, gradients averaged over processes."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients_(model)
    optimizer.step()


def train_step(
    model,
    bank: NegativeBank,
    optimizer,
    views: list[Tensor],
    plan: list[Term],
    *,
    moco_t: float = 0.12,
    mem_t: float = 0.02,
    memory_lr: float = 3.0,
    memory_momentum: float = 0.9,
    mem_wd: float = 1e-4,
) -> Round:
    """One step of both players from the same embeddings: theta descends, W ascends.

    model: AdCo, bare or in DistributedDataParallel.  views: tensors [N, 3, H, W], as `plan`
    numbers them.
    Train or eval mode is the caller's choice (pre-training: train).
    """
    pairs = embed_pairs(model, views, plan)
    result = contrast(pairs, bank.W, moco_t, mem_t, current_world().rank, bank.shards)

    descend_(result.loss, model, optimizer)
    gradient = mean_across_ranks_(result.bank_gradient, bank.copies)
    bank.ascend_(gradient, memory_lr, memory_momentum, mem_wd)

    attention = sum_across_ranks_(result.attention, bank.copies)
    chance = 1 / (len(pairs[0].keys) + bank.num_negatives)
    idle = (attention < chance).to(attention.dtype).mean()  # of the columns here
    return Round(
        loss=result.loss.detach(),
        mass=result.mass,
        top1=result.top1,
        top5=result.top5,
        idle=mean_across_ranks_(idle, bank.shards),
        spread=1 - pairs[0].queries.detach().mean(dim=0).square().sum(),
    )


def startup_step(
    model, bank: NegativeBank, optimizer, views: list[Tensor], term: Term, first: int, moco_t: float
) -> tuple[Tensor, int]:
    """One step against a bank that is not yet playing: descend, then write the keys into it (SPEC
    4).

    The loss has one positive, the own key, and the K columns as negatives; the others' keys stay
    out.
    Returns the loss, 0-d, and the next column to write.
    """
    ((queries, keys, _),) = embed_pairs(model, views, [term])
    own = keys[own_key(len(queries), current_world().rank, keys.device)]  # [N, D]
    loss = own_key_loss(queries, own, bank.W, moco_t, bank.shards)
    descend_(loss, model, optimizer)
    return loss.detach(), bank.write_columns_(keys, first)
