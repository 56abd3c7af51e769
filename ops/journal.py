"""What a run says and writes: console, progress bar, JSON lines, TensorBoard. Rank 0 only."""

import json
import os
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ops.errors import InputError, log_folders, shown
from ops.files import RunFiles, finite_or_none, json_bytes, write_whole
from ops.run_folder import lock_folder, provenance


class Journal:
    """Speaks and writes for the whole run; silent with folder None, on all processes but the first.

    Files: config.json, metrics.jsonl (a line per log step and per epoch), TensorBoard events. What
    cannot be written at the moment (full disk, lost folder) is kept in memory, said once, and tried
    again with the next line.

    config: the options; a run that goes on keeps the file of its first start, for --resume auto
    compares with it.  data: which pictures the run is made of (adco.data.identity).
    size: bytes of metrics.jsonl to keep; lines after them are of steps that will be taken again.
    more: what else config.json keeps.
    Raises InputError where the folder cannot be written, or belongs to a run that still goes on.
    """

    tracker = None  # the run in wandb that has every record too
    step = 0  # of the last record

    def __init__(
        self, folder: Path | None, config: dict | None = None, data: dict | None = None,
        size: int | None = None, **more,
    ):  # fmt: skip
        self.folder = folder
        self.files = RunFiles(self.warn)  # what the run leaves beside its log
        self.bar = tqdm(disable=True)
        if folder is None:
            return
        log_folders.append(folder)
        # The lock first: a folder belongs to one run at a time.
        self.metrics = folder / "metrics.jsonl"
        self.waiting = b""  # lines that are not in the file yet
        self.troubled = False  # whether the last attempt failed
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = lock_folder(folder)
            # All that the numbers depend on, for results too.
            self.about = {"config": config, "data": data, **provenance(), **more}
            if config and not (folder / "config.json").exists():
                write_whole(folder / "config.json", json_bytes(self.about))
            self.metrics.touch()
            if size is not None:
                # Lines after the checkpoint are of steps that will be taken again.
                os.truncate(self.metrics, min(size, self.metrics.stat().st_size))
            self.events = new_events(folder)
            # One curve: events of steps that will be taken again would stay beside the new ones.
            os.truncate(self.metrics, self._replay())
        except OSError as error:
            why = f"cannot write in the run folder {str(folder)!r}: {error}"
            raise InputError(f"{why}; make room, or choose another --save_path") from error
        if config and config.get("track"):
            self._start_tracking(config)

    def _replay(self) -> int:
        """Show TensorBoard the lines that are there. Returns their bytes up to a torn one."""
        whole = 0
        with suppress(ValueError, KeyError, TypeError):  # of what a crash of the machine leaves
            for line in self.metrics.read_bytes().splitlines(keepends=True):
                record = json.loads(line)
                self.step, _ = record["step"], record["kind"]
                self.events.write_event(event_of(record))
                whole += len(line)
        return whole

    @property
    def size(self) -> int:
        """Bytes of metrics.jsonl once everything is written."""
        return 0 if self.folder is None else self._written() + len(self.waiting)

    def _written(self) -> int:
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def _start_tracking(self, config: dict) -> None:
        """A run in wandb for this run folder, the same one whenever the run goes on."""
        with self._tracking():
            import wandb

            # What it cannot send in time it keeps on disk: a run that is stopped has to end.
            os.environ.setdefault("WANDB_FINISH_TIMEOUT", "60")  # seconds
            project, folder = os.environ.get("WANDB_PROJECT", "adco"), self.folder
            self.tracker = wandb.init(
                project=project, id=folder.name, resume="allow", dir=str(folder), config=config,
                settings=wandb.Settings(console="off"),
            )  # fmt: skip
            # Start-up and epochs count their own steps; wandb's own only ever rises.
            self.tracker.define_metric("startup/*", step_metric="startup/step")
            self.tracker.define_metric("*", step_metric="step")

    @contextmanager
    def _tracking(self):
        """An error of wandb's in the block is said, and ends the tracking: the run goes on."""
        try:
            yield
        except Exception as error:
            self.tracker = None
            self.warn(f"wandb failed, the run goes on without it: {shown(error, 200)}")

    def say(self, text: str, stream=None) -> None:
        """Print it on stdout, or on another stream."""
        if self.folder is not None:
            with suppress(OSError):  # a log on the full disk too, or a reader that has gone
                tqdm.write(text, file=stream or sys.stdout)
                (stream or sys.stdout).flush()

    def warn(self, text: str) -> None:
        self.say(f"WARNING: {text}", sys.stderr)
        self.note(text)

    def note(self, text: str) -> None:
        """A record of kind warning: the text, and when it was."""
        self.record("warning", self.step, {"text": text, "time": time.strftime("%F %T")})

    def record(self, kind: str, step: int, values: dict) -> None:
        """One JSON line {"kind", "step", values...}, and a TensorBoard scalar of each number."""
        if self.folder is None:
            return
        # The line waits in memory until it is in the file: a full disk loses none.
        self.step = step
        record = finite_or_none({"kind": kind, "step": step, **values})
        self.waiting += (json.dumps(record) + "\n").encode()
        try:
            self._write_waiting()
            self.events.write_event(event_of(record))
            self.events.flush()
            self.troubled = False
        except OSError as error:
            # Said once, not with every line.
            told, self.troubled = self.troubled, True
            where = f"{str(self.folder)!r} ({error})"
            if not told:
                self.warn(f"cannot write the log in {where}; training goes on")
        if self.tracker:
            x = {"startup/step" if kind == "startup" else "step": step}
            numbers = {f"{kind}/{n}": v for n, v in values.items() if isinstance(v, (int, float))}
            with self._tracking():
                self.tracker.log(x | numbers)

    def picture(self, kind: str, pixels: np.ndarray) -> None:
        """Pixels [H, W, 3] for TensorBoard alone."""
        with suppress(OSError):  # they are no result
            self.events.write_event(event_of({"kind": kind, "step": self.step, "pixels": pixels}))

    def _write_waiting(self) -> None:
        written = self._written()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.metrics, "ab") as file:
                file.write(self.waiting)
        except OSError:
            with suppress(OSError):
                os.truncate(self.metrics, written)  # no half line stays
            raise
        self.waiting = b""

    def open_bar(self, total: int, title: str, done: int = 0) -> None:
        """A progress bar where stderr is a terminal; elsewhere `progress` prints lines."""
        # Where nobody watches, lines are better than a bar.
        self.bar = tqdm(
            total=total, initial=done, desc=title, dynamic_ncols=True, leave=False,
            disable=self.folder is None or not sys.stderr.isatty(),
            bar_format="{desc}|{bar}|{n}/{total} {remaining}{postfix}",
        )  # fmt: skip

    def progress(self, line: str, **shown: str) -> None:
        """The state of an epoch: beside the bar, or as a line of its own."""
        if self.bar.disable:
            self.say(line)
        else:
            words = ", ".join(f"{name} {value}".strip() for name, value in shown.items())
            self.bar.set_postfix_str(words, refresh=False)

    def close(self) -> None:
        self.bar.close()
        if self.folder is not None:
            if self.tracker:
                with self._tracking():  # a failure is a record too
                    self.tracker.finish()
            with suppress(OSError):
                self.events.close()
            self.lock.close()


def new_events(folder: Path):
    """A writer of TensorBoard events from the caller's own thread, so that a failure is his."""
    from tensorboardX.event_file_writer import EventsWriter

    # Those of an earlier session are written anew, see Journal._replay.
    for path in folder.glob("events.out.*"):
        path.unlink()
    # The writer that lies under SummaryWriter, which writes from a thread of its own and would
    # fail there. Private protos (tensorboardX 2.6); plain alternative: SummaryWriter.
    return EventsWriter(str(folder / "events"))


def event_of(record: dict):
    """The TensorBoard event of a line of metrics.jsonl: a scalar of each number, a histogram of
    each list of them, and a picture of each array of pixels [H, W, 3].
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.summary import histogram, image

    event = Event(wall_time=time.time(), step=record["step"], summary=Summary())
    for name, value in record.items():
        tag = f"{record['kind']}/{name}"
        if isinstance(value, np.ndarray):
            event.summary.MergeFrom(image(tag, value, dataformats="HWC"))
        elif isinstance(value, list):
            finite = [x for x in value if isinstance(x, (int, float))]
            if finite:
                event.summary.MergeFrom(histogram(tag, np.array(finite), bins=30))
        elif name not in ("epoch", "step") and isinstance(value, (int, float)):
            event.summary.value.add(tag=tag, simple_value=value)
    return event


class Stopwatch:
    """Seconds since it was started or last read."""

    def __init__(self):
        self.last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        elapsed, self.last = now - self.last, now
        return elapsed
