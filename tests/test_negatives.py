"""Other negatives in the same trainer: each dial against a slow loop, in float64."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from adco import fused, view_plan
from adco.negatives import NegativeBank
from adco.objective import Denominator, Pair, nt_xent, reference_losses
from adco.pretrain.health import CollapseWatch
from adco.pretrain.options import PretrainConfig
from adco.step import simclr_step, train_step
from ops.arguments import check_intervals
from ops.distributed import ALONE
from ops.errors import InputError
from ops.training import wrap_encoder
from tests.support.game import small_game, state_of, views_of
from tests.support.gloo import in_processes

TAU, TAU_A, DIM = 0.12, 0.05, 6
DENOMINATORS = {
    "keys alone": Denominator(columns=False),
    "decoupled": Denominator(decoupled=True),
    "own key alone": Denominator(batch_keys=False),
    "decoupled, keys alone": Denominator(columns=False, decoupled=True),
}


def unit_rows(num_rows: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num_rows, DIM, dtype=torch.float64, generator=generator), dim=1)


def slow_loss(pairs, W, tau: float, first_key: int, d: Denominator) -> float:
    """By loops over scalars, from the definition in words."""
    total = 0.0
    for queries, keys, weight in pairs:
        for i, query in enumerate(queries.detach()):
            own = math.exp(float(query @ keys[first_key + i]) / tau)
            below = 0.0 if d.decoupled else own
            for m, key in enumerate(keys):
                if m != first_key + i and d.batch_keys:
                    below += math.exp(float(query @ key) / tau)
            for w in W.T:
                below += d.columns * math.exp(float(query @ w) / float(w.norm()) / tau)
            total += weight * -math.log(own / below) / len(queries)
    return total


def pairs_of() -> list[Pair]:
    first, second = unit_rows(4, 0).requires_grad_(), unit_rows(4, 1).requires_grad_()
    return [Pair(first, unit_rows(8, 2), 0.5), Pair(second, unit_rows(8, 3), 0.5)]


@pytest.mark.parametrize("denominator", DENOMINATORS.values(), ids=DENOMINATORS)
def test_every_denominator_equals_a_slow_loop_and_its_fused_twin(denominator):
    pairs, W = pairs_of(), 3 * unit_rows(9, 4).T.contiguous()
    results = []
    for losses in (reference_losses, fused.losses):
        result = losses(pairs, W, TAU, TAU_A, first_key=4, denominator=denominator)
        gradients = torch.autograd.grad(result.loss, [q for q, _, _ in pairs])
        results.append((*result, *gradients))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-14)
    slow = partial(slow_loss, pairs, first_key=4, d=denominator)
    assert results[0][0].item() == pytest.approx(slow(W, TAU), rel=1e-12)

    # The adversaries' gradient, by differences of the loop.
    step = torch.zeros_like(W)
    step[2, 5] = 1e-6
    slope = (slow(W + step, TAU_A) - slow(W - step, TAU_A)) / 2e-6
    assert -results[1][1][2, 5].item() == pytest.approx(slope, abs=1e-7)


def test_columns_turn_by_the_angle_on_average_and_keep_unit_length():
    bank = NegativeBank(50, DIM).double()
    for step in range(3):
        before = F.normalize(bank.W, dim=0)
        bank.turn_(10.0**step * unit_rows(50, step).T, angle=0.005, momentum=0.9)
        torch.testing.assert_close(bank.W.norm(dim=0), torch.ones(50, dtype=torch.float64))
        angles = (before * bank.W).sum(dim=0).clamp(max=1).acos()
        assert angles.mean().item() == pytest.approx(0.005, rel=1e-4)
    # Against a plain loop: down the gradient along the sphere, the longest farthest.
    bank, gradient = NegativeBank(50, DIM).double(), unit_rows(50, 0).T
    before, length = F.normalize(bank.W, dim=0), []
    bank.turn_(gradient, 0.005, 0.9)
    for u, g in zip(before.T, gradient.T, strict=True):
        length.append((g - u * (u @ g)).norm())
    mean = sum(length) / 50
    for u, g, w in zip(before.T, gradient.T, bank.W.T, strict=True):
        expected = F.normalize(u - 0.005 * (g - u * (u @ g)) / mean, dim=0)
        torch.testing.assert_close(w, expected)
    # A dropped step turns nothing, whatever is in its gradient.
    W, v = bank.W.clone(), bank.v.clone()
    bank.turn_(gradient * torch.nan, 0.005, 0.9, dropped=torch.ones(()))
    assert torch.equal(bank.W, W) and torch.equal(bank.v, v)


@pytest.mark.parametrize("refresh", [8, 3])
def test_refreshed_columns_are_keys_of_the_step_in_turn(refresh):
    """R = M and no ascent is a queue: after K / M steps every column is a key."""
    model, bank, optimizer = small_game(torch.float64, num_columns=16)
    begun, written = bank.W.clone(), {}
    for step in range(4):
        model.eval()
        first = step * refresh % 16
        result = train_step(
            model, bank, optimizer, views_of(step, dtype=torch.float64), view_plan(),
            memory_lr=0.0, refresh=refresh, first_column=first,
        )  # fmt: skip
        assert result.dropped == 0
        with torch.no_grad():
            # The step moves the key encoder before it embeds, and not after.
            (keys,) = model.embed_keys([views_of(step, dtype=torch.float64)[1]])
        for i in range(refresh):
            written[(first + i) % 16] = keys[i]
    for column in range(16):
        expected = written.get(column, begun[:, column])
        torch.testing.assert_close(bank.W[:, column], expected, rtol=1e-7, atol=1e-9)


def slow_nt_xent(first, second, tau: float, decoupled: bool) -> float:
    rows, total = [*first.detach(), *second.detach()], 0.0
    for i, row in enumerate(rows):
        other = (i + len(first)) % len(rows)
        terms = {j: math.exp(float(row @ rows[j]) / tau) for j in range(len(rows)) if j != i}
        below = sum(terms.values()) - (terms[other] if decoupled else 0)
        total -= math.log(terms[other] / below)
    return total / len(rows)


@pytest.mark.parametrize("decoupled", [False, True])
def test_simclrs_loss_equals_a_slow_loop(decoupled):
    first, second = unit_rows(5, 0), unit_rows(5, 1)
    loss, _ = nt_xent([first, second], TAU, decoupled)
    assert loss.item() == pytest.approx(slow_nt_xent(first, second, TAU, decoupled), rel=1e-12)


def test_losses_equal_those_of_lightly():
    # lightly 1.6.0 on the same embeddings: NTXentLoss(0.12), DCLLoss(0.12), and NTXentLoss with the
    # nine others as its memory bank.
    first, second, queue = unit_rows(6, 20), unit_rows(6, 21), unit_rows(9, 22)
    assert nt_xent([first, second], 0.12)[0].item() == pytest.approx(7.517538194568897, rel=1e-12)
    decoupled = nt_xent([first, second], 0.12, decoupled=True)[0].item()
    assert decoupled == pytest.approx(7.3562355914885655, rel=1e-12)
    pairs, queue_alone = [Pair(first.requires_grad_(), second, 1.0)], Denominator(batch_keys=False)
    moco = fused.losses(pairs, queue.T.contiguous(), 0.12, TAU_A, denominator=queue_alone)
    assert moco.loss.item() == pytest.approx(6.80429169443594, rel=1e-12)


def simclr(world) -> tuple:
    model, bank, optimizer = small_game(torch.float64)
    model.eval()  # a picture's embedding does not depend on what it is encoded with
    network = wrap_encoder(model, world)
    for step in range(3):
        views = views_of(step, world=world, dtype=torch.float64)
        result = simclr_step(network, optimizer, views, moco_t=TAU)
    return result.loss, result.top1, result.grad_norm, state_of(model, bank, optimizer)


def test_simclr_on_two_processes_is_simclr_on_the_whole_batch():
    alone = simclr(ALONE)
    assert alone[2] > 0
    for ours in in_processes(simclr, 2):
        torch.testing.assert_close(ours[:3], alone[:3], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(ours[3], alone[3], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(negatives="simclr", accum_steps=2), "accum_steps"),
        (dict(negatives="simclr", multi_crop=1), "multi_crop"),
        (dict(negatives="batch", batch_keys=0), "batch_keys"),
        (dict(negatives="queue", refresh=4), "refresh"),
        (dict(adversaries_from=0.5, init_steps=4), "init_steps"),
        (dict(memory_lr=-1.0), "memory_lr"),
    ],
)
def test_what_a_kind_of_negatives_does_not_have_is_refused(options, word):
    with pytest.raises(InputError, match=word):
        check_intervals(PretrainConfig(dataset="digits", **options))


def test_negatives_without_adversaries_do_not_starve():
    watches = [CollapseWatch(num_keys=256, against=1024, weight=1.0, patience=10) for _ in range(2)]
    for plays, watch in zip((True, False), watches, strict=True):
        told = [text for step in range(30) for text in watch.read(step, 2.0, 1.0, 0.9, plays)]
        assert bool(told) == plays


def adversaries(**values) -> dict:
    healthy = dict(turned_a_step=0.005, cosine=0.1, same_class=0.1, same_class_keys=0.1)
    return {**healthy, **values}


@pytest.mark.parametrize(
    "values, word",
    [
        ({}, ""),
        (dict(turned_a_step=0.0001), "stand still"),
        (dict(cosine=0.97), "one direction"),
        (dict(same_class=0.3), "class centres"),
    ],
)
def test_adversaries_of_no_use_are_named_once_it_lasts(values, word):
    watch = CollapseWatch(num_keys=256, against=1024, weight=1.0, patience=200)
    looks = [
        watch.read_look(step, {"turned_a_step": 0.01}, adversaries(**values))
        for step in (100, 200, 300, 400)
    ]
    assert [len(look) for look in looks] == ([0, 0, 1, 0] if word else [0, 0, 0, 0])
    assert word in "".join(map("".join, looks))


def test_adversaries_that_win_are_named():
    watch = CollapseWatch(num_keys=256, against=1024, weight=1.0, patience=10)
    told = [text for step in range(30) for text in watch.read(step, 7.5, 0.3, 0.9)]
    assert len(told) == 1 and "adversaries win" in told[0]


def test_a_look_with_values_missing_is_no_sign():
    watch = CollapseWatch(num_keys=256, against=1024, weight=1.0, patience=0)
    # Other pictures could be read this time; a cosine was not finite.
    assert not watch.read_look(1, {}, adversaries())
    assert not watch.read_look(2, {"turned_a_step": None}, adversaries(cosine=None))


@pytest.mark.parametrize(
    "words", [dict(columns=False), dict(batch_keys=False), dict(decoupled=True)]
)
def test_top1_is_among_what_a_query_is_told_apart_from(words):
    torch.manual_seed(0)
    denominator, K, M = Denominator(**words), 300, 8
    unit = [F.normalize(torch.randn(n, 16, dtype=torch.float64), dim=1) for n in (M, M, K)]
    queries, keys, W = unit[0], F.normalize(unit[1] + unit[0], dim=1), unit[2].T
    pairs, taus = [Pair(queries, keys, 1.0)], dict(moco_t=0.2, mem_t=0.1)
    cosines, own = queries @ keys.T, (queries * keys).sum(dim=1)
    nearer = (cosines > own[:, None]).sum(dim=1) * denominator.batch_keys
    nearer += (queries @ W > own[:, None]).sum(dim=1) * denominator.columns
    for of in (fused.losses, reference_losses):
        found = of(pairs, W, **taus, denominator=denominator)
        assert found.top1 == (nearer < 1).double().mean()
        assert found.top5 == (nearer < 5).double().mean()


def test_chance_and_guessing_are_those_of_the_loss_that_is_computed():
    kind = dict(negatives="learned", cluster=256, batch_keys=1, decoupled=0)
    for more, chance, guess in (
        ({}, 16, 16 + 256),
        (dict(decoupled=1), 15, 15 + 256),
        (dict(batch_keys=0), 1, 1 + 256),
        (dict(negatives="simclr", decoupled=1, cluster=0), 30, 30),
    ):
        watch = CollapseWatch.of(SimpleNamespace(**kind | more), 16, 1.0, 0)
        assert (watch.chance, watch.guess) == (math.log(chance), math.log(guess))
