"""What watches over a run: collapse, useless adversaries, dropped steps, broken pictures."""

from contextlib import suppress
from math import inf, log
from pathlib import Path

import torch
from torch import Tensor

MOST_DROPPED = 10  # in a row
STANDS = 0.05  # columns that turn so much more slowly than the pictures stand still
CENTRE = 3  # times the odds of a picture's own class among pictures, among the adversaries
LIST = "bad_pictures.txt"

BY_ADVERSARIES = (
    "Let them begin late or later (--adversaries_from 0.25) or "
    "start them longer (--init_steps, three epochs of steps on a small data set), or slow them "
    "down (--memory_lr lower, --mem_t higher)"
)
BY_RATE = "Take a lower --lr, or --warmup_epochs"
STARVED = (
    "starved adversaries: for {steps} steps the batch's keys took {mass:.1%} of the softmax at "
    "--mem_t, so the columns get next to no gradient. Raise --mem_t, or "
    "lower --memory_lr (the published 3 goes with K = 65536; a column's gradient grows as 1 / K)"
)
WIN = "the adversaries win: the loss {loss:.3f} has come to that of guessing, {guess:.3f}. "
STILL = (
    "the adversaries stand still: they turn {columns:.1e} radians a step, the embeddings of the "
    "pictures {pictures:.1e}. Take --memory_lr auto, or raise --memory_lr or --mem_t"
)
ONE_WAY = "the adversaries have collapsed to one direction: mean cosine {cosine:.2f}. "
CENTRES = (
    "the adversaries become class centres: {same_class:.0%} of what a picture's softmax gives them "
    "goes to its own class, of other pictures it would be {same_class_keys:.0%}. Lower --mem_t"
)


class CollapseWatch:
    """Reads the log and names what fails: collapse, and adversaries that are of no use.

    num_keys: that are summed over: M; of SimCLR 2 M - 1; one less in the decoupled loss, and one
    without the batch's keys.  against: the same and the adversaries, M + K.
    weight: sum of the plan's weights, which the loss is a multiple of.
    patience: steps that a sign has to last without a break. Then there is one warning of it.
    state: of the watch of an interrupted run.
    """

    def __init__(
        self, num_keys: int, against: float, weight: float, patience: int, state: dict | None = None
    ):
        # The loss when all keys are equally near, and when all adversaries are as near as they.
        self.chance, self.guess = log(num_keys) * weight, log(against) * weight
        # From here on the adversaries have won; of few ones that cannot be told from chance.
        self.lost = max(0.99 * self.guess, 1.02 * self.chance)
        self.patience = patience
        # Sign -> step at which it was first seen.
        self.since: dict[str, int] = dict(state["since"]) if state else {}
        self.told: set[str] = set(state["told"]) if state else set()

    @classmethod
    def of(cls, config, num_keys: int, weight: float, patience: int, state: dict | None = None):
        """That of a run with these options and M keys a step."""
        choices = 2 * num_keys - 1 if config.negatives == "simclr" else num_keys
        choices = max(1, choices - config.decoupled) if config.batch_keys else 1
        return cls(choices, choices + config.cluster, weight, patience, state)

    def state(self) -> dict:
        """Plain values, for a checkpoint."""
        return {"since": self.since, "told": sorted(self.told)}

    def read(
        self, step: int, loss: float, mass: float, spread: float, plays: bool = True
    ) -> list[str]:
        """Warnings that are due at this step. The three values are those of the log; plays: whether
        there are adversaries.
        """
        # Features in a cone, the loss of guessing, a softmax that is all keys, one without them.
        advice = BY_ADVERSARIES if plays else BY_RATE
        at_chance = mass > 0.98 and abs(loss - self.chance) < 0.02 * self.chance
        cone = f"collapse: the features hardly differ (spread {spread:.4f}). {advice}"
        chance = f"collapse: the loss {loss:.3f} stays at chance, ln M. {advice}"
        starved = STARVED.format(steps=self.patience, mass=mass)
        win = WIN.format(loss=loss, guess=self.guess) + BY_ADVERSARIES
        signs = {
            "cone": (spread < 0.01, cone),
            "chance": (at_chance, chance),
            "starved": (plays and mass > 0.995 and not at_chance, starved),
            "win": (plays and loss > self.lost, win),
        }
        return self.due(step, signs)

    def read_look(self, step: int, embedding: dict, adversaries: dict | None = None) -> list[str]:
        """Warnings that are due after a look (monitor.Look)."""
        if not adversaries:
            return []
        # What is not there, or was not finite, tells nothing.
        found = {"turned_a_step": inf, "cosine": 0, "same_class": 0, "same_class_keys": 1}
        found |= {name: value for name, value in adversaries.items() if value is not None}
        columns, pictures = found["turned_a_step"], embedding.get("turned_a_step") or 0
        same, same_keys = odds(found["same_class"]), odds(found["same_class_keys"])
        still = STILL.format(columns=columns, pictures=pictures)
        signs = {
            "still": (columns < STANDS * pictures, still),
            "one way": (found["cosine"] > 0.9, ONE_WAY.format(**found) + BY_ADVERSARIES),
            "centres": (same > CENTRE * same_keys, CENTRES.format(**found)),
        }
        return self.due(step, signs)

    def due(self, step: int, signs: dict[str, tuple[bool, str]]) -> list[str]:
        """The texts of the signs that have lasted; each is told once."""
        due = []
        for sign, (present, text) in signs.items():
            first = self.since.setdefault(sign, step)
            if not present:
                del self.since[sign]
            elif step - first >= self.patience and sign not in self.told:
                self.told.add(sign)
                due.append(text)
        return due


def odds(share: float) -> float:
    return share / (1 - share) if share < 1 else inf


class DropStreak:
    """Steps dropped in a row, counted on the device."""

    def __init__(self, device: torch.device):
        self.now = self.longest = torch.zeros((), device=device)

    def count_(self, dropped: Tensor) -> None:
        self.now = (self.now + 1) * dropped
        self.longest = torch.maximum(self.longest, self.now)


class BadPictures:
    """What is known to be broken of `num_pictures`, and how much of it a run bears.

    limit: share of the pictures.  known: name to reason, as a checkpoint kept it.
    """

    def __init__(self, limit: float, num_pictures: int, known=()):
        self.limit, self.num_pictures = limit, num_pictures
        self.known: dict[str, str] = dict(known)

    def add(self, newly_broken: dict[str, str]) -> list[str]:
        """A sentence about each picture that has not been named before, in the order of names."""
        fresh = sorted(newly_broken.keys() - self.known.keys())
        self.known |= {name: newly_broken[name] for name in fresh}
        remedy = "another one stands in for it"
        return [f"broken picture {name}: {self.known[name]}; {remedy}" for name in fresh]

    def complaint(self, folder: Path | None = None) -> str:
        """A sentence when there are more than the limit allows, else nothing.

        With a folder, the list of all that are known goes into bad_pictures.txt there.
        """
        count = len(self.known)
        if count <= self.limit * self.num_pictures:
            return ""
        name, reason = next(iter(self.known.items()))
        where = ""
        if folder is not None:
            with suppress(OSError):  # a full disk must not hide the message
                lines = (f"{name}\t{reason}\n" for name, reason in sorted(self.known.items()))
                (folder / LIST).write_text("".join(lines), encoding="utf-8")
                where = f"; all that are known in {folder / LIST}"
        return (
            f"{count} of {self.num_pictures} pictures are broken, more than --bad_images_max "
            f"{self.limit:g}; first: {name} ({reason}){where}; remove them or raise the limit"
        )
