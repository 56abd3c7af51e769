"""The shape of the house: which way imports run, and how long its files and functions are."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = (
    "adco", "adco.data", "adco.probe", "adco.pretrain", "adco.report", "ops", "VOC_CLF",
    "benchmarks",
)  # fmt: skip
FILES = sorted(path for room in ROOMS for path in (ROOT / room.replace(".", "/")).glob("*.py"))
METHOD = (
    "adco.plan",
    "adco.encoder",
    "adco.model",
    "adco.objective",
    "adco.fused",
    "adco.negatives",
    "adco.step",
)
# What the files of a room may not import. The method: the files of adco/, its commands aside.
FORBIDDEN = {
    "method": ("adco.data", "adco.probe", "adco.pretrain", "VOC_CLF"),
    "adco.data": (*METHOD, "adco.probe", "adco.pretrain", "VOC_CLF"),
    "adco.probe": (*(set(METHOD) - {"adco.encoder"}), "adco.pretrain", "VOC_CLF"),
    "adco.pretrain": ("adco.export", "adco.report", "VOC_CLF"),
    "ops": ("adco", "VOC_CLF"),
    "VOC_CLF": ("adco.pretrain",),
}
MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES = 14, 300, 48


def name_of(path: Path) -> str:
    """adco/data/views.py is adco.data.views; a package's __init__.py is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str) -> set[str]:
    """Modules that a file imports, and what it imports from them: either may be a module."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def wrong_imports(name: str, source: str) -> set[str]:
    """Those that run the wrong way: up the house, or past the home of a mechanism."""
    room = "method" if name in METHOD else name.rpartition(".")[0] or name
    forbidden = FORBIDDEN.get(room, ())
    if name != "ops.distributed" and room != "benchmarks":
        forbidden += ("torch.distributed",)
    if name != "ops.arguments":
        forbidden += ("argparse",)
    if name in ("adco.objective", "adco.negatives", "adco.plan"):
        forbidden += ("logging", "pathlib", "os", "ops.journal", "ops.options", "ops.arguments")
    below = tuple(f"{module}." for module in forbidden)
    return {i for i in imports_of(source) if i in forbidden or i.startswith(below)}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_down_the_house(path):
    found = wrong_imports(name_of(path), path.read_text())
    assert not found, f"{name_of(path)} imports {found}; move the shared part down"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("adco.step", "from adco.pretrain.state import Progress"),
        ("adco.model", "import adco.data.views"),
        ("adco.data.loader", "from adco import step"),
        ("adco.data.views", "from adco.probe.features import Features"),
        ("adco.probe.run", "def late():\n    from adco.pretrain import options"),
        ("adco.probe.linear", "from adco.model import AdCo"),
        ("adco.pretrain.run", "from adco.report.pages import report_one"),
        ("ops.launch", "import adco"),
        ("ops.launch", "import torch.distributed as dist"),
        ("adco.step", "from torch import distributed"),
        ("adco.export", "import argparse"),
        ("adco.objective", "from pathlib import Path"),
    ],
)
def test_an_import_that_runs_up_the_house_is_found(name, source):
    assert wrong_imports(name, source)


def circle_in(arrows: dict[str, set[str]]) -> set[str]:
    """Modules from which every way leads back or into a circle; none where there is no circle."""
    left = {name: targets & arrows.keys() for name, targets in arrows.items()}
    while ends := {name for name, targets in left.items() if not targets}:
        left = {name: targets - ends for name, targets in left.items() if name not in ends}
    return set(left)


def test_no_imports_run_in_a_circle():
    arrows = {name_of(path): imports_of(path.read_text()) for path in FILES}
    assert not circle_in(arrows)
    assert circle_in({**arrows, "ops.errors": {"adco.step"}, "adco.step": {"ops.errors"}})


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_holds_few_files(room):
    most = MOST_FILES + 4 * (room == "ops")
    assert len(list((ROOT / room.replace(".", "/")).glob("*.py"))) <= most


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= MOST_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("room", ["adco.pretrain", "adco.probe", "VOC_CLF"])
def test_a_command_is_its_options_and_its_run(room):
    folder = ROOT / room.replace(".", "/")
    assert (folder / "options.py").is_file() and (folder / "run.py").is_file()
