"""Multinomial logistic regression on features, by L-BFGS over the features of all processes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adco.probe.features import Features, blocks, unit_rows
from adco.probe.metrics import Accuracy, accuracies, count_right
from ops.distributed import World, sum_across_ranks_

COSTS = tuple(10.0**power for power in range(-1, 6))  # for features of unit length


def zeros(num_classes: int, rows: Tensor) -> nn.Linear:
    """A classifier of rows [n, d], or of their directions, with all weights 0."""
    classifier = nn.Linear(rows.shape[1], num_classes).to(unit_rows(rows[:0]))
    for parameter in classifier.parameters():
        nn.init.zeros_(parameter)
    return classifier


def fit_(classifier: nn.Linear, train: list[Features], cost: float, world: World) -> None:
    """Minimise  cost * sum of cross-entropies + |weight|^2 / 2,  starting from the classifier.

    This is scikit-learn's objective, with C = cost. train: this process's shares. Every process
    begins with the same weights, and ends with the same.
    """
    weight, bias = classifier.weight, classifier.bias
    # Divided by cost and by the number of pictures, so that one tolerance fits every problem.
    count = torch.tensor(sum(len(share.labels) for share in train), device=weight.device)
    total = sum_across_ranks_(count, world).item()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=100, tolerance_grad=1e-6, tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        # This process's share of the loss and of its gradient. The scores of all pictures would
        # not fit into memory at once.
        optimizer.zero_grad()
        loss = weight.new_zeros(())
        for rows, labels in blocks(*train):
            part = F.cross_entropy(classifier(rows), labels, reduction="sum") / total
            part.backward()
            loss += part.detach()
        # Summed over processes: all then take the same step.
        for x in (weight.grad, bias.grad, loss):
            sum_across_ranks_(x, world)
        # The penalty belongs to the weights of all, so it is added once; the bias has none.
        weight.grad.add_(weight.detach(), alpha=1 / (cost * total))
        return loss + weight.detach().square().sum() / (2 * cost * total)

    optimizer.step(objective)


@torch.no_grad()
def accuracy(classifier: nn.Linear, features: Features, world: World) -> Accuracy:
    """The classifier's accuracy over the pictures of all processes."""
    counts = sum(count_right(classifier(rows), labels) for rows, labels in blocks(features))
    return accuracies(counts[None], world)[0]
