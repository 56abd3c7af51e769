"""The wheel: what lies in it, and that it runs beside other people's modules, on other systems."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ops.run_folder import provenance
from tests.conftest import ROOT

try:
    import tomllib
except ImportError:  # Python 3.10, with pytest's own
    import tomli as tomllib

SOURCES = ("adco", "ops", "VOC_CLF", "main_adco.py", "lincls.py", "setup.py", "pyproject.toml",
           "requirements.txt", "README.md", "LICENSE", "MANIFEST.in")  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "from setuptools.build_meta import build_wheel; build_wheel('wheel')"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder as site-packages is after pip install, from a copy of the repository."""
    folder = tmp_path_factory.mktemp("package")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    # A file that an earlier build left.
    stale = folder / "build" / "lib" / "adco" / "ops" / "gone.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    built = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("wheel/*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run_installed(site: Path, code: str, cwd: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_one_package_that_imports_itself_by_its_own_name(site):
    import adco

    (info,) = site.glob("*.dist-info")
    assert info.name == f"adco-{adco.__version__}.dist-info"
    assert {path.name for path in site.iterdir()} == {"adco", info.name}
    for name in ("ops", "VOC_CLF"):
        ours = {path.name for path in (ROOT / name).glob("*.py")}
        assert {path.name for path in (site / "adco" / name).iterdir()} == ours
    assert (site / "adco/report/page.html").is_file()
    for path in (site / "adco").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ("ops", "VOC_CLF", "main_adco", "lincls"), path


def test_installed_it_leaves_the_users_own_modules_alone(site, tmp_path):
    for name in ("ops", "data", "lincls"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('of the user')")
    code = (
        "import sys, pkgutil, importlib, adco\n"
        "for found in pkgutil.walk_packages(adco.__path__, 'adco.'):\n"
        "    importlib.import_module(found.name)\n"
        "assert adco.train_step.__module__ == 'adco.step'\n"
        "assert not {'ops', 'data', 'lincls', 'main_adco', 'VOC_CLF'} & set(sys.modules)\n"
        "from adco.ops.run_folder import provenance\n"
        "print(provenance()['commit'], provenance()['versions']['adco'] == adco.__version__)"
    )
    # Around it lies a repository of something else.
    subprocess.run(["git", "init", "-q", str(site)], check=True)
    done = run_installed(site, code, tmp_path)
    assert done.stdout == "None True\n", done.stderr


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_a_command_speaks_under_its_own_name(site, tmp_path, name):
    module, function = PROJECT["scripts"][name].split(":")
    code = f"import sys; sys.argv[0] = {f'/bin/{name}'!r}; import {module} as m; m.{function}()"
    wrong = {"adco-export": ("x", "y"), "adco-report": ("x",)}
    done = run_installed(site, code, tmp_path, *wrong.get(name, ("--data", "x", "--lr=-1")))
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: error: ") and done.stderr.count("\n") == 1


def test_in_the_repository_the_commit_is_its_own():
    tracked = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True)
    if tracked.returncode:
        pytest.skip("not a git repository")
    assert provenance()["commit"].startswith(tracked.stdout.decode().strip())
    assert "adco" not in provenance()["versions"]


def test_everything_starts_without_what_windows_lacks(tmp_path):
    code = (
        "import sys, signal, os, torch\n"
        "sys.modules |= dict.fromkeys(['fcntl', 'resource', 'pwd', 'grp', 'termios'])\n"
        "for name in ['SIGUSR1', 'SIGHUP', 'SIGCHLD', 'pthread_sigmask', 'sigtimedwait']:\n"
        "    delattr(signal, name)\n"
        "del os.sched_getaffinity\n"
        "import main_adco\n"
        "sys.exit(main_adco.main('--dataset digits -j 0 --dry_run 1 --cluster 64'.split()))"
    )
    done = run_installed(ROOT, code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_tested_set_fits_the_requirements():
    listed = (ROOT / "requirements.txt").read_text().splitlines()
    for extra in PROJECT["optional-dependencies"].values():
        listed += extra
    pins = [word for word in (ROOT / "constraints.txt").read_text().split() if "==" in word]
    exact = {canonicalize_name(pin.split("==")[0]): pin.split("==")[1] for pin in pins}
    for needed in map(Requirement, listed):
        assert exact[canonicalize_name(needed.name)] in needed.specifier, needed
