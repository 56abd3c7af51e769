"""The encoder's optimizers: plain formulas, steps that are dropped, and checkpoints."""

from math import sqrt

import pytest
import torch

import adco
from adco.pretrain.game import build_optimizer
from adco.pretrain.options import PretrainConfig
from adco.pretrain.state import Progress, pack, unpack_
from ops.errors import InputError
from tests.support.game import assert_same, small_game, views_of
from tests.test_guard import NoReads, step, with_nan

KINDS = ("sgd", "adamw", "lars")
RATE, DECAY, BETA = 0.1, 0.01, 0.9


def config(kind: str, **options) -> PretrainConfig:
    return PretrainConfig(optimizer=kind, lr=RATE, weight_decay=DECAY, momentum=BETA, **options)


def game_with(kind: str, **options):
    if kind == "lars":
        pytest.importorskip("timm")
    model, bank, _ = small_game()
    return model, bank, build_optimizer(config(kind, **options), model)


def whole_state(model, bank, optimizer) -> dict[str, torch.Tensor]:
    """Copies of everything that a step moves, but the key encoder's parameters."""
    names = {p: name for name, p in model.named_parameters()}
    kept = {f"{names[p]}: {n}": x for p, of in optimizer.state.items() for n, x in of.items()}
    state = {n: x for n, x in model.state_dict().items() if "_k." not in n or "running" in n}
    return {n: x.detach().clone() for n, x in {**state, **kept, **bank.state_dict()}.items()}


def plain(kind: str, decay: float, w, gradients) -> torch.Tensor:
    """w after a step on each gradient, by the papers' formulas."""
    w, v, s = w.double(), 0, 0
    for t, g in enumerate((g.double() for g in gradients), start=1):
        if kind == "adamw":
            v, s = BETA * v + (1 - BETA) * g, 0.999 * s + 0.001 * g**2
            step = v / (1 - BETA**t) / (s.sqrt() / sqrt(1 - 0.999**t) + 1e-8)
            w = w - RATE * decay * w - RATE * step
            continue
        trust = 1.0
        if kind == "lars" and decay and w.norm() > 0 and g.norm() > 0:
            trust = 0.001 * w.norm() / (g.norm() + decay * w.norm() + 1e-8)
        v = BETA * v + trust * (g + decay * w)
        w = w - RATE * v
    return w


@pytest.mark.parametrize("decay_norms", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_are_those_of_the_formulas(kind, decay_norms):
    model, _, optimizer = game_with(kind, decay_norms=decay_norms)
    before = {name: p.detach().clone() for name, p in model.encoder_q.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    gradients = [
        {name: torch.randn(w.shape, generator=generator) for name, w in before.items()}
        for _ in range(2)
    ]
    for of_step in gradients:
        for name, p in model.encoder_q.named_parameters():
            p.grad = of_step[name].clone()
        optimizer.step()
    for name, p in model.encoder_q.named_parameters():
        decay = DECAY if decay_norms or p.ndim > 1 else 0.0
        expected = plain(kind, decay, before[name], [of_step[name] for of_step in gradients])
        torch.testing.assert_close(p.double(), expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_step_leaves_nothing_changed(kind, steps_before):
    game = game_with(kind, decay_norms=0)
    for i in range(steps_before):
        step(game, views_of(i))
    before = whole_state(*game)
    assert step(game, with_nan(views_of(7))).dropped == 1
    assert_same(whole_state(*game), before)
    assert step(game, views_of(8)).dropped == 0


def test_adamw_skips_on_the_device_from_its_second_step_on():
    game = game_with("adamw")
    step(game, views_of(0))
    views = with_nan(views_of(1))
    with NoReads():
        step(game, views)


@pytest.mark.parametrize("decay_norms", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_as_if_it_had_not_stopped(kind, decay_norms):
    whole, parts = (game_with(kind, decay_norms=decay_norms) for _ in range(2))
    for game in (whole, parts):
        step(game, views_of(0))
    state = pack(parts, Progress(), config(kind))
    parts = game_with(kind, decay_norms=decay_norms)
    unpack_(state, "file", parts, "resnet50")
    for game in (whole, parts):
        step(game, views_of(1))
    assert_same(whole_state(*parts), whole_state(*whole))


@pytest.mark.parametrize(("kind", "other"), [("sgd", "adamw"), ("adamw", "lars"), ("lars", "sgd")])
def test_another_optimizer_is_refused(kind, other):
    game = game_with(kind)
    step(game, views_of(0))
    state = pack(game, Progress(), config(kind))
    with pytest.raises(InputError, match="another --optimizer"):
        unpack_(state, "file", game_with(other), "resnet50")
    with pytest.raises(InputError, match="does not fit this model"):
        unpack_(state, "file", game_with(kind, decay_norms=0), "resnet50")


def test_options_without_effect_are_refused():
    with pytest.raises(InputError, match="weight_decay"):
        PretrainConfig(optimizer="lars", weight_decay=0)
    with pytest.raises(InputError, match="mlp_width"):
        PretrainConfig(mlp=0, mlp_width=8)
    assert adco.AdCo("resnet10", mlp=0).encoder_q.fc.out_features == 128
