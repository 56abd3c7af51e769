"""The shape of the house: which way imports run, and where the plumbing lives."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = sorted([*ROOT.glob("adco/*.py"), *ROOT.glob("ops/*.py")])


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", sorted(ROOT.glob("ops/*.py")), ids=lambda path: path.name)
def test_ops_does_not_know_the_method(path):
    above = {name for name in imported(path) if name.split(".")[0] == "adco"}
    assert not above, f"{path.name} imports {above}; move the shared part down"


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_processes_and_parsers_have_one_home(path):
    names = imported(path)
    if path.name != "distributed.py":
        assert not any(name.startswith("torch.distributed") for name in names)
    if path.name != "arguments.py":
        assert "argparse" not in names


@pytest.mark.parametrize("name", ["objective.py", "negatives.py", "plan.py"])
def test_the_method_knows_nothing_of_files_flags_or_logging(name):
    plumbing = {"logging", "pathlib", "os", "argparse"}
    plumbing |= {"ops.journal", "ops.options", "ops.arguments"}
    assert not imported(ROOT / "adco" / name) & plumbing


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path.name}: {node.name} has {length} lines"
