"""Multinomial logistic regression on features, by L-BFGS over the features of all processes."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adco.probe import Features
from ops.distributed import World, sum_across_ranks_
from ops.metrics import Accuracy, accuracies, count_right

COSTS = tuple(10.0**power for power in range(-1, 6))  # for features of unit length


class Classifier(NamedTuple):
    weight: Tensor  # [classes, d]
    bias: Tensor  # [classes]

    def accuracy(self, features: Features, world: World) -> Accuracy:
        """Over the pictures of all processes."""
        scores = F.linear(features.rows, *self)
        return accuracies(count_right(scores, features.labels)[None], world)[0]


def fit(
    features: Features,
    num_classes: int,
    cost: float,
    world: World,
    start: Classifier | None = None,
    max_steps: int = 100,
) -> Classifier:
    """The minimum of  cost * sum of cross-entropies + |weight|^2 / 2,  the same on every process.

    features: this process's share.  start: where to begin, zeros by default.
    """
    rows, labels = features
    width = rows.shape[1]
    if start is None:
        start = Classifier(rows.new_zeros(num_classes, width), rows.new_zeros(num_classes))
    weight, bias = (part.clone().requires_grad_() for part in start)
    total = sum_across_ranks_(torch.tensor(len(rows), device=rows.device), world).item()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_steps,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(rows, weight, bias), labels, reduction="sum") / total
        loss.backward()
        everything = torch.cat([weight.grad.flatten(), bias.grad, loss.detach()[None]])
        sum_across_ranks_(everything, world)
        weight.grad.copy_(everything[: weight.numel()].view_as(weight))
        bias.grad.copy_(everything[weight.numel() : -1])
        weight.grad.add_(weight.detach(), alpha=1 / (cost * total))
        return everything[-1] + weight.detach().square().sum() / (2 * cost * total)

    optimizer.step(objective)
    return Classifier(weight.detach(), bias.detach())


def choose_cost(
    train: Features, held_out: Features, num_classes: int, world: World, costs=COSTS
) -> tuple[float, list[tuple[float, Accuracy]]]:
    """The smallest cost of those that score best on the held-out pictures, and all scores.

    costs: ascending; each fit starts from the one before.
    """
    table, classifier = [], None
    for cost in costs:
        classifier = fit(train, num_classes, cost, world, classifier)
        table.append((cost, classifier.accuracy(held_out, world)))
    best, _ = max(table, key=lambda row: row[1].right1)
    return best, table
