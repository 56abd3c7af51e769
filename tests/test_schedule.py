"""Learning rates by SPEC's formulas, and the warnings of a run that learns nothing."""

from math import cos, log, pi

import pytest
import torch

from adco.pretrain.health import CollapseWatch
from adco.pretrain.options import PretrainConfig
from ops.schedule import set_rate


def rate(epoch: float, **options) -> float:
    return PretrainConfig(**options).rate(epoch)


@pytest.mark.parametrize("epoch", [0, 1, 77, 199])
def test_cosine_runs_from_lr_to_lr_final(epoch):
    expected = 6e-4 + 0.5 * (1 + cos(pi * epoch / 200)) * (0.03 - 6e-4)
    assert rate(epoch, epochs=200, lr=0.03) == pytest.approx(expected)


def test_quarter_cosine_ends_at_zero():
    assert rate(50, epochs=100, lr=1.0, cos=2) == pytest.approx(cos(pi / 4))


def test_steps_fall_tenfold_at_each_milestone():
    rates = [rate(e, epochs=200, lr=1.0, cos=0) for e in (119, 120, 160)]
    assert rates == pytest.approx([1, 0.1, 0.01])


def test_the_rate_holds_still_within_an_epoch():
    assert rate(7.9, epochs=20, lr=1.0) == rate(7, epochs=20, lr=1.0)


def test_warm_up_rises_linearly_from_zero_with_every_step():
    rates = [rate(e, epochs=20, lr=1.0, warmup_epochs=4) for e in (0, 0.5, 2, 3.9)]
    assert rates == pytest.approx([0, 0.125, 0.5, 0.975])


@pytest.mark.parametrize("cos", [1, 2])
def test_the_cosine_goes_over_the_epochs_that_the_warm_up_leaves(cos):
    options = dict(epochs=20, lr=1.0, warmup_epochs=4, cos=cos)
    assert rate(4, **options) == 1.0  # no fall where the warm-up ends
    assert rate(12, **options) == rate(8, **{**options, "epochs": 16, "warmup_epochs": 0})
    # A run of an earlier version goes on as it was.
    config = PretrainConfig(**options)
    assert config.rate(4, after_warmup=False) == rate(4, **{**options, "warmup_epochs": 0})


def test_every_group_gets_the_rate():
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)]}], 1.0)
    set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def warnings_of(loss: float, mass: float, spread: float, steps=range(0, 500, 50)) -> list[str]:
    watch = CollapseWatch(num_keys=128, against=1024, weight=1.0, patience=200)
    return [text for step in steps for text in watch.read(step, loss, mass, spread)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(loss=log(128), mass=1.0, spread=0.5), ("collapse", "init_steps", "chance")),
        (dict(loss=6.0, mass=0.5, spread=0.001), ("collapse", "spread")),
        (dict(loss=1.0, mass=0.999, spread=0.5), ("starved", "mem_t")),
    ],
)
def test_chance_a_cone_and_adversaries_without_gradient_are_told_once(values, words):
    (warning,) = warnings_of(**values)
    assert all(word in warning for word in words)


def test_a_healthy_run_is_left_alone():
    assert warnings_of(loss=3.0, mass=0.6, spread=0.7) == []


def test_a_sign_that_does_not_last_is_not_told():
    watch = CollapseWatch(num_keys=128, against=1024, weight=1.0, patience=200)
    for step in range(0, 1000, 100):
        assert watch.read(step, 1.0, 1.0 if step % 200 else 0.5, 0.5) == []
