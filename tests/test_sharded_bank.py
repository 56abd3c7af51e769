"""A bank spread over processes plays exactly as one that every process holds whole."""

import copy

import pytest
import torch
from torch import nn

import adco
from adco.state import Progress, pack, unpack_
from adco.step import startup_step
from ops import checkpoint
from ops.distributed import World, wrap_encoder
from ops.errors import InputError
from ops.pretrain_options import PretrainConfig
from tests.gloo import in_processes

NUM_PICTURES, NUM_COLUMNS, DIM = 12, 60, 8  # of all processes together
SINGLE, EVERYTHING = (False, False, 2), (True, True, 3)
CONFIG = PretrainConfig(arch="resnet10", moco_dim=DIM, cluster=NUM_COLUMNS)


def parts(shard: bool):
    """A small network in AdCo's frame, in float64: one that twenty steps do not make wait for."""
    torch.manual_seed(0)
    model = adco.AdCo("resnet10", momentum=0.9)
    model.encoder_q = nn.Sequential(
        nn.Flatten(), nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, DIM)
    )
    model.encoder_k = copy.deepcopy(model.encoder_q).requires_grad_(False)
    bank = adco.NegativeBank(NUM_COLUMNS, DIM, shard=shard).double()
    return model.double(), bank, torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)


def views_of(step: int, world, num_views: int):
    """This process's part of the pictures of a step."""
    generator = torch.Generator().manual_seed(step)
    size = (num_views, NUM_PICTURES, 3, 4, 4)
    pictures = torch.randn(size, generator=generator, dtype=torch.float64)
    return list(pictures.chunk(world.size, dim=1)[world.rank])


def play(world, shard: bool, mode, steps: range, resume=None, path=None) -> dict:
    """The steps, after start-up or from the checkpoint `resume`, and what they leave behind."""
    model, bank, optimizer = parts(shard)
    network, plan = wrap_encoder(model, world), adco.view_plan(*mode)
    losses, first = [], 0
    if resume:
        unpack_(checkpoint.load(resume), "the checkpoint", model, bank, optimizer, "resnet10")
    for step in range(0 if resume else 6):  # 6 x 12 keys: round the 60 columns and on
        views = views_of(1000 + step, world, mode[2])
        loss, first, _ = startup_step(network, bank, optimizer, views, plan[0], first, 0.12)
        losses.append(loss)
    rounds = [
        torch.stack(
            adco.train_step(
                network, bank, optimizer, views_of(step, world, mode[2]), plan, mem_t=0.05
            )
        )
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


def assert_same_game(ours: dict, theirs: dict) -> None:
    for name in ("losses", "rounds", "bank", "model"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-7, atol=1e-9, msg=name)


def play_all(world) -> list[tuple[dict, dict]]:
    """Both modes, sharded and replicated."""
    return [
        tuple(play(world, shard, mode, range(20)) for shard in (True, False))
        for mode in (SINGLE, EVERYTHING)
    ]


@pytest.mark.parametrize("size", [2, 3])
def test_sharded_equals_replicated_over_twenty_steps(size):
    for games in in_processes(play_all, size):
        for sharded, replicated in games:
            assert sharded["kept"] == NUM_COLUMNS // size
            assert_same_game(sharded, replicated)


def resume_both(world, steps: range, folder, begin: str | None, end: str) -> list[dict]:
    """Sharded and replicated, each from its checkpoint `begin` to its checkpoint `end`."""
    games = []
    for shard in (True, False):
        resume = begin and folder / f"{begin}_{shard}"
        games.append(play(world, shard, SINGLE, steps, resume, folder / f"{end}_{shard}"))
    return games


def test_a_sharded_run_resumes_on_other_numbers_of_processes(tmp_path):
    in_processes(resume_both, 3, range(4), tmp_path, None, "on three")
    in_processes(resume_both, 2, range(4, 8), tmp_path, "on three", "on two")
    sharded, replicated = resume_both(World(), range(8, 12), tmp_path, "on two", "alone")
    assert_same_game(sharded, replicated)


def beginnings(world) -> tuple:
    with pytest.raises(InputError) as error:
        adco.NegativeBank(NUM_COLUMNS + 1, DIM, shard=True)
    bank = adco.NegativeBank(NUM_COLUMNS, DIM, shard=True)
    return str(error.value), bank.num_negatives, bank.state_dict()


@pytest.fixture(scope="module")
def begun():
    return in_processes(beginnings, 2)


def test_columns_that_do_not_split_are_refused(begun):
    for sentence, *_ in begun:
        assert "61" in sentence and "2 processes" in sentence and "--bank replicated" in sentence


def test_a_sharded_bank_starts_from_the_columns_of_its_seed(begun):
    alone = adco.NegativeBank(NUM_COLUMNS, DIM)
    for _, num_negatives, state in begun:
        assert num_negatives == NUM_COLUMNS
        torch.testing.assert_close(dict(state), dict(alone.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("bank", "num_processes", "sharded"),
    [("auto", 1, False), ("auto", 2, True), ("auto", 7, False), ("sharded", 2, True),
     ("replicated", 2, False)],
)  # fmt: skip
def test_auto_shards_where_there_is_something_to_share(bank, num_processes, sharded):
    config = PretrainConfig(bank=bank, cluster=NUM_COLUMNS)
    assert config.shards_bank(num_processes) is sharded
