"""A bank spread over processes plays exactly as one that a single process holds whole."""

import copy

import pytest
import torch
from torch import nn

import adco
from adco.pretrain.options import PretrainConfig
from adco.pretrain.state import Progress, pack, unpack_
from adco.step import Round, startup_step
from ops import checkpoint
from ops.distributed import World, wrap_encoder
from tests.support.gloo import in_processes

# Of all processes together. The columns split evenly neither over two nor over three.
NUM_PICTURES, NUM_COLUMNS, DIM = 12, 61, 8
SINGLE, EVERYTHING = (False, False, 2), (True, True, 3)
CONFIG = PretrainConfig(arch="resnet10", moco_dim=DIM, cluster=NUM_COLUMNS)
MEANS = ("loss", "mass", "top1", "top5")  # of a process's own queries
COMMON = ("idle", "grad_norm", "dropped")


def parts():
    """A small network in AdCo's frame, in float64: one that twenty steps do not make wait for.

    Without BatchNorm, so that a picture's embedding is the same whatever it is encoded with.
    """
    torch.manual_seed(0)
    model = adco.AdCo("resnet10", momentum=0.9)
    model.encoder_q = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, DIM))
    model.encoder_k = copy.deepcopy(model.encoder_q).requires_grad_(False)
    bank = adco.NegativeBank(NUM_COLUMNS, DIM).double()
    return model.double(), bank, torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)


def views_of(step: int, world, num_views: int):
    """This process's part of the pictures of a step."""
    generator = torch.Generator().manual_seed(step)
    size = (num_views, NUM_PICTURES, 3, 4, 4)
    pictures = torch.randn(size, generator=generator, dtype=torch.float64)
    return list(pictures.chunk(world.size, dim=1)[world.rank])


def play(world, mode, steps: range, resume=None, path=None) -> dict:
    """The steps, after start-up or from the checkpoint `resume`, and what they leave behind."""
    model, bank, optimizer = parts()
    network, plan = wrap_encoder(model, world), adco.view_plan(*mode)
    losses = []
    if resume:
        unpack_(checkpoint.load(resume), "the checkpoint", model, bank, optimizer, "resnet10")
    for step in range(0 if resume else 6):  # 6 x 12 keys: round the 61 columns and on
        views = views_of(1000 + step, world, mode[2])
        first_column = step * NUM_PICTURES % NUM_COLUMNS
        loss, _ = startup_step(
            network, bank, optimizer, views, plan[0], first_column=first_column, moco_t=0.12
        )
        losses.append(loss)
    rounds = [
        adco.train_step(
            network, bank, optimizer, views_of(step, world, mode[2]), plan, mem_t=0.05
        )._asdict()
        for step in steps
    ]
    state = pack(model, bank, optimizer, Progress(), CONFIG)
    if path and world.first:
        checkpoint.save(state, path)
    return {
        "losses": losses,
        "rounds": rounds,
        "kept": bank.W.shape[1],
        "bank": bank.state_dict(),
        "model": dict(model.named_parameters()),
    }


def assert_one_game(ranks: list[dict], alone: dict) -> None:
    """Means over processes and common values are those of one process on the whole batch."""
    assert set(MEANS + COMMON) | {"spread"} == set(Round._fields)

    def same(found, expected, name):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, msg=name)

    for rank in ranks:
        for name in ("bank", "model"):
            same(dict(rank[name]), dict(alone[name]), name)
    for i, loss in enumerate(alone["losses"]):
        same(sum(rank["losses"][i] for rank in ranks) / len(ranks), loss, f"start-up {i}")
    for i, expected in enumerate(alone["rounds"]):
        for name in MEANS:
            found = sum(rank["rounds"][i][name] for rank in ranks) / len(ranks)
            same(found, expected[name], f"{name} {i}")
        for name in COMMON:
            for rank in ranks:
                same(rank["rounds"][i][name], expected[name], f"{name} {i}")


def play_all(world) -> list[dict]:
    return [play(world, mode, range(20)) for mode in (SINGLE, EVERYTHING)]


@pytest.mark.parametrize("size", [2, 3])
def test_a_bank_on_several_processes_is_the_bank_on_one_over_twenty_steps(size):
    of_mode = list(zip(*in_processes(play_all, size), strict=True))
    for ranks, alone in zip(of_mode, play_all(World()), strict=True):
        assert sum(rank["kept"] for rank in ranks) == NUM_COLUMNS
        assert max(rank["kept"] for rank in ranks) == -(-NUM_COLUMNS // size)
        assert_one_game(ranks, alone)


def resume(world, steps: range, folder, begin: str | None, end: str) -> dict:
    """From the checkpoint `begin` to the checkpoint `end`."""
    return play(world, SINGLE, steps, begin and folder / begin, folder / end)


def test_a_run_resumes_on_other_numbers_of_processes(tmp_path):
    in_processes(resume, 3, range(4), tmp_path, None, "on three")
    in_processes(resume, 2, range(4, 8), tmp_path, "on three", "on two")
    resumed = resume(World(), range(8, 12), tmp_path, "on two", "alone")
    whole = play(World(), SINGLE, range(12))
    whole = {**whole, "losses": [], "rounds": whole["rounds"][8:]}
    assert_one_game([resumed], whole)


def beginnings(world) -> tuple:
    with pytest.raises(ValueError, match="1 negatives for 2 processes"):
        adco.NegativeBank(1, DIM)
    bank = adco.NegativeBank(NUM_COLUMNS, DIM)
    model, _, optimizer = parts()
    bank.world = World()  # as if it had been made before the process group
    with pytest.raises(ValueError, match="after the process group"):
        adco.train_step(model, bank, optimizer, views_of(0, world, 2), adco.view_plan())
    bank.world = world
    return bank.num_negatives, bank.state_dict()


def test_a_bank_starts_from_the_columns_of_its_seed_on_any_number_of_processes():
    alone = adco.NegativeBank(NUM_COLUMNS, DIM)
    for num_negatives, state in in_processes(beginnings, 2):
        assert num_negatives == NUM_COLUMNS
        torch.testing.assert_close(dict(state), dict(alone.state_dict()), rtol=0, atol=0)
