"""Collectives on gloo, and that several processes do what one does on the joined batch."""

import pytest
import torch

import adco
from ops.distributed import (
    World,
    check_ranks_agree,
    current_world,
    exchange_rows,
    gather_rows,
    gather_uneven_rows,
    wrap_encoder,
)
from tests.support.gloo import in_processes


def exchange(world: World, permutation: torch.Tensor):
    rows = len(permutation) // world.size
    own = torch.arange(world.rank * rows, (world.rank + 1) * rows).float()[:, None].repeat(1, 3)
    there = exchange_rows(own, permutation, world)
    back = exchange_rows(there, torch.argsort(permutation), world)
    return there, back, own


@pytest.mark.parametrize("size", [2, 3])
def test_exchanged_rows_are_the_permuted_batch_and_come_back(size):
    permutation = torch.randperm(4 * size, generator=torch.Generator().manual_seed(size))
    results = in_processes(exchange, size, permutation)
    joined = torch.cat([there for there, _, _ in results])
    assert torch.equal(joined[:, 0].long(), permutation)
    assert all(torch.equal(back, own) for _, back, own in results)


def gather(world: World):
    own = torch.full((world.rank + 1, 2), float(world.rank))
    return gather_uneven_rows(own, world), gather_rows(own[:1], world)


def test_gathered_rows_stand_in_the_order_of_ranks():
    for uneven, even in in_processes(gather, 3):
        assert uneven[:, 0].tolist() == [0, 1, 1, 2, 2, 2]
        assert even[:, 0].tolist() == [0, 1, 2]


def disagree(world: World):
    tensors = {"same": torch.ones(3), "other": torch.tensor([1.0, world.rank])}
    try:
        check_ranks_agree(tensors, world)
    except RuntimeError as error:
        return str(error)
    return ""


def test_a_tensor_that_differs_between_ranks_is_named():
    assert all("other" in message for message in in_processes(disagree, 2))


def step_on_share(world: World, wrapped: bool) -> dict:
    """Two steps in eval mode, in float64, on this process's part of a batch of 8."""
    torch.manual_seed(0)
    model = adco.AdCo("resnet10", dim=16).eval().double()
    bank = adco.NegativeBank(64, 16).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    runner = wrap_encoder(model, world) if wrapped else model
    assert current_world().size == world.size
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        views = torch.randn(2, 8, 3, 32, 32, dtype=torch.float64, generator=generator)
        share = list(views.chunk(world.size, dim=1)[world.rank])
        adco.train_step(
            runner, bank, optimizer, share, adco.view_plan(sym=True), mem_t=0.1, memory_lr=0.5
        )
    return {**model.state_dict(), **bank.state_dict()}


@pytest.mark.parametrize("wrapped", [True, False], ids=["ddp", "bare"])
def test_two_processes_equal_one_on_the_joined_batch(wrapped):
    alone = step_on_share(World(), False)
    for state in in_processes(step_on_share, 2, wrapped):
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-10, msg=name)
