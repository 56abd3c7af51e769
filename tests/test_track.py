"""--track wandb: one run there for a run folder, and nothing that fails there fails here."""

import json
import sys
from importlib.util import find_spec

import pytest

from tests.support.scripts import TINY, assert_refused, pretrain, records, run_main

# What wandb is asked, a line each, in calls.jsonl of the current folder.
STAND_IN = """
import json

def write(name, what):
    with open("calls.jsonl", "a") as file:
        file.write(json.dumps([name, what], default=str) + "\\n")

def fail(name):
    if name == {fails!r}:
        raise ConnectionError("no network")

def Settings(**_):
    pass

class Run:
    def define_metric(self, *_, **__):
        pass

    def log(self, values):
        fail("log")
        write("log", values)

    def finish(self):
        fail("finish")
        write("finish", {{}})

def init(**keywords):
    fail("init")
    write("init", keywords)
    return Run()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a wandb in place that writes down what it is asked, and may fail."""
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def put(fails: str = ""):
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "wandb.py").write_text(STAND_IN.format(fails=fails))

    yield put
    sys.modules.pop("wandb", None)


def calls(folder) -> list:
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def test_a_run_that_goes_on_is_one_run_in_wandb_with_all_of_the_log(
    stand_in, digit_folder, tmp_path
):
    stand_in()
    run = pretrain(tmp_path, digit_folder, "--track", "wandb", "--epochs", "1", "--knn_freq", "1")
    words = ["--track", "wandb", "--epochs", "1", "--knn_freq", "1", "--resume", "auto"]
    assert pretrain(tmp_path, digit_folder, *words) == run
    made = calls(tmp_path)
    begun = [what for name, what in made if name == "init"]
    assert [(b["id"], b["resume"], b["project"]) for b in begun] == 2 * [
        (run.name, "allow", "adco")
    ]
    assert begun[0]["config"]["cluster"] == 32 and run.samefile(tmp_path / begun[0]["dir"])
    logged = [what for name, what in made if name == "log"]
    assert len(logged) == len(records(run))
    for record, sent in zip(records(run), logged, strict=True):
        kind = record["kind"]
        assert sent["startup/step" if kind == "startup" else "step"] == record["step"]
        numbers = {n: v for n, v in record.items() if not isinstance(v, (str, list))}
        assert {n: v for n, v in numbers.items() if n != "step"} == {
            name.partition("/")[2]: value
            for name, value in sent.items()
            if name not in ("step", "startup/step")
        }
    assert [name for name, _ in made].count("finish") == 2


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_what_fails_in_wandb_is_told_once_and_the_run_goes_on(
    stand_in, digit_folder, tmp_path, fails
):
    stand_in(fails)
    words = ["--data", digit_folder, "--epochs", "1", "--track", "wandb", "--knn_freq", "0"]
    done = run_main("main_adco.py", *TINY, *words, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("wandb failed") == 1 and "no network" in done.stderr


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
@pytest.mark.parametrize("words", [["main_adco.py"], ["lincls.py", "--pretrained", "x"]])
def test_without_wandb_one_sentence_comes_first(words, tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # wandb itself leaves such a folder
    monkeypatch.syspath_prepend(str(tmp_path))
    done = run_main(*words, "--track", "wandb", cwd=tmp_path)
    assert_refused(done, "track=wandb: it is not installed; python3 -m pip install wandb")
