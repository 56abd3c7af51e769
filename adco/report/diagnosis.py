"""What is wrong with a run and what to try: a list of known failures, the gravest first.

The words for a collapse and for starving are those of the run's own warnings (pretrain/health.py).
"""

from math import exp, log, nan
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from adco.pretrain.health import BY_ADVERSARIES, BY_RATE, STARVED
from adco.report.runs import SCORES, Run


class Finding(NamedTuple):
    name: str
    evidence: str  # numbers, and from which step on
    advice: str


def signs_of(run: Run) -> SimpleNamespace | None:
    """What the tests look at: means over the last quarter of the log lines; None: too few lines."""
    o, train, epochs = run.options, run.records.get("train", []), run.records.get("epoch", [])
    if len(train) < 4:
        return None

    def mean(name: str, of=train[-max(3, len(train) // 4) :]) -> float:
        return float(np.mean([nan if r.get(name) is None else r[name] for r in of]))

    s = SimpleNamespace(step=train[-max(3, len(train) // 4)]["step"], steps=train[-1]["step"])
    s.loss, s.mass, s.spread, s.top1, s.norm = map(
        mean, ("loss", "mass", "spread", "top1", "grad_norm")
    )
    s.dropped = sum(r["dropped"] or 0 for r in epochs or train)
    seconds, waited = (sum(r[n] or 0 for r in epochs) for n in ("seconds", "data_seconds"))
    s.waiting = waited / seconds if epochs else mean("data_share")
    # The loss of guessing, among the keys and among all; and how its fall is spread over time.
    s.chance, s.rate, s.K, s.plays = run.chance, o["lr"], o["cluster"], o["negatives"] == "learned"
    thirds = [mean("loss", list(part)) for part in np.array_split(train, 3)]
    s.first, s.fall, s.late = thirds[0], thirds[0] - thirds[2], thirds[1] - thirds[2]
    s.collapsed = s.spread < 0.01 or (s.mass > 0.98 and abs(s.loss / s.chance - 1) < 0.02)
    # How far the adversaries moved: in an epoch, or as far as their length tells.
    turned = [value for _, value in run.curve("adversaries", "turned")]
    norms = [value for _, value in run.curve("train", "bank_norm")]
    s.moved = turned[-1] if turned else max(norms) / min(norms) - 1
    s.still = s.moved < 1e-3 if turned else s.moved < 1e-4 and o["memory_lr"] != "auto"
    s.pictures = (run.about.get("data") or {}).get("train", {}).get("pictures", 0)
    scores = [[v for _, v in run.curve(kind, name)] for kind, (name, *_) in SCORES.items()]
    scores = max(scores, key=len) or [0.0]
    half = len(scores) // 2
    s.gain, s.scores = scores[-1] - scores[0], len(scores)
    s.late_gain = max(scores[half:]) - max(scores[:half] or [0.0])
    return s


# Name, test, evidence, advice. What is in braces are signs.
KNOWN = [
    ("diverging", lambda s: s.dropped > 0 or s.loss != s.loss,
     "{dropped:.0f} steps were not finite", BY_RATE),
    ("learning rate too high", lambda s: s.collapsed and s.norm < 0.02,
     "all features are one point (spread {spread:.4f}), which has no gradient left ({norm:.2g}), "
     "with --lr {rate:g}", BY_RATE),
    ("collapse", lambda s: s.collapsed and s.norm >= 0.02,
     "the features hardly differ: spread {spread:.4f}, loss {loss:.3f} (chance {chance:.3f})",
     BY_ADVERSARIES),
    ("learning rate too low", lambda s: not s.collapsed and s.loss > 0.6 * s.chance and (
        s.late > max(0.6 * s.fall, 0.05 * s.first) or abs(s.fall) < 0.02 * s.first),
     "the loss is still at {loss:.3f} (chance {chance:.3f}), of its fall of {fall:.3f} the last "
     "third of the steps brought {late:.3f}, with --lr {rate:g}",
     "Raise --lr, threefold at a time, or train for more epochs"),
    ("adversaries win", lambda s: s.plays and not s.collapsed and (
        s.mass < 0.01 or s.top1 < 0.1 and s.loss > s.chance),
     "mass is {mass:.4f}, and for {top1:.0%} of the queries the own key is the nearest",
     BY_ADVERSARIES),
    ("starved", lambda s: s.plays and not s.collapsed and s.mass > 0.995,
     "mass is {mass:.4f}", STARVED),
    ("adversaries standing still", lambda s: s.plays and s.mass <= 0.995 and s.still,
     "they moved by {moved:.1g}", "Raise --memory_lr, or take --memory_lr auto"),
    ("waiting for pictures", lambda s: s.waiting > 0.3, "{waiting:.0%} of the time is waiting",
     "More --workers, smaller files, or packed ones (python3 -m adco.pack)"),
    ("too few pictures for K", lambda s: s.plays and s.K > s.pictures > 0,
     "{K} adversaries, {pictures} pictures",
     "Lower --cluster, to a sixteenth of the pictures as --recipe auto does"),
    ("plateau", lambda s: s.scores > 7 and s.late_gain < 0.3 and s.gain > 0,
     "the best score of the second half is {late_gain:+.2f} over that of the first",
     "Fewer epochs are enough, or the rate falls too early (--cos 1); stronger views or a larger "
     "--arch may give more"),
]  # fmt: skip


def diagnose(run: Run) -> list[Finding]:
    """What is wrong, the gravest first; nothing where nothing is known to be."""
    s = signs_of(run)
    found = [known for known in KNOWN if known[1](s)] if s else []
    return [
        Finding(
            name, f"from step {s.step} on " + evidence.format(**vars(s)), advice.format(**vars(s))
        )
        for name, _, evidence, advice in found
    ]
