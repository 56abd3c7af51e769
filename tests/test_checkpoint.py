"""Checkpoints: whole or not at all, and readable across programs."""

import copy
import hashlib

import pytest
import torch

import adco
from adco.pretrain.game import Game
from adco.pretrain.options import PretrainConfig
from adco.pretrain.state import Progress, pack, unpack_
from ops import checkpoint
from ops.errors import InputError
from tests.support.game import assert_same
from tests.support.gloo import in_processes

CONFIG = PretrainConfig(arch="resnet10", moco_dim=8, cluster=32)


def parts(seed: int = 0):
    torch.manual_seed(seed)
    model = adco.AdCo("resnet10", dim=8)
    bank = adco.NegativeBank(32, 8, seed=seed)
    return model, bank, torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)


def steps(game, numbers) -> None:
    model, bank, optimizer = game
    for step in numbers:
        views = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        views = list(views.to(bank.W.dtype))
        adco.train_step(model, bank, optimizer, views, adco.view_plan(), mem_t=0.1)


def trained(seed: int = 0, number: int = 2):
    game = parts(seed)
    steps(game, range(number))
    return game


def saved(tmp_path):
    path = tmp_path / "checkpoint_last.pth.tar"
    checkpoint.save(
        pack(trained(), Progress(epoch=3, step=9, playing=True, best_acc=50.0), CONFIG), path
    )
    return path


def test_names_and_layout_are_those_of_the_published_program(tmp_path):
    state = torch.load(saved(tmp_path), weights_only=True)
    assert {"epoch", "arch", "best_acc", "state_dict", "optimizer", "Memory_Bank"} <= state.keys()
    assert state["epoch"] == 3 and state["arch"] == "resnet10"
    assert all(
        n.startswith(("module.encoder_q.", "module.encoder_k.")) for n in state["state_dict"]
    )
    assert state["Memory_Bank"]["W"].shape == state["Memory_Bank"]["v"].shape == (8, 32)
    assert not list(tmp_path.glob("*.partial"))


def test_names_without_module_and_an_optimizer_of_one_encoder_are_accepted(tmp_path):
    state = checkpoint.load(saved(tmp_path))
    state["state_dict"] = checkpoint.without_module(state["state_dict"])
    group = state["optimizer"]["param_groups"][0]
    group["params"] = group["params"][: len(group["params"]) // 2]
    progress = unpack_(state, "file", parts(seed=1), "resnet10")
    assert progress.playing and (progress.epoch, progress.step, progress.best_acc) == (3, 9, 50.0)


def test_a_moco_file_is_read_without_its_queue_and_has_no_bank(tmp_path):
    state = checkpoint.load(saved(tmp_path))
    del state["Memory_Bank"], state["config"], state["playing"]
    state["state_dict"] |= {"module.queue": torch.zeros(8, 4), "module.queue_ptr": torch.zeros(1)}
    assert not unpack_(state, "file", parts(seed=1), "resnet10").playing


def test_a_bank_of_another_size_is_refused(tmp_path):
    model, _, optimizer = parts()
    state, bank = checkpoint.load(saved(tmp_path)), adco.NegativeBank(16, 8)
    with pytest.raises(InputError, match="--cluster"):
        unpack_(state, "f", (model, bank, optimizer), "resnet10")


REFUSALS = {
    "torn": "damaged",
    "empty": "damaged",
    "text": "damaged",
    "zip": "damaged",
    "object": "safely",
    "list": "holds a list",
    "gone": "no checkpoint at",
}


@pytest.mark.parametrize("damage", REFUSALS)
def test_files_that_are_no_checkpoints_are_refused(tmp_path, damage):
    path = saved(tmp_path)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "object":
        torch.save({"state_dict": CONFIG}, path)
    elif damage == "list":
        torch.save([1, 2], path)
    elif damage == "gone":
        path.unlink()
    else:
        contents = {"empty": b"", "text": b"hello, I am text\n" * 99, "zip": b"PK\x03\x04 cut off"}
        path.write_bytes(contents[damage])
    with pytest.raises(InputError, match=REFUSALS[damage]) as refusal:
        checkpoint.load(path)
    assert str(path) in str(refusal.value)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save({"state": (number for number in range(3))}, path)
    assert path.read_bytes() == before


def test_whatever_is_packed_comes_back_and_another_architecture_is_refused_by_name():
    progress = Progress(1, 2, 3, 4, False, 8, 9, 100.0)
    game, again = parts(), parts(seed=1)
    game[0].num_shuffles = 7
    state = pack(game, progress, CONFIG)
    assert unpack_(state, "file", again, "resnet10") == progress
    assert again[0].num_shuffles == 7 and '"cluster": 32' in state["config"]
    with pytest.raises(InputError, match="holds a 'resnet10', this run a resnet18"):
        unpack_(state, "file", again, "resnet18")


def test_steps_are_counted_anew_for_another_batch():
    progress = Progress(epoch_step=30, startup_step=61, num_keys=8, bn_size=8)
    told = progress.count_in(num_keys=16, num_pictures=5, bn_size=4)
    counted = dict(num_keys=16, num_pictures=5, bn_size=4)
    assert progress == Progress(epoch_step=15, startup_step=30, **counted)
    assert len(told) == 2 and "8 before, 16 here" in told[0] and "BatchNorm" in told[1]
    assert progress.count_in(**counted) == []


def test_a_file_is_checked_whole_and_its_names_are_read_as_they_are(tmp_path):
    path = tmp_path / "c.pth.tar"
    checkpoint.save({"x": torch.zeros(1000)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # inside the record
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(path)
    path.write_bytes(bytes(3 << 20) + b"end")
    assert checkpoint.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    names = checkpoint.without_module({"module.a.module.b": 1, "submodule.c": 2})
    assert names == {"a.module.b": 1, "submodule.c": 2}
    assert not checkpoint.is_state_dict({"a": torch.zeros(1), "b": 3})


def test_plain_torch_goes_on_from_a_run_of_channels_last_and_fused_sgd(tmp_path):
    # In float64, where the two layouts of a convolution differ by next to nothing.
    model, bank, _ = parts()
    model.double().to(memory_format=torch.channels_last)
    kind = dict(lr=0.03, momentum=0.9, weight_decay=1e-4)
    ours = model, bank.double(), torch.optim.SGD(model.parameters(), **kind, fused=True)
    steps(ours, range(2))
    checkpoint.save(pack(ours, Progress(), CONFIG), tmp_path / "x.pth.tar")
    steps(ours, range(2, 5))

    # Contiguous weights, and the optimizer as any program makes it.
    state = torch.load(tmp_path / "x.pth.tar", weights_only=True)
    plain, bank, _ = parts(seed=5)
    bank.double()
    optimizer = torch.optim.SGD(plain.double().parameters(), **kind)
    plain.load_state_dict(checkpoint.without_module(state["state_dict"]))
    bank.load_state_dict(state["Memory_Bank"])
    (group,) = state["optimizer"]["param_groups"]
    assert group["initial_lr"] == 0.03 and group["fused"] is None
    assert all(m["momentum_buffer"].is_contiguous() for m in state["optimizer"]["state"].values())
    optimizer.load_state_dict(state["optimizer"])
    steps((plain, bank, optimizer), range(2, 5))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)


def test_the_best_of_the_published_program_is_no_score(tmp_path):
    state = checkpoint.load(saved(tmp_path))
    published = {name: value for name, value in state.items() if name not in ("config", "data")}
    assert unpack_(state, "ours", parts(), "resnet10").best_acc == 50.0
    assert unpack_(published, "published", parts(), "resnet10").best_acc == 0.0
    # Ours of before the cosine began where the warm-up ends.
    assert unpack_(published, "published", parts(), "resnet10").after_warmup
    del state["after_warmup"]
    assert not unpack_(state, "ours", parts(), "resnet10").after_warmup


@pytest.mark.parametrize("what", ["state_dict", "Memory_Bank", "optimizer"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, what):
    state = checkpoint.load(saved(tmp_path))
    tensors = state[what]["state"][0] if what == "optimizer" else state[what]
    next(x for x in tensors.values() if x.is_floating_point()).view(-1)[3] = float("inf")
    with pytest.raises(InputError, match="not finite"):
        unpack_(state, "file", parts(), "resnet10")


def test_a_file_that_is_renamed_while_it_is_read_is_one_sentence(tmp_path, monkeypatch):
    """A run that goes on renames its last checkpoint: --resume auto passes over it."""
    path = tmp_path / checkpoint.LAST
    checkpoint.save({"step": 1}, path)

    def vanish(*arguments, **options):
        path.unlink(missing_ok=True)
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(checkpoint, "verify", vanish)
    with pytest.raises(InputError, match="cannot be read: no such file"):
        checkpoint.load(path)


def play_on_three(world, data: str, halt: int) -> dict:
    """The state after four steps, with a break before one of them."""
    config = PretrainConfig(
        dataset="folder", data=data, arch="resnet10", image_size=20, cluster=32,
        global_batch_size=12, workers=0,
    )  # fmt: skip
    played = Game(config, world, torch.device("cpu"))
    for step in range(4):
        if step == halt:
            state = copy.deepcopy(pack(played.players, Progress(), config))
            played = Game(config, world, torch.device("cpu"))
            unpack_(state, "it", played.players, config.arch)
        played.play(next(played.batches(0, step)), step)
    return {**played.model.state_dict(), **played.bank.state_dict()}


def test_three_processes_go_on_bit_for_bit(digit_folder):
    """Two processes add in one order alone; of three, DistributedDataParallel decides it."""
    data = str(digit_folder)
    whole, broken = (in_processes(play_on_three, 3, data, halt)[0] for halt in (-1, 2))
    assert_same(broken, whole)


def test_a_snapshot_does_not_follow_its_state():
    state = {"W": torch.ones(2, 3).t(), "inside": {"list": [torch.ones(1)], "plain": {"n": 1}}}
    taken = checkpoint.snapshot(state)
    state["W"].zero_(), state["inside"]["list"][0].zero_(), state["inside"]["plain"].update(n=2)
    assert torch.equal(taken["W"], torch.ones(3, 2)) and taken["W"].stride() == state["W"].stride()
    assert taken["inside"]["list"] == [1] and taken["inside"]["plain"] == {"n": 1}
