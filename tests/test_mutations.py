"""Changed checkpoints and configurations: each loads, or is refused in one sentence."""

import copy
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import adco
from adco.pretrain.options import PRESETS, PretrainConfig
from adco.pretrain.state import Progress, pack, unpack_
from ops import checkpoint
from ops.arguments import parse
from ops.errors import InputError


class Encoders(nn.Module):
    """Two encoders small enough to be loaded hundreds of times."""

    def __init__(self):
        super().__init__()
        self.encoder_q = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.num_shuffles = 0


def parts():
    model = Encoders()
    bank = adco.NegativeBank(6, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model.encoder_q(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return model, bank, optimizer


def whole_state() -> dict:
    """What a run saves of both players, and something that only this program keeps."""
    progress = Progress(epoch=1, epoch_step=2, step=3, playing=True, best_acc=50.0)
    state = pack(parts(), progress, PretrainConfig())
    return {**state, "watch": {"since": {"cone": 3}, "told": []}}


def sentence_of(error: InputError) -> str:
    text = str(error)
    assert text and "\n" not in text and "Traceback" not in text
    return text


SHARED = ("epoch", "arch", "best_acc", "state_dict", "optimizer", "Memory_Bank")


plain = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(), st.text(max_size=4),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.integers()),
)  # fmt: skip
tensors = st.builds(
    lambda shape, dtype: torch.ones(shape, dtype=dtype),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16]),
)


def mutate(data, value, others=None):
    """`value` with one thing in it, anywhere, taken out, renamed or replaced."""
    if isinstance(value, (dict, list)) and value and data.draw(st.integers(0, 4)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = data.draw(st.sampled_from(keys))
        action = data.draw(st.sampled_from(["inside", "inside", "remove", "rename"]))
        inside = value.pop(key)
        if action == "inside":
            inside = mutate(data, inside, others)
        if action != "remove":
            key = data.draw(plain.filter(is_key)) if action == "rename" else key
            if isinstance(value, dict):
                value[key] = inside
            else:
                value.append(inside)
        return value
    return data.draw(st.one_of(plain, tensors) if others is None else others)


def is_key(value) -> bool:
    return not isinstance(value, (list, dict))


@given(st.data())
def test_a_changed_file_of_another_program_loads_or_is_refused(data):
    state = whole_state()
    state = mutate(data, {name: state[name] for name in SHARED})
    if isinstance(state, dict):
        try:
            progress = unpack_(state, "the file", parts(), "resnet50")
        except InputError as error:
            sentence_of(error)
        else:
            assert isinstance(progress.epoch, int) and isinstance(progress.best_acc, float)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("mutations") / "checkpoint_last.pth.tar"
    checkpoint.save(whole_state(), path)
    return path, path.read_bytes()


@given(st.data())
def test_a_file_with_changed_bytes_loads_as_it_was_or_is_refused(small_file, data):
    path, content = small_file
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(changed) - 1))
        if data.draw(st.booleans()):
            changed[position] = data.draw(st.integers(0, 255))
        else:
            del changed[position : position + data.draw(st.integers(1, len(content)))]
        changed = changed or bytearray(b"?")
    path.write_bytes(changed)
    try:
        state = checkpoint.load(path)
    except InputError as error:
        assert "checkpoint_last.pth.tar" in sentence_of(error)
    else:
        assert torch.equal(state["Memory_Bank"]["W"], parts()[1].W)
        assert state["watch"] == {"since": {"cone": 3}, "told": []}
    assert path.read_bytes() == changed and len(list(path.parent.iterdir())) == 1


@given(
    st.sampled_from([f.name for f in fields(PretrainConfig)]),
    st.one_of(st.text(max_size=6), st.integers().map(str), st.floats().map(str)),
)
def test_a_command_line_is_understood_or_refused(capsys, name, value):
    try:
        config = parse(PretrainConfig, [f"--{name}={value}"], PRESETS)
    except InputError as error:
        sentence_of(error)
    except SystemExit as refused:
        assert refused.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    else:
        assert isinstance(config, PretrainConfig)
