"""Changed checkpoints and configurations: each loads, or is refused in one sentence."""

import copy
from dataclasses import asdict, fields

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import adco
from adco.bad_pictures import BadPictures
from adco.meter import EpochMeter
from adco.state import Extras, Progress, pack, unpack_
from adco.step import Round
from adco.watch import Watch
from ops import checkpoint
from ops.arguments import parse
from ops.distributed import ALONE
from ops.errors import InputError
from ops.journal import Journal
from ops.pretrain_options import PRESETS, PretrainConfig

MANY = settings(
    max_examples=250, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


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
    """Everything that a run saves."""
    extras = Extras(
        meter=dict(
            totals=torch.ones(1, len(Round._fields)), steps=2, seconds=1.0, data_seconds=0.5
        ),
        watch=dict(since={"cone": 3}, told=[]),
        journal_size=100,
        bad_pictures={"a.jpg": "torn"},
        scaler=torch.amp.GradScaler("cpu").state_dict(),
    )
    state = pack(*parts(), Progress(1, 2, 3, 4, True, 8, 9, 50.0), PretrainConfig())
    return {**state, **asdict(extras)}


def sentence_of(error: InputError) -> str:
    text = str(error)
    assert text and "\n" not in text and "Traceback" not in text
    return text


def load(state: dict) -> None:
    """As a run does it; only an InputError may come out."""
    try:
        progress = unpack_(state, "the file", *parts(), "resnet50")
        extras = Extras.read(state, "the file")
        take_up(extras)
    except InputError as error:
        sentence_of(error)
        return
    assert all(isinstance(getattr(progress, name), int) for name in ("epoch", "step"))
    assert (progress.epoch >= 0 and extras.journal_size is None) or extras.journal_size >= 0


def take_up(extras: Extras) -> None:
    """Give each part of a run what it kept."""
    EpochMeter(Journal(None), ALONE, torch.device("cpu"), 1, 5, 8, extras.meter).means()
    Watch(8, 1.0, 200, extras.watch).read(9, 1.0, 0.5, 0.5)
    BadPictures(0.01, 100, extras.bad_pictures or {}).complaint()
    if extras.scaler:
        torch.amp.GradScaler("cpu").load_state_dict(extras.scaler)


def test_the_unchanged_state_loads():
    state = whole_state()
    assert unpack_(state, "the file", *parts(), "resnet50") == Progress(
        1, 2, 3, 4, True, 8, 9, 50.0
    )
    assert Extras.read(state, "the file").journal_size == 100


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


@MANY
@given(st.data())
def test_a_changed_state_loads_or_is_refused(data):
    state = mutate(data, whole_state())
    if isinstance(state, dict):
        load(state)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("mutations") / "checkpoint_last.pth.tar"
    checkpoint.save(whole_state(), path)
    return path, path.read_bytes()


@MANY
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


@MANY
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
