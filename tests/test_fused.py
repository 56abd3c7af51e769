"""The fused objective is the definition, at every temperature, size and length of column."""

import pytest
import torch
import torch.nn.functional as F

from adco import fused
from adco.negatives import NegativeBank
from adco.objective import Pair
from adco.objective import reference_losses as reference
from adco.plan import key_views, query_views, view_plan

PLANS = {
    "single": view_plan(),
    "symmetric": view_plan(sym=True),
    "multi-crop": view_plan(multi_crop=True, num_views=4),
    "multi-crop symmetric": view_plan(sym=True, multi_crop=True, num_views=4),
}
PUBLISHED, COLDEST, WARMEST = (0.12, 0.02), (0.005, 0.005), (1.0, 1.0)
NUM_QUERIES, NUM_KEYS, DIM, NUM_COLUMNS, RANK = 5, 15, 16, 1000, 2


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Four chunks, the last of which is shorter."""
    monkeypatch.setattr(fused, "FEWEST_COLUMNS", 300)
    monkeypatch.setattr(fused, "CHUNK_ON_CPU", 1)


def unit_rows(num_rows, generator):
    return F.normalize(torch.randn(num_rows, DIM, dtype=torch.float64, generator=generator), dim=1)


def embedded(plan, dtype):
    """Pairs of a plan, and their distinct queries."""
    generator = torch.Generator().manual_seed(0)
    queries = {i: unit_rows(NUM_QUERIES, generator).to(dtype) for i in query_views(plan)}
    keys = {i: unit_rows(NUM_KEYS, generator).to(dtype) for i in key_views(plan)}
    queries = {i: rows.requires_grad_() for i, rows in queries.items()}
    pairs = [Pair(queries[term.query], keys[term.key], term.weight) for term in plan]
    return pairs, list(queries.values())


def columns(dtype, decades=0):
    """W [D, K] with column lengths spread over 10^-decades to 10^decades."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.logspace(-decades, decades, NUM_COLUMNS, dtype=torch.float64)
    return (unit_rows(NUM_COLUMNS, generator).T * lengths).to(dtype)


def after_a_step(losses, plan, dtype, taus, decades):
    """Everything a step leaves behind, by name."""
    pairs, queries = embedded(plan, dtype)
    bank = NegativeBank(NUM_COLUMNS, DIM).to(dtype)
    bank.W.copy_(columns(dtype, decades))
    result = losses(pairs, bank.W, *taus, first_key=RANK * NUM_QUERIES)
    bank.ascend_(result.bank_gradient, lr=3.0, momentum=0.9, weight_decay=1e-4)
    gradients = torch.stack(torch.autograd.grad(result.loss, queries))
    return {**result._asdict(), "query gradients": gradients, "W": bank.W, "v": bank.v}


def in_all_cases(test):
    """The test for every plan, at the published and the outermost temperatures, and with columns
    of length 1 or of 1e-6 to 1e6.
    """
    test = pytest.mark.parametrize("decades", [0, 6])(test)
    test = pytest.mark.parametrize("taus", [PUBLISHED, COLDEST, WARMEST], ids=str)(test)
    return pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)(test)


@in_all_cases
def test_fused_equals_the_definition_in_float64(plan, taus, decades):
    args = (plan, torch.float64, taus, decades)
    expected = after_a_step(reference, *args)
    for name, ours in after_a_step(fused.losses, *args).items():
        torch.testing.assert_close(ours, expected[name], rtol=1e-10, atol=1e-14, msg=name)


@in_all_cases
def test_fused_equals_the_definition_in_float32(plan, taus, decades):
    args = (plan, torch.float32, taus, decades)
    ours = after_a_step(fused.losses, *args)
    expected = after_a_step(reference, *args)
    for name in ("loss", "mass", "top1", "top5", "attention", "query gradients"):
        error = (ours[name] - expected[name]).norm()
        assert error <= 1e-5 * expected[name].norm() + 1e-9, (name, error)
    # Per column, and along the sphere: a column's gradient is its pull over its length.
    lengths = columns(torch.float32, decades).norm(dim=0)
    strongest = (expected["bank_gradient"].norm(dim=0) * lengths).max() / lengths
    for name, rate in (("bank_gradient", 1), ("v", 1), ("W", 3)):
        error = (ours[name] - expected[name]).norm(dim=0)
        assert (error <= 1e-5 * (expected[name].norm(dim=0) + rate * strongest)).all(), name


@pytest.mark.parametrize("column_cosine", [-1.0, 1.0])
@pytest.mark.parametrize("key_cosine", [-1.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_cosine_overflows_or_vanishes_at_the_coldest(dtype, key_cosine, column_cosine):
    query = F.normalize(torch.ones(NUM_QUERIES, DIM, dtype=dtype), dim=1)
    pairs = [Pair(query.requires_grad_(), key_cosine * query.detach(), 1.0)]
    W = (column_cosine * query.detach()[:1].T).repeat(1, NUM_COLUMNS)
    ours, expected = fused.losses(pairs, W, *COLDEST), reference(pairs, W, *COLDEST)
    assert all(value.isfinite().all() for value in ours)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_chunks_of_any_size_give_the_same_result(monkeypatch):
    args = (PLANS["symmetric"], torch.float64, PUBLISHED, 0)
    in_four = after_a_step(fused.losses, *args)
    monkeypatch.setattr(fused, "FEWEST_COLUMNS", NUM_COLUMNS)
    for name, in_one in after_a_step(fused.losses, *args).items():
        torch.testing.assert_close(in_four[name], in_one, rtol=1e-12, atol=1e-15, msg=name)


def test_startup_loss_has_one_positive_and_all_columns():
    ((queries, keys, _),), _ = embedded(view_plan(), torch.float64)
    own, W = keys[:NUM_QUERIES], columns(torch.float64)
    positives, negatives = (queries * own).sum(dim=1, keepdim=True), queries @ F.normalize(W, dim=0)
    logits = torch.cat([positives, negatives], dim=1)
    plain = F.cross_entropy(logits / 0.12, torch.zeros(NUM_QUERIES, dtype=torch.int64))
    loss = fused.own_key_loss(queries, own, W, 0.12)
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    (expected,) = torch.autograd.grad(plain, queries)
    (gradient,) = torch.autograd.grad(loss, queries)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
