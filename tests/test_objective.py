"""The objective and the bank: laws that hold to the last digits, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from adco import fused, objective
from adco.negatives import NegativeBank
from adco.objective import Pair, directions_of, info_nce, own_key, reference_losses
from adco.plan import view_plan

TAU, TAU_A = 0.12, 0.05


def unit_rows(num_rows: int, dim: int = 5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num_rows, dim, dtype=torch.float64, generator=generator), dim=1)


def bank_matrix(dim: int = 5, size: int = 9):
    generator = torch.Generator().manual_seed(99)
    return torch.randn(dim, size, dtype=torch.float64, generator=generator)


def pairs_of(weights=(1.0,), num_queries: int = 4, num_keys: int = 8) -> list[Pair]:
    pairs = []
    for i, weight in enumerate(weights):
        queries = unit_rows(num_queries, seed=i).requires_grad_()
        pairs.append(Pair(queries, unit_rows(num_keys, seed=100 + i), weight))
    return pairs


def attack(pairs, W, tau: float):
    """sum c L(tau), the queries held fixed."""
    target = own_key(len(pairs[0].queries), 0, W.device)
    logits = [objective.contrastive_logits(q.detach(), k, directions_of(W)) for q, k, _ in pairs]
    return sum(c * info_nce(s, target, tau) for s, (_, _, c) in zip(logits, pairs, strict=True))


def slow_loss(pairs, W, tau: float, first_key: int) -> float:
    """The objective by three loops over scalars."""
    total = 0.0
    for q, keys, weight in pairs:
        for i, query in enumerate(q.detach()):
            positives = [math.exp(float(query @ key) / tau) for key in keys]
            negatives = [math.exp(float(query @ w) / float(w.norm()) / tau) for w in W.T]
            own = positives[first_key + i]
            total -= weight * math.log(own / (sum(positives) + sum(negatives))) / len(q)
    return total


@pytest.mark.parametrize("first_key", [0, 4])
@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.5), (1.0, 1.0, 1.0)])
def test_loss_equals_a_slow_triple_loop(weights, first_key):
    pairs, W = pairs_of(weights), bank_matrix()
    result = reference_losses(pairs, W, TAU, TAU_A, first_key)
    assert result.loss.item() == pytest.approx(slow_loss(pairs, W, TAU, first_key), rel=1e-12)


def test_bank_gradient_equals_the_closed_form():
    pairs, W = pairs_of((0.5, 0.5)), bank_matrix()
    expected = torch.zeros_like(W)
    norms, directions = W.norm(dim=0), directions_of(W)
    for q, keys, weight in pairs:
        s = q.detach() @ directions  # [N, K]
        p = (torch.cat([q.detach() @ keys.T, s], dim=1) / TAU_A).softmax(dim=1)[:, len(keys) :]
        pull = q.detach().T @ p / len(q)
        radial = (p * s).mean(dim=0) * directions
        expected -= weight * (pull - radial) / (norms * TAU_A)
    torch.testing.assert_close(reference_losses(pairs, W, TAU, TAU_A).bank_gradient, expected)


def test_bank_gradient_has_no_radial_part():
    W = bank_matrix()
    radial = (reference_losses(pairs_of(), W, TAU, TAU_A).bank_gradient * W).sum(dim=0)  # [K]
    torch.testing.assert_close(radial, torch.zeros_like(radial), atol=1e-12, rtol=0)


def test_query_gradient_equals_that_of_the_plain_objective():
    pairs, W = pairs_of((0.5, 0.5)), bank_matrix()
    reference_losses(pairs, W, TAU, TAU_A, first_key=4).loss.backward()
    found = [pair.queries.grad for pair in pairs]
    fresh = [pair.queries.detach().requires_grad_() for pair in pairs]
    target = own_key(4, 4, W.device)
    for q, (_, keys, weight) in zip(fresh, pairs, strict=True):
        (
            weight * info_nce(objective.contrastive_logits(q, keys, directions_of(W)), target, TAU)
        ).backward()
    for gradient, q in zip(found, fresh, strict=True):
        torch.testing.assert_close(gradient, q.grad)


def test_one_ascent_step_raises_the_adversaries_loss():
    pairs = pairs_of()
    bank = NegativeBank(9, 5).double()
    bank.W.copy_(bank_matrix())
    before = attack(pairs, bank.W, TAU_A)
    gradient = reference_losses(pairs, bank.W, TAU, TAU_A).bank_gradient
    bank.ascend_(gradient, lr=0.01, momentum=0.9, weight_decay=0.0)
    assert attack(pairs, bank.W, TAU_A) > before


def test_ascent_is_torch_sgd_with_maximize():
    pairs = pairs_of()
    bank = NegativeBank(9, 5).double()
    parameter = bank.W.clone().requires_grad_()
    sgd = torch.optim.SGD([parameter], lr=3.0, momentum=0.9, weight_decay=1e-4)
    for _ in range(4):
        gradient = reference_losses(pairs, bank.W, TAU, TAU_A).bank_gradient
        bank.ascend_(gradient, lr=3.0, momentum=0.9, weight_decay=1e-4)
        sgd.zero_grad()
        (-attack(pairs, parameter, TAU_A)).backward()
        sgd.step()
    torch.testing.assert_close(bank.W, parameter.detach())


def test_scaling_a_column_changes_no_loss():
    W = bank_matrix()
    scaled = W * torch.logspace(-3, 3, W.shape[1], dtype=W.dtype)
    plain, other = (reference_losses(pairs_of(), matrix, TAU, TAU_A) for matrix in (W, scaled))
    torch.testing.assert_close(other.loss, plain.loss)
    torch.testing.assert_close(other.mass, plain.mass)


def test_mass_is_the_softmax_share_of_all_keys_weighted_by_the_plan():
    pairs, W = pairs_of((0.5, 1.5)), bank_matrix()
    expected = 0.0
    for q, keys, weight in pairs:
        p = (objective.contrastive_logits(q.detach(), keys, directions_of(W)) / TAU_A).softmax(
            dim=1
        )
        expected += weight / 2 * p[:, : len(keys)].sum(dim=1).mean()
    torch.testing.assert_close(reference_losses(pairs, W, TAU, TAU_A).mass, expected)


@pytest.mark.parametrize("losses", [reference_losses, fused.losses])
@pytest.mark.parametrize("num_nearer", [0, 1, 4, 5])
def test_top_1_and_top_5_count_the_keys_and_adversaries_nearer_than_the_own_key(losses, num_nearer):
    query = torch.eye(1, 8, dtype=torch.float64)
    own, nearer = F.normalize(query + 0.5, dim=1), (query + 0.1).repeat(num_nearer, 1)
    keys = torch.cat([own, F.normalize(nearer[:1], dim=1), -own])
    result = losses([Pair(query, keys, 1.0)], torch.cat([nearer[1:], -own, -own]).T, TAU, TAU_A)
    assert (result.top1, result.top5) == (num_nearer < 1, num_nearer < 5)


@pytest.mark.parametrize("losses", [reference_losses, fused.losses])
def test_a_column_of_length_0_makes_nothing_infinite_and_the_bank_is_left_as_it_is(losses):
    W = bank_matrix()
    W[:, 2] = 0
    before = W.clone()
    assert all(x.isfinite().all() for x in losses(pairs_of(), W, TAU, TAU_A))
    assert torch.equal(W, before) and not W.requires_grad


def test_attention_sums_the_softmax_weight_of_each_adversary():
    (pair,), W = pairs_of(), bank_matrix()
    logits = objective.contrastive_logits(pair.queries.detach(), pair.keys, directions_of(W))
    expected = (logits / TAU_A).softmax(dim=1)[:, len(pair.keys) :].sum(dim=0)
    torch.testing.assert_close(reference_losses([pair], W, TAU, TAU_A).attention, expected)


def test_own_keys_follow_the_first_one():
    assert own_key(4, first_key=8, device="cpu").tolist() == [8, 9, 10, 11]


def test_plans_are_those_of_the_paper():
    assert view_plan() == [(0, 1, 1.0)]
    assert view_plan(sym=True) == [(0, 1, 0.5), (1, 0, 0.5)]
    assert view_plan(multi_crop=True, num_views=4) == [(1, 0, 1.0), (2, 0, 1.0), (3, 0, 1.0)]
    both = view_plan(sym=True, multi_crop=True, num_views=3)
    assert both == [(0, 1, 0.5), (1, 0, 0.5), (2, 0, 0.5), (2, 1, 0.5)]


def test_symmetric_multi_crop_without_small_crops_is_symmetric():
    assert view_plan(sym=True, multi_crop=True, num_views=2) == view_plan(sym=True)


@pytest.mark.parametrize("arguments", [{"num_views": 1}, {"num_views": 3}])
def test_plans_that_cannot_be_are_refused(arguments):
    with pytest.raises(ValueError, match="num_views"):
        view_plan(**arguments)


def test_banks_of_one_seed_are_equal_and_normal():
    first, second = NegativeBank(2000, 16), NegativeBank(2000, 16)
    assert torch.equal(first.W, second.W)
    assert not torch.equal(first.W, NegativeBank(2000, 16, seed=1).W)
    assert abs(first.W.mean()) < 0.02 and abs(first.W.std() - 1) < 0.02
    assert first.state_dict().keys() == {"W", "v"} and not first.v.any()


def test_keys_are_written_round_and_round():
    bank = NegativeBank(5, 2)
    keys = torch.arange(14.0).view(7, 2)
    bank.write_columns_(keys[:3], 4)
    assert torch.equal(bank.W[:, [4, 0, 1]], keys[:3].T)
    bank.write_columns_(keys, 0)  # more keys than columns: the later of two stays
    assert torch.equal(bank.W[:, [0, 1, 2, 3, 4]], keys[[5, 6, 2, 3, 4]].T)
