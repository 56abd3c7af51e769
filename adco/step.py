"""One step of both players, for every training mode: min over theta, max over W.

A batch may be taken in A micro-batches: only one micro-batch's activations are in memory at a time.
All keys come first, so every micro-batch meets all M of them. The objective is that of the whole
batch; only BatchNorm sees fewer pictures at once.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from adco.fused import losses, own_key_loss  # equal to objective.py: tests/test_fused.py
from adco.model import micro_batches
from adco.negatives import NegativeBank
from adco.objective import ALL, Denominator, Losses, Pair, nt_xent, own_key, spread_of
from adco.plan import Term, key_views, query_views
from ops.distributed import World, current_world, gather_rows, sum_across_ranks_
from ops.training import Descent, averaging, unwrap


class Round(NamedTuple):
    """What a step reports: 0-d tensors on the model's device, of this process's queries.

    A new field is logged by itself (pretrain/meter.py).
    """

    loss: Tensor  # the encoder's objective, nats
    mass: Tensor  # softmax mass at mem_t on all keys; 1 = the adversaries get no gradient
    top1: Tensor  # share of queries whose own key is nearest among what it is told apart from
    top5: Tensor
    idle: Tensor  # share of adversaries whose attention, over all queries, is below chance
    spread: Tensor  # 1 - |mean query|^2; 0 = all queries point the same way
    alignment: Tensor  # mean |query - own key|^2; 0 = both views look alike to the encoder
    uniformity: Tensor  # of this process's queries: 0 = all alike, -4 or so = all over the sphere
    grad_norm: Tensor  # norm of the encoder's gradient, after averaging over processes
    dropped: Tensor  # 1: something was not finite, so neither encoder_q nor the bank moved; else 0


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
    angle: float | None = None,
    refresh: int = 0,
    first_column: int = 0,
    denominator: Denominator = ALL,
    accum_steps: int = 1,
    scaler: GradScaler | None = None,
) -> Round:
    """One step of both players from the same embeddings: theta descends, W ascends.

    model: AdCo, bare or in DistributedDataParallel, in the mode of the caller's choice.  views:
    tensors [N, C, H, W], as `plan` numbers them.  angle: see bank.ascend_.  refresh: R columns from
    `first_column` on are overwritten by keys; M of them and memory_lr 0 are MoCo's queue.
    accum_steps: A, the micro-batches in which the N are taken.  scaler: for fp16.
    """
    descent = Descent(model, optimizer, scaler)

    # Keys first: every micro-batch meets all M of them.
    keys = embed_keys(unwrap(model), bank, views, plan, accum_steps)

    # Encoder and adversaries, from one forward pass of the queries.
    taus = dict(moco_t=moco_t, mem_t=mem_t)
    objective = partial(losses, W=bank.W, world=bank.world, denominator=denominator, **taus)
    sums = backward_in_micro_batches(descent, views, keys, plan, accum_steps, objective)
    total = Losses(*sums)

    # Both move, or neither. (The key encoder has already taken its average.)
    grad_norm, dropped = descent.finish(total.loss, total.bank_gradient)
    bank.ascend_(total.bank_gradient, memory_lr, memory_momentum, mem_wd, dropped, angle)
    bank.attention += torch.where(dropped.bool(), 0, total.attention)
    if refresh:
        bank.write_columns_(keys[plan[0].key][:refresh], first_column)
    return round_of(total, bank, len(keys[plan[0].key]), accum_steps, grad_norm, dropped)


def round_of(total: Losses, bank, num_keys: int, accum_steps: int, grad_norm, dropped) -> Round:
    """What is reported of the sums over the micro-batches."""
    means = total.mass, total.top1, total.top5, total.alignment, total.uniformity
    mass, top1, top5, *apart = (x / accum_steps for x in means)
    spread = 1 - (total.mean_query / accum_steps).square().sum()
    idle = idle_share(total.attention, bank, num_keys)
    return Round(total.loss, mass, top1, top5, idle, spread, *apart, grad_norm, dropped)


def idle_share(attention: Tensor, bank: NegativeBank, num_keys: int) -> Tensor:
    """Share of all K columns whose attention, summed over the queries, is below chance."""
    num_idle = (attention < 1 / (num_keys + bank.num_negatives)).to(attention.dtype).sum()
    return sum_across_ranks_(num_idle, bank.world) / bank.num_negatives


def simclr_step(
    model,
    optimizer: Optimizer,
    views: list[Tensor],
    *,
    moco_t: float,
    decoupled: bool = False,
    scaler: GradScaler | None = None,
) -> Round:
    """One step without adversaries and without a second encoder, which only follows: SimCLR.

    views: two, [N, C, H, W].  Of what is reported, mass is 1 and idle 0.
    """
    descent = Descent(model, optimizer, scaler)
    unwrap(model).update_key_encoder()

    # Every process computes the loss of all M pictures, with the gradient of its own. Their mean
    # over processes, which is taken next, lacks a factor R.
    world = current_world()
    embedded = model(views[:2])
    loss, cosines = nt_xent([with_others(rows, world) for rows in embedded], moco_t, decoupled)
    descent.backward(world.size * loss)
    grad_norm, dropped = descent.finish(loss)

    cosines = cosines.detach()
    own = cosines.diagonal(len(cosines) // 2)
    num_nearer = (cosines > own.repeat(2)[:, None]).sum(dim=1)
    top1, top5 = ((num_nearer < k).to(loss.dtype).mean() for k in (1, 5))
    mean_query, *apart = spread_of(embedded[0], own)
    spread = 1 - mean_query.square().sum()
    one = torch.ones_like(grad_norm)
    return Round(loss.detach(), one, top1, top5, 0 * one, spread, *apart, grad_norm, dropped)


def with_others(rows: Tensor, world: World) -> Tensor:
    """Rows [M, D] of all processes, of which this one's [N, D] have a gradient."""
    others = list(gather_rows(rows.detach(), world).chunk(world.size))
    others[world.rank] = rows
    return torch.cat(others)


def startup_step(
    model,
    bank: NegativeBank,
    optimizer: Optimizer,
    views: list[Tensor],
    term: Term,
    *,
    first_column: int,
    moco_t: float,
    accum_steps: int = 1,
    scaler: GradScaler | None = None,
) -> tuple[Tensor, Tensor]:
    """One step before the adversaries play: the encoder descends, then its keys fill the bank.

    The loss has one positive, the own key, and the K columns as negatives; the keys of the other
    pictures stay out. The M keys are written from `first_column` on.
    Returns the loss, 0-d, and whether the step was dropped, as in Round.
    """
    descent = Descent(model, optimizer, scaler)
    plan = [term._replace(weight=1.0)]
    keys = embed_keys(unwrap(model), bank, views, plan, accum_steps)

    def startup_loss(pairs: list[Pair], first_key: int) -> tuple[Tensor]:
        ((queries, all_keys, weight),) = pairs
        own = all_keys[own_key(len(queries), first_key, all_keys.device)]  # [N / A, D]
        return (weight * own_key_loss(queries, own, bank.W, moco_t, bank.world),)

    (loss,) = backward_in_micro_batches(descent, views, keys, plan, accum_steps, startup_loss)
    _, dropped = descent.finish(loss)
    bank.write_columns_(keys[term.key], first_column)
    return loss, dropped


def embed_keys(
    network, bank: NegativeBank, views: list[Tensor], plan: list[Term], accum_steps: int
) -> dict[int, Tensor]:
    """Keys [M, D] of all processes, per key view of the plan. The key encoder moves first.

    Raises ValueError where the bank was made before the process group: it would not be shared.
    """
    world = current_world()
    if bank.world != world:
        raise ValueError(
            f"the bank was made for {bank.world.size} process(es), here are {world.size}; make it "
            "after the process group"
        )
    network.update_key_encoder()
    wanted = key_views(plan)
    own = network.embed_keys([views[i] for i in wanted], accum_steps)
    return {i: gather_rows(keys, world) for i, keys in zip(wanted, own, strict=True)}


def backward_in_micro_batches(
    descent: Descent,
    views: list[Tensor],
    keys: dict[int, Tensor],
    plan: list[Term],
    accum_steps: int,
    objective: Callable[..., tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Forward and backward of the queries, one micro-batch after the other.

    objective(pairs, first_key=...): tensors, of which the first is the loss. The pairs are the
    plan's terms with the queries [N / A, D] of a micro-batch, all M keys, and the micro-batch's
    share of the weight.  Returns the sums of the tensors, without a graph.
    """
    wanted = query_views(plan)
    split = [micro_batches(views[i], accum_steps) for i in wanted]
    rank = current_world().rank
    total = None
    for a, batch in enumerate(zip(*split, strict=True)):
        # Gradients are averaged over processes once, with the last micro-batch.
        with averaging(descent.model, now=a + 1 == accum_steps):
            queries = dict(zip(wanted, descent.model(list(batch)), strict=True))
            pairs = [
                Pair(queries[term.query], keys[term.key], term.weight / accum_steps)
                for term in plan
            ]
            first_key = (rank * accum_steps + a) * len(batch[0])
            result = objective(pairs, first_key=first_key)
            descent.backward(result[0])
        result = [x.detach() for x in result]
        # Add in place, to avoid a second buffer of the size of the bank.
        total = [x.add_(y) for x, y in zip(total, result, strict=True)] if total else result
    return tuple(total)
