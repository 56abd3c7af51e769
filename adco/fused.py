"""The objective as it runs: what objective.py defines, without a matrix [N, K] that outlives a
chunk of it, and with the columns in one place or spread over processes.

The keys are few; their part is written plainly and differentiated by autograd. The K columns are
visited twice, a chunk at a time. With a query's nearest column as origin, n_i = max_j s_ij:

    sweep   z_i(tau) = sum_j exp((s_ij - n_i) / tau) at both temperatures, and at the encoder's
            tau dlog(z_i)/dq_i = sum_j exp((s_ij - n_i) / tau) u_j / z_i, the mean direction
    pull    p_ij = x_i exp((s_ij - n_i) / tau_a), where x_i follows from z_i and the keys, hence
            G_j = sum_i p_ij q_i, and since s_ij = q_i . u_j
            g_j = - (G_j - (G_j . u_j) u_j) / (N |w_j| tau_a)

No exponent is above 0 and one of each row is 0, so nothing overflows and no sum vanishes.

A shard is one more kind of chunk. With the columns spread, the queries of all processes are
gathered, each process sweeps its own columns for all of them, and the sums return to the owners of
the queries; W and v stay where they are. Alone, the collectives do nothing and the same lines run.

B processes whose queries are here (R when the columns are spread, else 1), V query views, T terms.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from adco.objective import Contrast, Pair, own_key
from ops.distributed import ALONE, World, gather_rows, swap_blocks, together

SHORTEST = 1e-12  # a column shorter than this is not drawn out to length 1, as in directions_of
FEWEST_COLUMNS = 256  # below this a matrix product becomes slow
# Cosines in a chunk: on a CPU they have to stay in its cache, on a GPU they have to fill it.
CHUNK_ON_CPU, CHUNK = 2**19, 2**24


class Sums(NamedTuple):
    """What columns are to queries. First dimension: B, or the shards that the sums came from."""

    nearest: Tensor  # [B, V, N]  n_i
    log_sums: Tensor  # [B, V, N, number of temperatures]  log z_i
    direction: Tensor  # [B, V, N, D]  the mean direction, at the first temperature
    nearer: Tensor  # [B, T, N]  number of columns nearer than the own key


class Verdict(NamedTuple):
    """What one term says of its queries, [N] each."""

    loss: Tensor  # at tau, nats, with grad
    mass: Tensor  # softmax mass at tau_a on the keys
    weight: Tensor  # x_i: softmax weight at tau_a of the nearest column
    nearer: Tensor  # number of keys and columns nearer than the own key


def contrast(
    pairs: list[Pair], W: Tensor, moco_t: float, mem_t: float, rank: int = 0, shards: World = ALONE
) -> Contrast:
    """Both players' losses and gradients for one round: objective.contrast, faster.

    W: [D, K]. With shards [D, K / R], the columns of this process; then bank_gradient and attention
    are those of its columns, already over the queries of all processes.
    """
    queries, view_of = distinct_queries(pairs)  # [V, N, D]
    target = own_key(queries.shape[1], rank, W.device)
    positives = [q @ keys.T for q, keys, _ in pairs]  # [N, M] each
    own = [s.gather(1, target[:, None])[:, 0] for s in positives]  # [N] each
    taus = (moco_t, mem_t)
    everyone, sums = meet_columns(queries, W, taus, torch.stack(own).detach(), view_of, shards)

    total_weight = sum(pair.weight for pair in pairs)
    loss = mass = top1 = top5 = 0
    weights = torch.zeros_like(sums.nearest)  # [V, N]
    for t, (pair, v) in enumerate(zip(pairs, view_of, strict=True)):
        verdict = judge(
            positives[t], own[t], sums.nearest[v], sums.log_sums[v], sums.nearer[t], taus
        )
        share = pair.weight / total_weight
        loss = loss + pair.weight * verdict.loss.mean()
        mass = mass + share * verdict.mass.mean()
        top1 = top1 + share * (verdict.nearer < 1).to(W.dtype).mean()
        top5 = top5 + share * (verdict.nearer < 5).to(W.dtype).mean()
        weights[v] += share * verdict.weight

    nearest, weights = together(gather_rows, [sums.nearest[None], weights[None]], shards)
    strength = total_weight / (len(everyone) * len(target))
    gradient, attention = pull(everyone, W, nearest, weights, mem_t, strength)
    return Contrast(loss, gradient, mass, top1, top5, attention)


def own_key_loss(
    queries: Tensor, own_keys: Tensor, W: Tensor, tau: float, shards: World = ALONE
) -> Tensor:
    """L(tau) of queries [N, D] with one positive, the own key [N, D], against all K columns; 0-d.

    W and shards as in `contrast`. The loss of the start-up.
    """
    own = (queries * own_keys).sum(dim=1)  # [N]
    _, sums = meet_columns(queries[None], W, (tau,), own.detach()[None], [0], shards)
    own = (own - sums.nearest[0]) / tau
    return (torch.logaddexp(own, sums.log_sums[0, :, 0]) - own).mean()


def distinct_queries(pairs: list[Pair]) -> tuple[Tensor, list[int]]:
    """Each query view once, [V, N, D], and which of them each term uses: terms that share their
    queries share all work with the columns.
    """
    views = list({id(pair.queries): pair.queries for pair in pairs}.values())
    view_of = [next(v for v, q in enumerate(views) if q is pair.queries) for pair in pairs]
    return torch.stack(views), view_of


def judge(
    positives: Tensor, own: Tensor, nearest: Tensor, log_sums: Tensor, nearer: Tensor, taus
) -> Verdict:
    """Bring the keys, positives [N, M], to the sums over the columns."""
    moco_t, mem_t = taus
    s = positives - nearest[:, None]  # [N, M]
    log_all = torch.logaddexp((s / moco_t).logsumexp(dim=1), log_sums[:, 0])
    loss = log_all - (own - nearest) / moco_t

    with torch.no_grad():
        log_keys = (s / mem_t).logsumexp(dim=1)
        log_all = torch.logaddexp(log_keys, log_sums[:, 1])
        nearer = nearer + (positives > own[:, None]).sum(dim=1)
    return Verdict(loss, (log_keys - log_all).exp(), (-log_all).exp(), nearer)


def meet_columns(
    queries: Tensor, W: Tensor, taus: tuple, own: Tensor, view_of: list[int], shards: World
) -> tuple[Tensor, Sums]:
    """The queries of all processes [B, V, N, D], without a gradient, and the sums over all K
    columns for those of this process, [V, N, D], without dimension B.

    own: cosines [T, N] with the own keys.  log_sums has a gradient at the first temperature.
    """
    with torch.no_grad():
        everyone, owns = together(gather_rows, [queries.detach()[None], own[None]], shards)
        parts = sweep(everyone, W, taus, owns, view_of)
        sums = join(Sums(*together(swap_blocks, list(parts), shards)), taus)
        gradient = sums.direction / taus[0]
    with_gradient = WithGradient.apply(queries, sums.log_sums[..., 0], gradient)
    log_sums = torch.stack([with_gradient, *sums.log_sums[..., 1:].unbind(-1)], dim=-1)
    return everyone, sums._replace(log_sums=log_sums)


class WithGradient(torch.autograd.Function):
    """A value [V, N] that depends on the queries [V, N, D] by a gradient that is known already."""

    @staticmethod
    def forward(ctx, queries: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx, upstream: Tensor):
        (gradient,) = ctx.saved_tensors
        return upstream[..., None] * gradient, None, None


@torch.no_grad()
def sweep(queries: Tensor, W: Tensor, taus: tuple, own: Tensor, view_of: list[int]) -> Sums:
    """Sums over the columns of W for queries [B, V, N, D] with own keys at cosines [B, T, N]."""
    rows = queries.flatten(0, 2)  # [B V N, D]
    nearest = rows.new_full((len(rows), 1), -torch.inf)
    z = [torch.zeros_like(nearest) for _ in taus]
    direction = torch.zeros_like(rows)
    nearer = torch.zeros_like(own)
    for part, u, s, e in chunks(rows, W):
        unit_columns(W[:, part], out=u)  # [D, C]
        torch.mm(rows, u, out=s)  # [B V N, C]
        by_view, marks = (x.view(*queries.shape[:3], -1) for x in (s, e))
        for t, v in enumerate(view_of):
            # 0 or 1 into e: on a CPU several times as fast as counting booleans.
            closer = torch.gt(by_view[:, v], own[:, t, :, None], out=marks[:, v])  # [B, N, C]
            nearer[:, t] += closer.sum(dim=-1)
        before, nearest = nearest, torch.maximum(nearest, s.amax(dim=1, keepdim=True))
        s.sub_(nearest)
        for i, tau in reversed(list(enumerate(taus))):
            shrink = ((before - nearest) / tau).exp_()
            torch.mul(s, 1 / tau, out=e).exp_()
            z[i] = z[i] * shrink + e.sum(dim=1, keepdim=True)
        direction.mul_(shrink).addmm_(e, u.T)  # the last e is that of the first temperature
    z = torch.cat(z, dim=1)
    return Sums(
        nearest.view(queries.shape[:3]),
        z.log().view(*queries.shape[:3], -1),
        (direction / z[:, :1]).view_as(queries),
        nearer,
    )


def join(parts: Sums, taus: tuple) -> Sums:
    """Sums over all columns from the sums over each shard: first dimension R to none."""
    nearest = parts.nearest.amax(dim=0)
    origin = (parts.nearest - nearest)[..., None] / parts.log_sums.new_tensor(taus)
    log_parts = parts.log_sums + origin  # [R, V, N, number of temperatures]
    log_sums = log_parts.logsumexp(dim=0)
    portion = (log_parts - log_sums)[..., :1].exp()  # [R, V, N, 1]
    return Sums(nearest, log_sums, (portion * parts.direction).sum(dim=0), parts.nearer.sum(dim=0))


@torch.no_grad()
def pull(
    queries: Tensor, W: Tensor, nearest: Tensor, weights: Tensor, tau: float, strength: float
) -> tuple[Tensor, Tensor]:
    """g [D, K] where every query counts with `strength`, and the attention [K] to each column.

    queries: [B, V, N, D].  nearest, weights: n_i and x_i, [B, V, N].
    """
    rows, nearest, weights = queries.flatten(0, 2), nearest.reshape(-1, 1), weights.flatten()
    weighted = (rows * (-strength * weights[:, None])).T.contiguous()  # [D, B V N]
    gradient, attention = torch.empty_like(W), W.new_empty(W.shape[1])
    for part, u, s, _ in chunks(rows, W):
        lengths = unit_columns(W[:, part], out=u)  # [C], of [D, C]
        p = torch.mm(rows, u, out=s).sub_(nearest).mul_(1 / tau).exp_()  # [B V N, C]  p_ij / x_i
        torch.mv(p.T, weights, out=attention[part])
        G = torch.mm(weighted, p, out=gradient[:, part])  # [D, C]
        G.addcmul_(u, (G * u).sum(dim=0), value=-1).div_(lengths.mul_(tau))
    return gradient, attention


def unit_columns(columns: Tensor, out: Tensor) -> Tensor:
    """Divide columns [D, C] by their lengths [C], which are returned, into `out`."""
    lengths = torch.mul(columns, columns, out=out).sum(dim=0).sqrt_().clamp_min_(SHORTEST)
    torch.div(columns, lengths, out=out)
    return lengths


def chunks(rows: Tensor, W: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """The columns a chunk at a time, with memory for directions [D, C] and twice for cosines
    [number of rows, C]: each as many as the machine likes, and the same memory every time.
    """
    cosines = CHUNK_ON_CPU if W.device.type == "cpu" else CHUNK
    num_columns = W.shape[1]
    size = min(num_columns, max(FEWEST_COLUMNS, cosines // len(rows)))
    memory = [W.new_empty(number * size) for number in (len(W), len(rows), len(rows))]
    for first in range(0, num_columns, size):
        width = min(size, num_columns - first)
        yield (
            slice(first, first + width),
            *(x[: len(x) // size * width].view(-1, width) for x in memory),
        )
