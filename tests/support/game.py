"""A small game to play steps of: networks, bank, optimizer and pictures, by seed."""

import copy

import torch
from torch import nn

import adco
from ops.distributed import ALONE, World

NUM_PICTURES, NUM_COLUMNS, DIM = 8, 48, 16  # of all processes together
MODES = {"single": (False, False, 2), "symmetric": (True, False, 2),
         "multi-crop": (False, True, 3), "both": (True, True, 3)}  # fmt: skip


def small_game(dtype=torch.float32, fused: bool = True, **options):
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
    bank = adco.NegativeBank(NUM_COLUMNS, DIM).to(dtype)
    optimizer = torch.optim.SGD(
        model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4, fused=fused
    )
    return model, bank, optimizer


def views_of(step: int, num_views: int = 2, world: World = ALONE, dtype=torch.float32):
    """This process's part of the pictures of a step, [N, 3, 12, 12] per view."""
    generator = torch.Generator().manual_seed(step)
    size = (num_views, NUM_PICTURES, 3, 12, 12)
    pictures = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
    return list(pictures.chunk(world.size, dim=1)[world.rank])


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


def assert_near(found: dict, expected: dict, rtol: float, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=name)


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
