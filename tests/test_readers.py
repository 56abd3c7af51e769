"""Trunks are read from the files of every program that names them so, and from no other."""

import pickle
from functools import cache

import pytest
import torch

from adco import AdCo
from adco.encoder import build_trunk, read_trunk
from ops.checkpoint import with_module
from ops.errors import InputError


def encoder_weights(prefix: str) -> dict[str, torch.Tensor]:
    """A resnet10 with MoCo v1's head (one linear layer), its names below `prefix`."""
    shift = len(prefix) + prefix.count("k")  # other values below another name
    return {prefix + name: value + shift for name, value in fresh_weights().items()}


@cache
def fresh_weights() -> dict[str, torch.Tensor]:
    return build_trunk("resnet10").state_dict()


def moco_file(head: str) -> dict:
    """A MoCo checkpoint: both encoders, its queue, no bank. head: names of the head's layers."""
    state = encoder_weights("encoder_q.") | encoder_weights("encoder_k.")
    state = {name.replace("fc.", head): value for name, value in state.items()}
    state |= {"queue": torch.zeros(8, 16), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet10", "state_dict": with_module(state), "optimizer": {}}


def adco_file() -> dict:
    model = AdCo("resnet10", dim=8)
    bank = {"W": torch.zeros(8, 16), "v": torch.zeros(8, 16)}
    return {
        "epoch": 3,
        "arch": "resnet10",
        "state_dict": with_module(model.state_dict()),
        "optimizer": {},
        "Memory_Bank": bank,
    }


FILES = {
    "AdCo": adco_file,
    "MoCo v1": lambda: moco_file("fc."),
    "MoCo v2": lambda: moco_file("fc.2."),
    "torchvision": lambda: encoder_weights(""),
    "torchvision below state_dict": lambda: {"state_dict": encoder_weights("")},
}


def write(tmp_path, content):
    path = tmp_path / "input.pth.tar"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("module", ["", "module."])
@pytest.mark.parametrize("program", FILES)
def test_a_trunk_is_read_with_and_without_module(tmp_path, program, module):
    content = FILES[program]()
    names = content.get("state_dict", content)
    renamed = {module + n.removeprefix("module."): value for n, value in names.items()}
    path = write(tmp_path, {**content, "state_dict": renamed} if names is not content else renamed)

    trunk = read_trunk(path, arch="resnet10").build().state_dict()

    query = {n.removeprefix("module.").removeprefix("encoder_q."): v for n, v in names.items()}
    for name, value in trunk.items():
        if not name.startswith("fc."):
            assert torch.equal(value, query[name]), name


def test_the_key_encoder_is_read_on_demand(tmp_path):
    content = moco_file("fc.")
    trunk = read_trunk(write(tmp_path, content), "key").build()
    expected = content["state_dict"]["module.encoder_k.conv1.weight"]
    assert torch.equal(trunk.conv1.weight, expected)


def test_files_without_batch_counters_are_read(tmp_path):
    weights = encoder_weights("")
    path = write(tmp_path, {n: v for n, v in weights.items() if "num_batches" not in n})
    assert torch.equal(
        read_trunk(path, arch="resnet10").build().conv1.weight, weights["conv1.weight"]
    )


def test_keys_missing_and_left_over_are_named(tmp_path):
    weights = encoder_weights("")
    weights["layer1.0.other.weight"] = weights.pop("layer1.0.conv1.weight")
    with pytest.raises(InputError) as refusal:
        read_trunk(write(tmp_path, weights), arch="resnet10").build()
    assert "missing: layer1.0.conv1.weight; left over: layer1.0.other.weight" in str(refusal.value)
    assert "check --arch" in str(refusal.value)
    # The architecture that is assumed where neither the file nor the command names one.
    with pytest.raises(InputError, match="taken for a resnet50, does not fit"):
        read_trunk(write(tmp_path, encoder_weights(""))).build()


def test_an_architecture_other_than_the_files_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds a resnet10, not a resnet18: --arch resnet10"):
        read_trunk(write(tmp_path, moco_file("fc.")), arch="resnet18")


def test_a_missing_key_encoder_is_refused(tmp_path):
    path = write(tmp_path, {"state_dict": encoder_weights("module.encoder_q.")})
    with pytest.raises(InputError, match="no weights of a key encoder"):
        read_trunk(path, "key")


@pytest.mark.parametrize(
    "content",
    [{"epoch": 3, "optimizer": {}}, {"state_dict": [torch.zeros(2)]}, {}, [torch.zeros(2)],
     {"state_dict": {1: torch.zeros(2)}}, {"state_dict": {"conv1.weight": 3}},
     {"fc.weight": torch.zeros(2, 2)}],
)  # fmt: skip
def test_a_file_without_an_encoder_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"expected|dictionary"):
        read_trunk(write(tmp_path, content))


class Trap:
    """Unpickling it would leave a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("write_trap", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_a_pickled_object_is_refused_and_never_run(tmp_path, write_trap):
    mark = tmp_path / "ran"
    write_trap({"state_dict": Trap(mark)}, tmp_path / "trap.pth")
    with pytest.raises(InputError, match="safely"):
        read_trunk(tmp_path / "trap.pth")
    assert not mark.exists()
