"""The objective as it runs: the results of objective.py, but a matrix [N, K] is never stored whole,
and the columns may be spread over processes.

The keys are few; their part is written plainly and differentiated by autograd. The K columns are
visited twice, a chunk at a time. With a query's nearest column as origin, n_i = max_j s_ij:

    sweep   z_i(tau) = sum_j exp((s_ij - n_i) / tau) at both temperatures, and at the encoder's
            tau dlog(z_i)/dq_i = sum_j exp((s_ij - n_i) / tau) u_j / z_i, the mean direction
    pull    p_ij = x_i exp((s_ij - n_i) / tau_a), where x_i follows from z_i and the keys, hence
            G_j = sum_i p_ij q_i, and since s_ij = q_i . u_j
            g_j = - (G_j - (G_j . u_j) u_j) / (N |w_j| tau_a)

No exponent is above 0 and one of each row is 0, so nothing overflows and no sum vanishes.

Columns on other processes are handled like other chunks: the queries of all processes are gathered,
each process sweeps its own columns for all of them, and the sums return to the owners of the
queries. W and v stay where they are. Alone, the collectives do nothing and the same lines run.

B processes whose queries were gathered (R; 1 alone), V query views, T terms, C columns in a chunk.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from adco.objective import ALL, Denominator, Losses, Pair, own_key, spread_of
from ops.distributed import ALONE, World, all_to_all_blocks, gather_rows, in_one_message

SHORTEST = 1e-12  # lower bound of a column's length, as eps in F.normalize
FEWEST_COLUMNS = 256  # below this a matrix product becomes slow
# Cosines in a chunk: on a CPU they have to stay in its cache, on a GPU they have to fill it.
CHUNK_ON_CPU, CHUNK = 2**19, 2**24


class ColumnSums(NamedTuple):
    """Sums over columns, per query. First dimension: B, or the shards that the sums came from."""

    nearest: Tensor  # [B, V, N]  n_i
    log_sums: Tensor  # [B, V, N, number of temperatures]  log z_i
    direction: Tensor  # [B, V, N, D]  the mean direction, at the first temperature
    num_nearer: Tensor  # [B, T, N]  number of columns nearer than the own key


def losses(
    pairs: list[Pair],
    W: Tensor,
    moco_t: float,
    mem_t: float,
    first_key: int = 0,
    world: World = ALONE,
    denominator: Denominator = ALL,
) -> Losses:
    """Both players' losses and gradients for one round: objective.reference_losses, faster.

    W: [D, K]; of several processes [D, K / R], the columns of this one. Then bank_gradient and
    attention are those of its columns, summed over the queries of all processes.
    """
    # The keys: cosines of every query with all M of them.
    queries, view_of = distinct_queries(pairs)  # [V, N, D]
    target = own_key(queries.shape[1], first_key, W.device)[:, None]  # [N, 1]
    key_cosines = [q @ keys.T for q, keys, _ in pairs]  # [N, M] each
    own = torch.stack([s.gather(1, target)[:, 0] for s in key_cosines])  # [T, N]

    # The columns, first visit: sums over all K of them, at both temperatures.
    all_queries, sums = column_sums(queries, W, (moco_t, mem_t), own.detach(), view_of, world)
    total_weight, log_weight = sum(pair.weight for pair in pairs), denominator.log_column_weight
    loss = mass = top1 = top5 = 0
    weights = torch.zeros_like(sums.nearest)  # [V, N]  x_i
    for t, (pair, v) in enumerate(zip(pairs, view_of, strict=True)):
        # The softmax over all M + K at tau, counted from the nearest column.
        nearest, log_sums = sums.nearest[v], sums.log_sums[v] + log_weight  # [N], [N, 2]
        keys = denominator.of_keys(key_cosines[t], target)  # [N, M]
        s = keys - nearest[:, None]
        log_all = torch.logaddexp((s / moco_t).logsumexp(dim=1), log_sums[:, 0])
        loss = loss + pair.weight * (log_all - (own[t] - nearest) / moco_t).mean()

        # The softmax at tau_a: its mass on the keys, and its weight on the nearest column.
        share = pair.weight / total_weight
        log_keys = (s.detach() / mem_t).logsumexp(dim=1)
        log_all = torch.logaddexp(log_keys, log_sums[:, 1].detach())
        mass = mass + share * (log_keys - log_all).exp().mean()
        weights[v] += share * (log_weight - log_all).exp()
        num_nearer = (keys > own[t][:, None]).sum(dim=1) + denominator.columns * sums.num_nearer[t]
        top1 = top1 + share * (num_nearer < 1).to(W.dtype).mean()
        top5 = top5 + share * (num_nearer < 5).to(W.dtype).mean()

    # The columns, second visit: the gradient of each.
    nearest, weights = in_one_message(gather_rows, [sums.nearest[None], weights[None]], world)
    gradient, attention = pull(all_queries, W, nearest, weights, mem_t, total_weight)
    spread = spread_of(queries[view_of[0]], own[0])
    return Losses(loss, gradient, mass, top1, top5, attention, *spread)


def own_key_loss(
    queries: Tensor, own_keys: Tensor, W: Tensor, tau: float, world: World = ALONE
) -> Tensor:
    """The loss of the start-up, 0-d: one positive against all K columns, at tau.

    queries, own_keys: [N, D].  W: as in `losses`.
    """
    own = (queries * own_keys).sum(dim=1)  # [N]
    _, sums = column_sums(queries[None], W, (tau,), own.detach()[None], [0], world)
    own = (own - sums.nearest[0]) / tau
    return (torch.logaddexp(own, sums.log_sums[0, :, 0]) - own).mean()


def distinct_queries(pairs: list[Pair]) -> tuple[Tensor, list[int]]:
    """Each query view once, [V, N, D], and which of them each term uses.

    Terms that share their queries share all work with the columns.
    """
    views = list({id(pair.queries): pair.queries for pair in pairs}.values())
    view_of = [next(v for v, q in enumerate(views) if q is pair.queries) for pair in pairs]
    return torch.stack(views), view_of


def column_sums(
    queries: Tensor, W: Tensor, taus: tuple, own: Tensor, view_of: list[int], world: World
) -> tuple[Tensor, ColumnSums]:
    """The queries of all processes [B, V, N, D], without a gradient, and the sums over all K
    columns for those of this process, [V, N, D], without dimension B.

    own: cosines [T, N] with the own keys.  log_sums has a gradient at the first temperature.
    """
    with torch.no_grad():
        # Every query goes to every shard, and its sums come back.
        tensors = [queries.detach()[None], own[None]]
        all_queries, all_own = in_one_message(gather_rows, tensors, world)
        swept = sweep(all_queries, W, taus, all_own, view_of)
        per_shard = ColumnSums(*in_one_message(all_to_all_blocks, list(swept), world))
        sums = join_shards(per_shard, taus)
        gradient = sums.direction / taus[0]

    # Add a term of value 0 that has the known gradient at the first temperature (straight-through).
    # It reaches the second temperature too, which nothing differentiates.
    through = ((queries - queries.detach()) * gradient).sum(dim=-1)  # [V, N]
    return all_queries, sums._replace(log_sums=sums.log_sums + through[..., None])


@torch.no_grad()
def sweep(queries: Tensor, W: Tensor, taus: tuple, own: Tensor, view_of: list[int]) -> ColumnSums:
    """Sums over the columns of W for queries [B, V, N, D] with own keys at cosines [B, T, N].

    One pass over the chunks, as in an online softmax: the origin n_i may grow with every chunk.
    """
    rows = queries.flatten(0, 2)  # [B V N, D]
    nearest = rows.new_full((len(rows), 1), -torch.inf)
    z = [torch.zeros_like(nearest) for _ in taus]
    direction = torch.zeros_like(rows)
    num_nearer = torch.zeros_like(own)
    for columns, u, cosines, weights in chunks(rows, W):
        unit_columns(W[:, columns], out=u)  # [D, C]
        torch.mm(rows, u, out=cosines)  # [B V N, C]

        # Count the columns that are nearer than the own key, term by term. 0 or 1 in float: on a
        # CPU several times as fast as counting booleans. The weights' memory is still free.
        by_view, marks = (x.view(*queries.shape[:3], -1) for x in (cosines, weights))
        for t, v in enumerate(view_of):
            closer = torch.gt(by_view[:, v], own[:, t, :, None], out=marks[:, v])  # [B, N, C]
            num_nearer[:, t] += closer.sum(dim=-1)

        # A nearer column moves the origin, and shrinks what was summed before.
        before, nearest = nearest, torch.maximum(nearest, cosines.amax(dim=1, keepdim=True))
        cosines.sub_(nearest)
        for i, tau in enumerate(taus):
            shrink = ((before - nearest) / tau).exp_()
            torch.mul(cosines, 1 / tau, out=weights).exp_()
            z[i] = z[i] * shrink + weights.sum(dim=1, keepdim=True)
            if i == 0:
                direction.mul_(shrink).addmm_(weights, u.T)
    z = torch.cat(z, dim=1)
    return ColumnSums(
        nearest.view(queries.shape[:3]),
        z.log().view(*queries.shape[:3], -1),
        (direction / z[:, :1]).view_as(queries),
        num_nearer,
    )


def join_shards(per_shard: ColumnSums, taus: tuple) -> ColumnSums:
    """Sums over all columns from the sums over each shard: first dimension R to none."""
    nearest = per_shard.nearest.amax(dim=0)  # [V, N]
    # Every shard's sums move to the common origin.
    moved = [(per_shard.nearest - nearest) / tau for tau in taus]
    log_parts = per_shard.log_sums + torch.stack(moved, dim=-1)  # [R, V, N, number of taus]
    log_sums = log_parts.logsumexp(dim=0)
    portion = (log_parts - log_sums)[..., :1].exp()  # [R, V, N, 1]
    direction = (portion * per_shard.direction).sum(dim=0)
    return ColumnSums(nearest, log_sums, direction, per_shard.num_nearer.sum(dim=0))


@torch.no_grad()
def pull(
    queries: Tensor, W: Tensor, nearest: Tensor, weights: Tensor, tau: float, total_weight: float
) -> tuple[Tensor, Tensor]:
    """g [D, K], a mean over queries times the plan's weight, and the attention [K] to each column.

    queries: [B, V, N, D].  nearest, weights: n_i and x_i, [B, V, N].
    """
    strength = total_weight / (queries.shape[0] * queries.shape[2])
    rows, nearest, weights = queries.flatten(0, 2), nearest.reshape(-1, 1), weights.flatten()
    weighted = (rows * (-strength * weights[:, None])).T.contiguous()  # [D, B V N]
    gradient, attention = torch.empty_like(W), W.new_empty(W.shape[1])
    for columns, u, cosines, _ in chunks(rows, W):
        lengths = unit_columns(W[:, columns], out=u)  # [C], of [D, C]
        p = torch.mm(rows, u, out=cosines).sub_(nearest).mul_(1 / tau).exp_()  # p_ij / x_i
        torch.mv(p.T, weights, out=attention[columns])
        G = torch.mm(weighted, p, out=gradient[:, columns])  # [D, C]
        # Take off the radial part, and divide by |w_j| tau_a.
        G.addcmul_(u, (G * u).sum(dim=0), value=-1).div_(lengths.mul_(tau))
    return gradient, attention


def unit_columns(columns: Tensor, out: Tensor) -> Tensor:
    """Divide columns [D, C] by their lengths [C], which are returned, into `out`."""
    lengths = torch.mul(columns, columns, out=out).sum(dim=0).sqrt_().clamp_min_(SHORTEST)
    torch.div(columns, lengths, out=out)
    return lengths


def chunks(rows: Tensor, W: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """The columns of W, a chunk at a time: which they are, and memory for their directions u [D, C]
    and twice for their cosines with the rows [number of rows, C].

    The chunks are sized for the device's cache, and all use the same memory.
    """
    most_cosines = CHUNK_ON_CPU if W.device.type == "cpu" else CHUNK
    num_columns = W.shape[1]
    size = min(num_columns, max(FEWEST_COLUMNS, most_cosines // len(rows)))
    memory = [W.new_empty(height * size) for height in (len(W), len(rows), len(rows))]
    for first in range(0, num_columns, size):
        # The last chunk may be narrower: it takes the front of the memory, so that its rows too
        # lie one after the other.
        width = min(size, num_columns - first)
        buffers = [flat[: len(flat) // size * width].view(-1, width) for flat in memory]
        yield slice(first, first + width), *buffers
