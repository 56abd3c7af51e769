"""What is not finite reaches neither weights, momentum, statistics nor bank."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import adco
from adco import fused
from adco.probe.metrics import count_right
from adco.step import Round, idle_share, startup_step
from ops.distributed import World
from ops.training import BufferSnapshot, check_finite, skips_on_device, wrap_encoder
from tests.support.game import assert_same, small_game, state_of, views_of
from tests.support.gloo import in_processes

PLAN = adco.view_plan(sym=True)


def step(game, views, network=None) -> Round:
    model, bank, optimizer = game
    taus = dict(mem_t=0.1, memory_lr=0.5)
    return adco.train_step(network or model, bank, optimizer, views, PLAN, **taus)


def with_nan(views, bad: bool = True):
    if bad:
        views[1][3, 0, 5, 5] = torch.nan
    return views


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_nan_in_one_picture_changes_nothing(fused, steps_before):
    game = small_game(fused=fused)
    for i in range(steps_before):
        step(game, views_of(i))
    before = state_of(*game)
    assert step(game, with_nan(views_of(7))).dropped == 1
    assert_same(state_of(*game), before)
    following = step(game, views_of(8))
    assert following.dropped == 0
    assert all(value.isfinite().all() for value in [*state_of(*game).values(), *following])


def test_a_dropped_step_leaves_the_next_one_as_if_it_had_not_been():
    with_drop, without = small_game(fused=True), small_game(fused=True)
    for game in (with_drop, without):
        step(game, views_of(0))
    step(with_drop, with_nan(views_of(7)))
    for game in (with_drop, without):
        game[0].copy_query_to_key()  # the key encoder alone went on
        step(game, views_of(1))
    assert_same(state_of(*with_drop), state_of(*without))


@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf])
def test_one_number_of_the_banks_gradient_is_enough_to_drop(fault):
    model, bank, _ = small_game()
    before, gradient = bank.state_dict()["W"].clone(), torch.ones_like(bank.W)
    bank.ascend_(gradient, 3.0, 0.9, 1e-4, check_finite(model, gradient)[1])
    assert not torch.equal(bank.W, before)
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    gradient[2, 7] = fault
    bank.ascend_(gradient, 3.0, 0.9, 1e-4, check_finite(model, gradient)[1])
    assert_same(bank.state_dict(), before)


def drop_on_two(world: World) -> tuple:
    """A step, one that has a NaN on process 1, and one after it: the state after each; dropped."""
    game, states = small_game(), []
    network = wrap_encoder(game[0], world)
    dropped = []
    for i in range(3):
        views = with_nan(views_of(i, world=world), i == world.rank == 1)
        dropped.append(step(game, views, network).dropped)
        states.append(state_of(*game))
    return states, dropped


def test_a_nan_on_one_process_drops_the_step_on_all():
    ranks = in_processes(drop_on_two, 2)
    for (before, after, _), dropped in ranks:
        assert dropped == [0, 1, 0]
        assert_same(after, before)
    following = [states[2] for states, _ in ranks]
    names = [name for name in following[0] if "running" not in name]
    assert_same(*({name: state[name] for name in names} for state in following))


def test_start_up_writes_no_key_that_is_not_finite():
    game = small_game()
    model, bank, optimizer = game
    before = state_of(*game)
    views = with_nan(views_of(0))
    _, dropped = startup_step(model, bank, optimizer, views, PLAN[0], first_column=0, moco_t=0.12)
    assert dropped == 1
    assert_same(state_of(*game), before)
    bank.write_columns_(torch.tensor([[1.0] * 16, [torch.inf] * 16]), 5)
    assert bank.W[:, 5].eq(1).all() and torch.equal(bank.W[:, 6], before["W"][:, 6])


def test_a_loss_that_is_not_finite_drops_the_step(monkeypatch):
    def losses(*arguments, **keywords):
        found = fused.losses(*arguments, **keywords)
        return found._replace(loss=found.loss + torch.inf)  # its gradients stay finite

    monkeypatch.setattr("adco.step.losses", losses)
    assert step(small_game(), views_of(0)).dropped == 1


def test_what_a_step_reports_is_plain_and_of_the_whole_batch():
    game, views = small_game(torch.float64), views_of(0, dtype=torch.float64)
    mean = game[0](views[:1])[0].mean(dim=0).detach()
    result = step(game, views)
    gradients = [p.grad.flatten() for p in game[0].parameters() if p.grad is not None]
    torch.testing.assert_close(result.grad_norm, torch.cat(gradients).norm())
    torch.testing.assert_close(result.spread, 1 - mean @ mean)
    assert not any(value.requires_grad for value in result)
    attention = torch.tensor([0.09, 0.11, 0.2, 0.3])  # chance: 1 / (6 + 4)
    assert idle_share(attention, adco.NegativeBank(4, 2), 6) == 0.25


class NoReads(TorchDispatchMode):
    """Raises where the host would have to wait for a number of the device."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "read by the host"
        # A number of the host's, which travels to the device while both stand still.
        assert function is not torch.ops.aten.lift_fresh.default, "the host copies a number"
        return function(*arguments, **(keywords or {}))


def test_a_step_makes_no_host_wait_for_its_numbers():
    game = small_game()
    with pytest.raises(AssertionError, match="host"), NoReads():
        step(game, views_of(0))  # the first lays out the momentum
    step(game, views_of(0))
    views = with_nan(views_of(1))
    with NoReads():
        step(game, views)
        startup_step(*game, views_of(2), PLAN[0], first_column=0, moco_t=0.12)
        adco.train_step(*game, views_of(3), PLAN, refresh=4)
        count_right(torch.eye(6), torch.arange(6))


def test_what_is_kept_of_a_single_buffer_is_a_copy():
    norm = torch.nn.BatchNorm1d(4)
    before = BufferSnapshot(norm)
    norm(torch.randn(8, 4))
    before.restore_if_(torch.ones(()))
    assert norm.num_batches_tracked == 0 == norm.running_mean.abs().sum()


class OnMetal(torch.Tensor):
    """A tensor that says that it lies on a Mac's GPU."""

    device = property(lambda self: torch.device("mps"))


@pytest.mark.parametrize("dropped", [None, 0.0, 1.0])
def test_where_kernels_may_not_obey_the_plain_step_does(monkeypatch, dropped):
    banks = [adco.NegativeBank(48, 16).double() for _ in range(2)]
    dropped = None if dropped is None else torch.tensor(dropped)
    for seed in range(2):
        gradient = torch.randn(16, 48, generator=torch.Generator().manual_seed(seed)).double()
        for bank, step in zip(banks, ("ascend_", "step_"), strict=True):
            getattr(bank, step)(gradient, 3.0, 0.9, 1e-4, dropped if seed else None)
    assert_same(banks[1].state_dict(), banks[0].state_dict(), rtol=1e-12)

    # On a Mac the plain one is taken, and a NaN that is dropped goes nowhere.
    before, W = {name: x.clone() for name, x in banks[1].state_dict().items()}, banks[1].W
    monkeypatch.setattr("adco.negatives.sgd", None)
    banks[1].W = W.as_subclass(OnMetal)
    banks[1].ascend_(torch.full_like(W, torch.nan), 3.0, 0.9, 1e-4, torch.tensor(1.0))
    banks[1].W = W
    assert_same(banks[1].state_dict(), before)
    weights = torch.ones(2)
    for tensor, obeys in ((weights, True), (weights.as_subclass(OnMetal), False)):
        assert skips_on_device(torch.optim.SGD([tensor], fused=True)) == obeys


def test_sgd_without_momentum_makes_the_host_wait_for_nothing_ever():
    game = small_game()
    game[2].param_groups[0]["momentum"] = 0
    before, views = state_of(*game), with_nan(views_of(0))
    with NoReads():
        step(game, views)
    assert_same(state_of(*game), before)
