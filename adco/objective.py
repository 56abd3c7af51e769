"""The game between the encoder and its adversaries (AdCo, arXiv:2011.08435, section 3).

N queries q_i and M keys k_m are unit rows. The K adversaries are the columns w_j of W [D, K]; the
encoder sees only their directions u_j = w_j / |w_j|. Column t(i) of the keys is the key of query i
itself. At temperature tau

    s_im = q_i . k_m          s_ij = q_i . u_j
    L(tau) = - mean_i log( exp(s_i,t(i) / tau) / (sum_m exp(s_im / tau) + sum_j exp(s_ij / tau)) )

The keys of the other pictures are negatives as well. A training mode is a list of terms (q, k, c),
and the objective is the sum of c L over the terms. The encoder descends it at tau; the adversaries
ascend it at a temperature of their own, tau_a.

How the adversaries move
    Write p_ij for the softmax weight of adversary j seen from query i, at tau_a. Then
        dL/ds_ij = p_ij / (N tau_a)       so  dL/du_j = mean_i p_ij q_i / tau_a.
    Normalising removes the part of dw along w_j: du = (I - u u') dw / |w|, hence
        dL/dw_j = ( mean_i p_ij q_i  -  (mean_i p_ij s_ij) u_j ) / (|w_j| tau_a).
    An adversary is pulled along the sphere, towards the queries that give it a high softmax weight:
    the gradient is orthogonal to w_j. Ascent by SGD with momentum is descent on
        g = - sum_terms c dL/dW,  averaged over processes
        v <- mu v + g + lambda W
        W <- W - eta v
    g has no radial part, so |w_j| can only grow with g and shrink with the weight decay lambda.
    The step along the sphere scales as 1 / |w_j|^2: a bank of long columns learns slowly.

Other negatives in the same sum (Denominator)
    Columns that do not move, and are overwritten by keys, are MoCo's queue; no columns leave the
    keys of the batch. Decoupled contrast (arXiv:2110.06848) leaves the own key out of the sum.
    nt_xent is SimCLR's loss, which has no second encoder: the gradient goes through both views.

This file holds the definition, by autograd. Both players see the same q, k and W, from one forward
pass: nobody moves first. What runs is fused.losses, which gives the same numbers faster.
"""

from math import inf, log
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Pair(NamedTuple):
    """One term of the objective, embedded."""

    queries: Tensor  # [N, D]  with grad
    keys: Tensor  # [M, D]  without
    weight: float


class Denominator(NamedTuple):
    """What is summed below the fraction in L; by default all M keys and all K columns."""

    columns: bool = True  # whether the K columns count
    batch_keys: bool = True  # whether the keys of the other pictures count
    decoupled: bool = False  # whether the own key is left out

    @property
    def log_column_weight(self) -> float:
        return 0.0 if self.columns else -inf

    def of_keys(self, cosines: Tensor, target: Tensor) -> Tensor:
        """Those [N, M] of the keys that count, with the own ones at target [N, 1]."""
        if not self.batch_keys:
            return cosines.gather(1, target)
        return cosines.scatter(1, target, -inf) if self.decoupled else cosines

    def bias(self, logits: Tensor, target: Tensor, num_keys: int) -> Tensor:
        """Logarithms of the weights of the terms, [N, M + K]."""
        bias = torch.zeros_like(logits)
        bias[:, num_keys:] = self.log_column_weight
        if not self.batch_keys:
            bias[:, :num_keys] = -inf
        return bias.scatter(1, target[:, None], -inf if self.decoupled else 0)


ALL = Denominator()


class Losses(NamedTuple):
    """What one round says about both players."""

    loss: Tensor  # 0-d  sum c L(tau), in nats; its graph reaches the queries only
    bank_gradient: Tensor  # [D, K]  g of this process
    mass: Tensor  # 0-d  softmax mass at tau_a on all M keys, mean over queries and terms
    top1: Tensor  # 0-d  share of queries whose own key is the nearest of those summed over
    top5: Tensor  # 0-d
    attention: Tensor  # [K]  softmax weight at tau_a of each column, summed over queries
    mean_query: Tensor  # [D]  of the first term
    alignment: Tensor  # 0-d  mean |q - own key|^2, of the first term
    uniformity: Tensor  # 0-d  of the queries of the first term


def own_key(num_queries: int, first_key: int, device) -> Tensor:
    """Column of each query's own key among the gathered keys, [N] int64.

    first_key: that of the first query; rank * N, where rank counts processes over all nodes.
    """
    return first_key + torch.arange(num_queries, device=device)


def contrastive_logits(queries: Tensor, keys: Tensor, directions: Tensor) -> Tensor:
    """Cosines [N, M + K] of queries [N, D] with keys [M, D] and adversaries [D, K], unit length."""
    return torch.cat([queries @ keys.T, queries @ directions], dim=1)


def info_nce(logits: Tensor, target: Tensor, tau: float, bias: Tensor | float = 0.0) -> Tensor:
    """L(tau), 0-d, in nats. bias: see Denominator."""
    logits = logits / tau
    own = logits.gather(1, target[:, None])[:, 0]
    return ((logits + bias).logsumexp(dim=1) - own).mean()


def nt_xent(embedded: list[Tensor], tau: float, decoupled: bool = False) -> tuple[Tensor, Tensor]:
    """SimCLR's loss, 0-d, and the cosines [2 M, 2 M] it is made of, -inf on the diagonal.

    embedded: both views of all M pictures, unit rows [M, D]. Each view is a query, the other view
    of its picture its own key, and the views of the other pictures are negatives.
    """
    rows = torch.cat(embedded)
    cosines = (rows @ rows.T).fill_diagonal_(-inf)
    target = torch.arange(len(rows), device=rows.device).roll(len(embedded[0]))
    bias = Denominator(decoupled=decoupled).bias(cosines, target, len(rows))
    return info_nce(cosines, target, tau, bias), cosines


def spread_of(queries: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean query [D], alignment and uniformity (Wang and Isola, arXiv:2005.10242; less is better).

    queries: unit rows [N, D].  own: cosines [N] with their own keys.  Alignment is the mean squared
    distance of the two; uniformity log mean exp(-2 |q - q'|^2) over all pairs of two queries.
    """
    N, queries = len(queries), queries.detach()
    exponents = (4 * (queries @ queries.T) - 4).fill_diagonal_(-inf)
    uniformity = exponents.flatten().logsumexp(0) - log(max(1, N * (N - 1)))
    return queries.mean(dim=0), (2 - 2 * own.detach()).mean(), uniformity


def directions_of(W: Tensor) -> Tensor:
    """Unit columns [D, K]."""
    return F.normalize(W, dim=0)


def reference_losses(
    pairs: list[Pair],
    W: Tensor,
    moco_t: float,
    mem_t: float,
    first_key: int = 0,
    denominator: Denominator = ALL,
) -> Losses:
    """Both players' losses and gradients for one round, by autograd.

    pairs: the plan's terms with embeddings of unit length.  W: [D, K], left as it is.
    """
    target = own_key(len(pairs[0].queries), first_key, W.device)
    total_weight = sum(pair.weight for pair in pairs)
    moving_W = W.detach().clone().requires_grad_()

    loss = bank_loss = mass = top1 = top5 = attention = 0
    for queries, keys, weight in pairs:
        # The encoder descends this loss, while the adversaries stand still.
        logits = contrastive_logits(queries, keys, directions_of(W).detach())  # [N, M + K]
        bias = denominator.bias(logits, target, len(keys))
        loss = loss + weight * info_nce(logits, target, moco_t, bias)

        # The adversaries ascend this one, while the embeddings stand still.
        with torch.enable_grad():
            bank_logits = contrastive_logits(queries.detach(), keys, directions_of(moving_W))
            bank_loss = bank_loss + weight * info_nce(bank_logits, target, mem_t, bias)

        # What is logged, as a mean over the terms.
        share, logits = weight / total_weight, logits.detach()
        p = (logits / mem_t + bias).softmax(dim=1)  # [N, M + K]
        mass = mass + share * p[:, : len(keys)].sum(dim=1).mean()
        attention = attention + share * p[:, len(keys) :].sum(dim=0)
        nearer = logits > logits.gather(1, target[:, None])  # than the own key
        num_nearer = (nearer & (bias > -inf)).sum(dim=1)
        top1 = top1 + share * (num_nearer < 1).to(W.dtype).mean()
        top5 = top5 + share * (num_nearer < 5).to(W.dtype).mean()

    (gradient,) = torch.autograd.grad(bank_loss, moving_W)
    first, keys, _ = pairs[0]
    own = (first @ keys.T).gather(1, target[:, None])
    return Losses(loss, -gradient, mass, top1, top5, attention, *spread_of(first, own))
