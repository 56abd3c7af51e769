"""The scripts of docs/own_loop.md run as they stand there, and the bank plays in them."""

import re

import pytest
import torch
from torch.utils.data import Dataset

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "own_loop.md").read_text(encoding="utf-8")
SMALL = {
    "= 10, 128, 1024, 64": "= 3, 64, 256, 16",
    "= mnist_data()": "= (x[:640] for x in mnist_data())",
    'devices="auto"': "devices=1",
    'accelerator="auto"': 'accelerator="cpu"',
}


def script(fabric: bool) -> str:
    whole, under_fabric = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shared, game, _ = re.split(r"(game = .*\n)", whole)
    code = shared + game + under_fabric if fabric else whole
    for text, smaller in SMALL.items():
        code = code.replace(text, smaller)
    return code


@pytest.mark.parametrize("fabric", [False, True])
def test_the_script_of_the_page_trains_ones_own_model(fabric, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(script(fabric), "own_loop", "exec"), names)
    assert "epoch 2: loss" in capsys.readouterr().out
    assert isinstance(names["loader"].dataset, Dataset)
    # Both players have moved, and the key encoder follows a copy of one's own model.
    model, bank, out = names["model"], names["bank"], names["out"]
    assert model.encoder_q[0] is names["trunk"]
    assert not torch.equal(model.encoder_k[0][0].weight, model.encoder_q[0][0].weight)
    assert bank.v.norm() > 0 and 0 < out.mass < 1 and out.dropped == 0
    if fabric:
        saved = torch.load("checkpoint.pt", weights_only=True)
        assert torch.equal(saved["bank"]["W"], bank.W)
