"""A small game to play steps of: networks, bank, optimizer and pictures, by seed."""

import copy

import torch
from torch import nn

import adco
from adco.step import startup_step
from ops.distributed import ALONE, World
from ops.training import wrap_encoder

NUM_PICTURES, NUM_COLUMNS, DIM = 8, 48, 16  # of all processes together
MODES = {"single": (False, False, 2), "symmetric": (True, False, 2),
         "multi-crop": (False, True, 3), "both": (True, True, 3)}  # fmt: skip


def small_game(dtype=torch.float32, fused=True, num_columns=NUM_COLUMNS, **options):
    """Model, bank, optimizer."""
    torch.manual_seed(0)
    model = adco.AdCo("resnet10", momentum=0.9, **options)
    model.encoder_q = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, DIM)),
    )
    model.encoder_k = copy.deepcopy(model.encoder_q).requires_grad_(False)
    model.to(dtype)
    bank, weights = adco.NegativeBank(num_columns, DIM).to(dtype), model.parameters()
    optimizer = torch.optim.SGD(weights, 0.01, momentum=0.9, weight_decay=1e-4, fused=fused)
    return model, bank, optimizer


def views_of(step, num_views=2, world=ALONE, dtype=torch.float32, num_pictures=NUM_PICTURES):
    """This process's part of the pictures of a step, [N, 3, 12, 12] per view."""
    generator = torch.Generator().manual_seed(step)
    size = (num_views, num_pictures, 3, 12, 12)
    pictures = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
    return list(pictures.chunk(world.size, dim=1)[world.rank])


def play(
    game, world: World = ALONE, mode="single", startup_steps=1, steps=range(3), accum_steps=1,
    wrapped=True, num_pictures=NUM_PICTURES,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Steps of the start-up, then rounds; what they report, "NAME STEP" to value."""
    model, bank, optimizer = game
    network, plan = wrap_encoder(model, world) if wrapped else model, adco.view_plan(*MODES[mode])
    views = [MODES[mode][2], world, bank.W.dtype, num_pictures]
    reported = {}
    for i in range(startup_steps):
        reported[f"start-up {i}"], _ = startup_step(
            network, bank, optimizer, views_of(1000 + i, *views), plan[0], moco_t=0.12,
            first_column=i * num_pictures % bank.num_negatives, accum_steps=accum_steps,
        )  # fmt: skip
    for i in steps:
        result = adco.train_step(
            network, bank, optimizer, views_of(i, *views), plan,
            mem_t=0.1, memory_lr=0.5, accum_steps=accum_steps,
        )  # fmt: skip
        reported |= {f"{name} {i}": value for name, value in result._asdict().items()}
    return reported


def state_of(model, bank, optimizer) -> dict[str, torch.Tensor]:
    """Everything that a step moves, but the key encoder's parameters; copies."""
    parameters = dict(model.encoder_q.named_parameters())
    momenta = {
        f"momentum of {name}": optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in parameters.items()
        if optimizer.state.get(parameter)
    }
    state = {**parameters, **momenta, **dict(model.named_buffers()), **bank.state_dict()}
    return {name: value.detach().clone() for name, value in state.items()}


def assert_same(found: dict, expected: dict, rtol: float = 0, atol: float = 0) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=name)
