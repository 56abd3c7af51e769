"""Runs on disk: where they are, what they were told and have logged, and what probes say of them."""

import json
from contextlib import suppress
from math import log
from pathlib import Path
from typing import NamedTuple

from adco.plan import view_plan
from ops.errors import InputError

Records = dict[str, list[dict]]


class Run(NamedTuple):
    """A pre-training run."""

    folder: Path
    about: dict  # its config.json
    records: Records

    @property
    def options(self) -> dict:
        return self.about["config"]

    @property
    def chance(self) -> float:
        """The loss where all keys are equally near."""
        o = self.options
        crops = sum(o["nmb_crops"]) if o["multi_crop"] else 0
        plan = view_plan(bool(o["sym"]), bool(o["multi_crop"]), 1 + crops if crops else 2)
        M = o.get("global_batch_size") or o["batch_size"]
        return log(2 * M - 1 if o.get("negatives") == "simclr" else M) * sum(t.weight for t in plan)

    def curve(self, kind: str, name: str) -> list[tuple[int, float]]:
        """(step, value) of the records of a kind; what is not finite is left out."""
        found = ((r["step"], r.get(name)) for r in self.records.get(kind, []))
        return [(step, value) for step, value in found if value is not None]


def read_run(folder: Path) -> Run:
    about = json.loads((folder / "config.json").read_text())
    return Run(folder, about, read_metrics(folder))


def read_metrics(run: Path) -> Records:
    """Records of a run by their kind: startup, train, epoch, knn, rank, warning, ..."""
    records: Records = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        with suppress(ValueError):  # half a line, of a run that goes on
            record = json.loads(line)
            records.setdefault(record["kind"], []).append(record)
    return records


def is_pretraining(folder: Path) -> bool:
    """Whether a folder is of a pre-training run, not of a probe."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        options = json.loads((folder / "config.json").read_text())["config"]
        return "memory_lr" in options and (folder / "metrics.jsonl").is_file()
    return False


def runs_below(folder: Path) -> list[Path]:
    """The pre-training runs in a folder and below, in the order in which they were written."""
    if is_pretraining(folder):
        return [folder]
    runs = [path.parent for path in folder.rglob("config.json") if is_pretraining(path.parent)]
    return sorted(runs, key=lambda run: (run / "metrics.jsonl").stat().st_mtime)


def newest_run(folder: Path) -> Path:
    """The pre-training run below a folder that was written last, of those that took a step."""
    runs = runs_below(folder)
    begun = [run for run in runs if read_metrics(run).keys() & {"train", "startup"}]
    if not runs:
        raise InputError(
            f"no pre-training run in {str(folder)!r}; expected its folder, or one above"
        )
    return (begun or runs)[-1]


def probe_scores(folder: Path, runs: list[Run]) -> dict[Path, list[tuple[str, float]]]:
    """(what was scored, percent) of the probes and of VOC below a folder, by the run they are of.

    A run folder has a name of its own, so it is known where it was moved.
    """
    found: dict[Path, list] = {run.folder: [] for run in runs}
    for path in sorted(folder.rglob("results.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            result = json.loads(path.read_text())
            name = f"{result['protocol']} on {result['dataset']}"
            for run in runs:
                if Path(result["checkpoint"]).parent.name == run.folder.name:
                    value = result["acc1"] if "acc1" in result else result["map"]
                    found[run.folder].append(
                        (f"{name}, {'%' if 'acc1' in result else 'mAP'}", value)
                    )
    return found
