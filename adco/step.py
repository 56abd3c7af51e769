"""One round of min over theta, max over W of the objective, for every training mode.

The batch may come in A parts, of which one at a time has activations to keep. All keys come first,
so every part meets all M of them; the game is the same, only BatchNorm sees fewer pictures at once.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from adco.fused import contrast, own_key_loss
from adco.guard import Statistics, examine, step_unless_
from adco.model import even_parts
from adco.negatives import NegativeBank
from adco.objective import Contrast, Pair, own_key
from adco.plan import Term, key_views, query_views
from ops.distributed import (
    average_gradients_,
    averaging,
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
    grad_norm: Tensor  # length of the encoder's gradient, averaged over processes
    dropped: Tensor  # 1: something was not finite on some process, and nobody moved; else 0


def embed_keys(network, views: list[Tensor], plan: list[Term], num_parts: int) -> dict[int, Tensor]:
    """Keys [M, D] of all processes, per key view of the plan. The key encoder moves first."""
    network.update_key_encoder()
    wanted = key_views(plan)
    own = network.embed_keys([views[i] for i in wanted], num_parts)
    return {i: gather_rows(keys, current_world()) for i, keys in zip(wanted, own, strict=True)}


def parts_of(
    model, views: list[Tensor], keys: dict[int, Tensor], plan: list[Term], num_parts: int
) -> Iterator[tuple[int, list[Pair]]]:
    """The batch part by part: number of the part among those of all processes, and the plan's
    terms with the queries [N / A, D] of the part, all keys, and the part's share of the weight.

    Gradients of each part are to be computed before the next is asked for.
    """
    wanted = query_views(plan)
    split = [even_parts(views[i], num_parts) for i in wanted]
    first = current_world().rank * num_parts
    for a in range(num_parts):
        with averaging(model, now=a + 1 == num_parts):
            queries = dict(zip(wanted, model([view[a] for view in split]), strict=True))
            yield (
                first + a,
                [
                    Pair(queries[term.query], keys[term.key], term.weight / num_parts)
                    for term in plan
                ],
            )


def backpropagate(loss: Tensor, scaler: GradScaler | None) -> None:
    (scaler.scale(loss) if scaler else loss).backward()


def settle_gradients_(model, optimizer: Optimizer, scaler: GradScaler | None) -> None:
    """Gradients as they are meant: averaged over processes, and not scaled."""
    average_gradients_(model)
    if scaler:
        scaler.unscale_(optimizer)
        scaler.update()


def train_step(
    model,
    bank: NegativeBank,
    optimizer: Optimizer,
    views: list[Tensor],
    plan: list[Term],
    *,
    moco_t: float = 0.12,
    mem_t: float = 0.02,
    memory_lr: float = 3.0,
    memory_momentum: float = 0.9,
    mem_wd: float = 1e-4,
    accum_steps: int = 1,
    scaler: GradScaler | None = None,
) -> Round:
    """One step of both players from the same embeddings: theta descends, W ascends.

    model: AdCo, bare or in DistributedDataParallel.  views: tensors [N, 3, H, W], as `plan`
    numbers them.  accum_steps: A, the parts in which the N are taken.  scaler: for fp16.
    Train or eval mode is the caller's choice (pre-training: train).
    """
    statistics = Statistics(model)
    optimizer.zero_grad(set_to_none=True)
    keys = embed_keys(unwrap(model), views, plan, accum_steps)
    total, mean_query = None, 0
    for part, pairs in parts_of(model, views, keys, plan, accum_steps):
        result = contrast(pairs, bank.W, moco_t, mem_t, part, bank.shards)
        backpropagate(result.loss, scaler)
        total = add_(total, result)
        mean_query = mean_query + pairs[0].queries.detach().mean(dim=0) / accum_steps
    settle_gradients_(model, optimizer, scaler)

    gradient = mean_across_ranks_(total.bank_gradient, bank.copies)
    grad_norm, dropped = examine(model, total.loss, gradient)
    step_unless_(dropped, optimizer)
    bank.ascend_(gradient, memory_lr, memory_momentum, mem_wd, dropped)
    statistics.restore_if_(dropped)

    return Round(
        loss=total.loss,
        mass=total.mass / accum_steps,
        top1=total.top1 / accum_steps,
        top5=total.top5 / accum_steps,
        idle=idle_share(total.attention, bank, len(keys[plan[0].key])),
        spread=1 - mean_query.square().sum(),
        grad_norm=grad_norm,
        dropped=dropped,
    )


def idle_share(attention: Tensor, bank: NegativeBank, num_keys: int) -> Tensor:
    """Share of all columns whose attention [K] is below chance for every query."""
    attention = sum_across_ranks_(attention, bank.copies)
    idle = (attention < 1 / (num_keys + bank.num_negatives)).to(attention.dtype).mean()
    return mean_across_ranks_(idle, bank.shards)


def add_(total: Contrast | None, part: Contrast) -> Contrast:
    """The sum, without a graph, in the memory of `total`."""
    part = Contrast(*(x.detach() for x in part))
    if total is None:
        return part
    return Contrast(*(x.add_(y) for x, y in zip(total, part, strict=True)))


def startup_step(
    model,
    bank: NegativeBank,
    optimizer: Optimizer,
    views: list[Tensor],
    term: Term,
    first: int,
    moco_t: float,
    *,
    accum_steps: int = 1,
    scaler: GradScaler | None = None,
) -> tuple[Tensor, int, Tensor]:
    """One step against a bank that is not yet playing: descend, then write the keys into it.

    The loss has one positive, the own key, and the K columns as negatives; the others' keys stay
    out.
    Returns the loss, 0-d, the next column to write, and whether the step was dropped, as in Round.
    """
    statistics = Statistics(model)
    optimizer.zero_grad(set_to_none=True)
    keys = embed_keys(unwrap(model), views, [term], accum_steps)
    total = 0
    for part, ((queries, everyone, _),) in parts_of(model, views, keys, [term], accum_steps):
        own = everyone[own_key(len(queries), part, everyone.device)]  # [N / A, D]
        loss = own_key_loss(queries, own, bank.W, moco_t, bank.shards) / accum_steps
        backpropagate(loss, scaler)
        total = total + loss.detach()
    settle_gradients_(model, optimizer, scaler)

    _, dropped = examine(model, total)
    step_unless_(dropped, optimizer)
    statistics.restore_if_(dropped)
    return total, bank.write_columns_(keys[term.key], first), dropped
