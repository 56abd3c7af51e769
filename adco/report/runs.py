"""Runs on disk: where they are, what they were told and have logged, what probes say of them."""

import json
import sys
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from adco.plan import view_plan
from adco.pretrain.health import CollapseWatch
from adco.pretrain.monitor import SCORES
from adco.pretrain.options import PretrainConfig
from ops.errors import InputError, some

LOG = "metrics.jsonl"
DEFAULTS = json.loads(json.dumps(vars(PretrainConfig())))  # as a config.json has them


class Run(NamedTuple):
    """A pre-training run: its folder, its config.json, and its records by their kind."""

    folder: Path
    about: dict
    records: dict[str, list[dict]]

    @property
    def options(self) -> dict:
        return self.about["config"]

    def watch(self, state: dict | None = None, patience: int = 0) -> CollapseWatch:
        """What watched over it. Its chance is the loss where all keys are equally near."""
        o = self.options
        views = 1 + (sum(o["nmb_crops"]) if o["multi_crop"] else 1)
        weight = sum(t.weight for t in view_plan(bool(o["sym"]), bool(o["multi_crop"]), views))
        M = o.get("global_batch_size") or o["batch_size"]
        return CollapseWatch.of(SimpleNamespace(**o), M, weight, patience, state)

    def curve(self, kind: str, name: str) -> list[tuple[int, float]]:
        """(step, value) of the records of a kind; what is not finite is left out."""
        found = ((r["step"], r.get(name)) for r in self.records.get(kind, []))
        return [(step, value) for step, value in found if value is not None]

    def epochs_done(self) -> str:
        """Such as 8, or 3 of 8."""
        epochs, wanted = self.records.get("epoch"), self.options["epochs"]
        done = epochs[-1]["epoch"] + 1 if epochs else 0
        return f"{done}" if done == wanted else f"{done} of {wanted}"

    def scores(self) -> dict[str, str]:
        """Epochs, the score of what the run began with, where it is known, and the last score."""
        seconds = sum(r["seconds"] or 0 for r in self.records.get("epoch", []))
        rows = {"epochs": f"{self.epochs_done()} in {seconds:.0f} s"}
        for kind, (name, title, unit) in SCORES.items():
            found = self.curve(kind, name)
            # A run that went on from a checkpoint of elsewhere has no score before its first step.
            if found and found[0][0] == 0:
                begun = "weights of --init" if self.options.get("init") else "random weights"
                rows[f"{title}, {begun}"] = f"{found[0][1]:.1f}{unit}"
            if found and found[-1][0]:
                rows[f"{title}, pre-trained"] = f"{found[-1][1]:.1f}{unit}"
        return rows


def read_run(folder: Path) -> Run:
    about = json.loads((folder / "config.json").read_text())
    # An earlier version had fewer options.
    about["config"] = {**DEFAULTS, **about["config"]}
    return Run(folder, about, read_metrics(folder))


def read_metrics(run: Path) -> dict[str, list[dict]]:
    """Records of a run by their kind: startup, train, epoch, knn, rank, warning, ..."""
    records: dict[str, list[dict]] = {}
    for line in (run / LOG).read_text(errors="replace").splitlines():
        with suppress(ValueError):  # half a line, of a run that goes on
            record = json.loads(line)
            if isinstance(record, dict) and {"kind", "step"} <= record.keys():
                records.setdefault(record["kind"], []).append(record)
    return records


def runs_below(folder: Path) -> list[Run]:
    """The pre-training runs in a folder and below that have logged a step, the newest last; where
    there is none, those that have not. Raises InputError where there are none of these either.
    """
    found, broken = [], []
    for path in folder.rglob("config.json"):
        with suppress(KeyError, TypeError):  # of another program
            try:
                if "memory_lr" in json.loads(path.read_text())["config"]:
                    written, run = path.with_name(LOG).stat().st_mtime, read_run(path.parent)
                    found.append((bool(run.records.keys() & {"train", "startup"}), written, run))
            except (OSError, ValueError) as error:
                broken.append(str(error) if isinstance(error, OSError) else f"{path}: {error}")
    if not found:
        logs = [log for log in folder.rglob(LOG) if not log.with_name("config.json").exists()]
        broken += [f"no config.json beside {log}" for log in logs]
        fault = f"no pre-training run in {str(folder)!r}; expected its folder, or one above"
        raise InputError(fault + f". Cannot be read: {some(broken, 3)}" * bool(broken))
    for fault in broken:
        print(f"left out: {fault}", file=sys.stderr, flush=True)
    found.sort(key=itemgetter(0, 1))
    return [run for has_stepped, _, run in found if has_stepped == found[-1][0]]


def newest_run(folder: Path) -> Path:
    """The pre-training run below a folder that was written last."""
    return runs_below(folder)[-1].folder


def probe_scores(folder: Path, run: Run) -> dict[str, float]:
    """Percent, by what was scored, of the probes and of VOC below a folder that are of this run.

    A run folder has a name of its own, so it is known wherever it was moved.
    """
    found = {}
    for path in sorted(folder.rglob("results.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            result = json.loads(path.read_text())
            if Path(result["checkpoint"]).parent.name == run.folder.name:
                of = "acc1" if "acc1" in result else "map"
                found[f"{result['protocol']} on {result['dataset']}, {of}"] = result[of]
    return found
