"""The game between the encoder and its adversaries (AdCo, arXiv:2011.08435, section 3).

N queries q_i and M keys k_m, unit rows; K adversaries, the columns w_j of W [D, K], seen only
through
their directions u_j = w_j / |w_j|. Query i's own key is column t(i) of the keys. At temperature tau

    s_im = q_i . k_m          s_ij = q_i . u_j
    L(tau) = - mean_i log( exp(s_i,t(i) / tau) / (sum_m exp(s_im / tau) + sum_j exp(s_ij / tau)) )

The other pictures' keys are negatives as well. A training mode is a list of terms (q, k, c), and
the
objective is sum c L. The encoder descends it at tau; the adversaries ascend it at tau_a.

How the adversaries move
    Write p_ij for the softmax weight of adversary j seen from query i, at tau_a. Then
        dL/ds_ij = p_ij / (N tau_a)       so  dL/du_j = mean_i p_ij q_i / tau_a.
    u_j = w_j / |w_j| lets only the part across w_j pass: du = (I - u u') dw / |w|, hence
        dL/dw_j = ( mean_i p_ij q_i  -  (mean_i p_ij s_ij) u_j ) / (|w_j| tau_a).
    An adversary is pulled towards the queries that mistake it most for their key, along the sphere:
    the gradient is orthogonal to w_j. Ascent by SGD with momentum is descent on
        g = - sum_terms c dL/dW,  averaged over processes
        v <- mu v + g + lambda W
        W <- W - eta v
    Since g has no radial part, |w_j| can only grow with g and shrink with the weight decay lambda;
    the step along the sphere scales as 1 / |w_j|^2, so a bank of long columns learns slowly.

This file holds the definition. Both players see the same q, k and W: one forward pass, and nobody
moves first.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Pair(NamedTuple):
    """One term of the objective, embedded."""

    queries: Tensor  # [N, D]  with grad
    keys: Tensor  # [M, D]  without
    weight: float


class Contrast(NamedTuple):
    """What one round says about both players."""

    loss: Tensor  # 0-d  sum c L(tau), in nats; its graph reaches the queries only
    bank_gradient: Tensor  # [D, K]  g of this process
    mass: Tensor  # 0-d  softmax mass at tau_a on all M keys, mean over queries and terms
    top1: Tensor  # 0-d  share of queries whose own key is the nearest of all M + K
    top5: Tensor  # 0-d
    attention: (
        Tensor  # [K]  softmax weight at tau_a that the queries give a column, summed over queries
    )


def own_key(num_queries: int, rank: int, device) -> Tensor:
    """Column of each query's own key among the gathered keys: rank * N + i.

    Returns: [N] int64.  rank counts processes over all nodes, not GPUs of this one.
    """
    return rank * num_queries + torch.arange(num_queries, device=device)


def contrastive_logits(queries: Tensor, keys: Tensor, directions: Tensor) -> Tensor:
    """Cosines [N, M + K] of queries [N, D] with keys [M, D] and adversaries [D, K], all of unit
    length.
    """
    return torch.cat([queries @ keys.T, queries @ directions], dim=1)


def info_nce(logits: Tensor, target: Tensor, tau: float) -> Tensor:
    """L(tau), 0-d, in nats."""
    return F.cross_entropy(logits / tau, target)


def directions_of(W: Tensor) -> Tensor:
    """Unit columns [D, K]."""
    return F.normalize(W, dim=0)


def contrast(pairs: list[Pair], W: Tensor, moco_t: float, mem_t: float, rank: int = 0) -> Contrast:
    """Both players' losses and gradients for one round, by autograd.

    pairs: the plan's terms with embeddings of unit length.  W: [D, K], left as it is.
    """
    num_queries = len(pairs[0].queries)
    target = own_key(num_queries, rank, W.device)
    total_weight = sum(pair.weight for pair in pairs)

    directions = directions_of(W).detach()
    logits = [contrastive_logits(q, keys, directions) for q, keys, _ in pairs]  # [N, M + K] each
    loss = sum(c * info_nce(s, target, moco_t) for s, (_, _, c) in zip(logits, pairs, strict=True))

    with torch.enable_grad():
        W = W.detach().requires_grad_()
        directions = directions_of(W)
        attacks = [contrastive_logits(q.detach(), keys, directions) for q, keys, _ in pairs]
        attack = sum(
            c * info_nce(s, target, mem_t) for s, (_, _, c) in zip(attacks, pairs, strict=True)
        )
        (gradient,) = torch.autograd.grad(attack, W)

    shares = [(s.detach(), c / total_weight) for s, (_, _, c) in zip(logits, pairs, strict=True)]
    return Contrast(loss, -gradient, *diagnostics(shares, target, len(pairs[0].keys), mem_t))


def diagnostics(shares: list[tuple[Tensor, float]], target: Tensor, num_keys: int, mem_t: float):
    """mass, top1, top5, attention from logits [N, M + K], each with its share of the objective."""
    mass = top1 = top5 = attention = 0
    for logits, share in shares:
        weights = (logits / mem_t).softmax(dim=1)
        mass = mass + share * weights[:, :num_keys].sum(dim=1).mean()
        attention = attention + share * weights[:, num_keys:].sum(dim=0)
        own = logits.gather(1, target[:, None])
        nearer = (logits > own).sum(dim=1)  # 0 = the own key comes first
        top1 = top1 + share * (nearer < 1).to(logits.dtype).mean()
        top5 = top5 + share * (nearer < 5).to(logits.dtype).mean()
    return mass, top1, top5, attention
