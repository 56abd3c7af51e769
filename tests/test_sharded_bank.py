"""A bank spread over processes plays exactly as one that a single process holds whole."""

import pytest
import torch

import adco
from adco.pretrain.options import PretrainConfig
from adco.pretrain.state import Progress, pack, unpack_
from adco.step import Round
from ops import checkpoint
from ops.distributed import ALONE, current_world
from tests.support.game import DIM, assert_same, play, small_game, state_of, views_of
from tests.support.gloo import in_processes

# Of all processes together. The columns split evenly neither over two nor over three.
NUM_PICTURES, NUM_COLUMNS = 12, 61
MEANS = ("loss", "mass", "top1", "top5", "alignment")  # of a process's own queries
COMMON = ("idle", "grad_norm", "dropped")


def played(world, mode, steps: range, begin=None, end=None, wrapped=True) -> tuple:
    """The steps, after start-up or from the checkpoint `begin`: what they report and leave behind,
    and how many columns are here.
    """
    game = small_game(torch.float64, num_columns=NUM_COLUMNS)
    game[0].eval()  # a picture's embedding is the same whatever it is encoded with
    assert current_world() == world
    if begin:
        unpack_(checkpoint.load(begin), "the checkpoint", game, "resnet10")
    startup_steps = 0 if begin else 6  # 6 x 12 keys: round the 61 columns and on
    reported = play(game, world, mode, startup_steps, steps, 1, wrapped, NUM_PICTURES)
    state = pack(game, Progress(), PretrainConfig(arch="resnet10"))
    if end and world.first:
        checkpoint.save(state, end)
    return reported, state_of(*game), game[1].W.shape[1]


def assert_one_game(ranks: list[tuple], alone: tuple) -> None:
    """Means over processes and common values are those of one process on the whole batch."""
    assert {*MEANS, *COMMON, "spread", "uniformity"} == set(Round._fields)
    for _, state, _ in ranks:
        assert_same(state, alone[1], rtol=1e-7, atol=1e-9)
    for name, expected in alone[0].items():
        found = torch.stack([reported[name] for reported, _, _ in ranks])
        if name.split()[0] in (*MEANS, "start-up"):
            found = found.mean(dim=0)
        if "spread" not in name and "uniformity" not in name:
            expected = expected.expand_as(found)
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, msg=name)


def play_all(world) -> list[tuple]:
    """Once wrapped in DistributedDataParallel, once bare."""
    return [played(world, *case) for case in CASES]


CASES = [("single", range(20), None, None, True), ("both", range(20), None, None, False)]


@pytest.mark.parametrize("size", [2, 3])
def test_a_bank_on_several_processes_is_the_bank_on_one_over_twenty_steps(size):
    of_case = list(zip(*in_processes(play_all, size), strict=True))
    for ranks, alone in zip(of_case, play_all(ALONE), strict=True):
        widths = [width for _, _, width in ranks]
        assert sum(widths) == NUM_COLUMNS and max(widths) == -(-NUM_COLUMNS // size)
        assert_one_game(ranks, alone)


def test_a_run_resumes_on_other_numbers_of_processes(tmp_path):
    begun, resumed = tmp_path / "on three", tmp_path / "on two"
    in_processes(played, 3, "single", range(4), None, begun)
    in_processes(played, 2, "single", range(4, 8), begun, resumed)
    last = played(ALONE, "single", range(8, 12), resumed)
    reported, state, _ = played(ALONE, "single", range(12))
    assert_one_game([last], ({name: reported[name] for name in last[0]}, state))


def beginnings(world) -> tuple:
    with pytest.raises(ValueError, match="1 negatives for 2 processes"):
        adco.NegativeBank(1, DIM)
    bank = adco.NegativeBank(NUM_COLUMNS, DIM)
    model, _, optimizer = small_game()
    bank.world = ALONE  # as if it had been made before the process group
    with pytest.raises(ValueError, match="after the process group"):
        adco.train_step(model, bank, optimizer, views_of(0, world=world), adco.view_plan())
    bank.world = world
    return bank.num_negatives, bank.state_dict()


def test_a_bank_starts_from_the_columns_of_its_seed_on_any_number_of_processes():
    alone = adco.NegativeBank(NUM_COLUMNS, DIM)
    for num_negatives, state in in_processes(beginnings, 2):
        assert num_negatives == NUM_COLUMNS
        torch.testing.assert_close(dict(state), dict(alone.state_dict()), rtol=0, atol=0)
