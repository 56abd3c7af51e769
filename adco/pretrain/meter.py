"""Times and means of one epoch. Reads the device on log steps only."""

from datetime import datetime, timedelta

import torch

from adco.step import Round
from ops.distributed import World, gather_rows, mean_across_ranks_
from ops.journal import Stopwatch

DROPPED = Round._fields.index("dropped")
TRIED = 3  # steps after which it is told what a step costs


class EpochMeter:
    """Counts the steps of one epoch. state: of the meter of an interrupted epoch, to go on from."""

    def __init__(self, device: torch.device, world: World, state: dict | None = None):
        self.world = world
        self.latest = torch.zeros(len(Round._fields), device=device)
        self.totals = torch.zeros_like(self.latest)
        self.steps = 0
        self.seconds = self.data_seconds = 0.0
        if state and state["totals"].shape[1] == len(self.totals):  # not of an earlier version
            # Sums of each process; with another number of processes now, their mean for each.
            of_each = state["totals"]  # [R, number of fields]
            same = len(of_each) == world.size
            self.totals.copy_(of_each[world.rank] if same else of_each.mean(dim=0))
            self.steps = state["steps"]
            self.seconds, self.data_seconds = state["seconds"], state["data_seconds"]
        # Steps, seconds and data seconds at the last log line.
        self.logged = (self.steps, self.seconds, self.data_seconds)
        self.stopwatch = Stopwatch()

    def state(self) -> dict:
        """Plain values and tensors, for a checkpoint. For all processes to call."""
        names = ("steps", "seconds", "data_seconds")
        totals = gather_rows(self.totals[None], self.world)
        return {"totals": totals, **{name: getattr(self, name) for name in names}}

    def data_is_here(self) -> None:
        waited = self.stopwatch.lap()
        self.seconds += waited
        self.data_seconds += waited

    def step_is_done(self, result: Round) -> None:
        self.latest = torch.stack(result)
        # A dropped step counts for nothing but itself. Decided on the device.
        dropped = result.dropped.bool()
        values = torch.where(dropped, torch.zeros_like(self.latest), self.latest)
        values[DROPPED] = result.dropped
        self.totals += values
        self.steps += 1
        self.seconds += self.stopwatch.lap()

    def read(self, num_keys: int) -> tuple[str, dict[str, str], dict[str, float]]:
        """The last step and the means so far: as a line, for the progress bar, and as values.

        Means over processes. num_keys: M, pictures a step.  Waits for the device.
        """
        values = by_name(mean_across_ranks_(self.latest.clone(), self.world))
        means = self.means()
        self.seconds += self.stopwatch.lap()

        # Seconds a step since the last line, and over the epoch.
        steps, seconds, data_seconds = self.steps, self.seconds, self.data_seconds
        since = steps - self.logged[0]
        step_time = (seconds - self.logged[1]) / since
        data_time = (data_seconds - self.logged[2]) / since
        self.logged = (steps, seconds, data_seconds)
        images_per_second = num_keys / step_time

        line = (
            f"Time {step_time:6.3f} ({seconds / steps:6.3f})\t"
            f"Data {data_time:6.3f} ({data_seconds / steps:6.3f})\t"
            f"Loss {values['loss']:.4e} ({means['loss']:.4e})\t"
            f"Mass {values['mass']:.4f} ({means['mass']:.4f})"
        )
        shown = {name: f"{values[name]:.3f}" for name in ("loss", "mass")}
        shown[""] = f"{images_per_second:.0f}/s"
        speed = {"images_per_second": images_per_second, "data_share": data_time / step_time}
        return line, shown, {**values, **speed}

    def means(self) -> dict[str, float]:
        """Over the epoch so far and all processes, of the steps that were not dropped.

        `dropped` is their number. Waits for the device.
        """
        totals = mean_across_ranks_(self.totals.clone(), self.world)
        dropped = totals[DROPPED].clone()
        # Means over the steps that were not dropped.
        totals /= self.steps - dropped
        totals[DROPPED] = dropped
        return by_name(totals)

    def summary(self) -> dict[str, float]:
        """The means over the epoch, and its times."""
        return {**self.means(), "seconds": self.seconds, "data_seconds": self.data_seconds}


def in_hours(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def forecast(seconds: float, epoch_steps: int, steps: int) -> str:
    """When the run is going to end. seconds: of a step.  epoch_steps, steps: left in the epoch and
    in the run.
    """
    end = datetime.now() + timedelta(seconds=seconds * steps)
    return (
        f"a step takes {seconds:.2f} s: {in_hours(seconds * epoch_steps)} to the end of the epoch, "
        f"{in_hours(seconds * steps)} to that of the run ({end:%d %b, %H:%M}), scores aside"
    )


def epoch_line(epoch: dict, before: dict, score: str, total: int, num_pictures: int) -> str:
    """What an epoch has changed, in one line. epoch, before: its record and that of the one before
    it (or none), with the score by its title, and the seconds that are left.  total: epochs.
    """
    parts = []
    for name, form in (("loss", ".3f"), ("mass", ".3f"), (score, ".1f")):
        if epoch.get(name) is not None:
            change = f" ({epoch[name] - before[name]:+{form}})" if before.get(name) else ""
            parts.append(f"{name} {epoch[name]:{form}}{change}")
    speed = num_pictures / max(epoch["seconds"], 1e-9)
    parts += [f"{speed:.0f} images/s", f"{in_hours(epoch['left'])} left"]
    return f"epoch {epoch['epoch'] + 1} of {total}: {', '.join(parts)}"


def by_name(values: torch.Tensor) -> dict[str, float]:
    return dict(zip(Round._fields, values.tolist(), strict=True))
