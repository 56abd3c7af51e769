"""What is wrong with a run and what to try: a list of known failures, the gravest first.

The words of collapse and starving are those that the run itself warns in (pretrain/health.py).
"""

from math import exp, log
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from adco.pretrain.health import BY_ADVERSARIES, BY_RATE, STARVED
from adco.report.runs import Run


class Finding(NamedTuple):
    name: str
    evidence: str  # which numbers, at which step
    advice: str


def signs_of(run: Run) -> SimpleNamespace | None:
    """What the tests look at: means over the last quarter of the log lines; None: no step yet."""
    o, train = run.options, run.records.get("train", [])
    if len(train) < 4:
        return None
    tail = train[-max(3, len(train) // 4) :]

    def mean(name: str, of=tail) -> float:
        return float(np.mean([r[name] if r.get(name) is not None else np.nan for r in of]))

    epochs = run.records.get("epoch", [])
    s = SimpleNamespace(step=tail[0]["step"], last=train[-1]["step"], K=o["cluster"], rate=o["lr"])
    s.loss, s.mass, s.spread, s.top1 = (mean(n) for n in ("loss", "mass", "spread", "top1"))
    s.norm, s.chance = mean("grad_norm"), run.chance
    s.plays = o["negatives"] == "learned"
    # The loss where every key and every column is equally near.
    counts = s.K * o.get("mem_weight", 1.0) if o["negatives"] in ("learned", "queue") else 0
    s.equal = s.chance + log(1 + counts / exp(s.chance)) if counts else s.chance
    s.dropped = sum(e["dropped"] or 0 for e in epochs) or sum(r["dropped"] or 0 for r in train)
    s.waiting = sum(e["data_seconds"] or 0 for e in epochs) / max(
        1e-9, sum(e["seconds"] or 0 for e in epochs)
    )
    s.pictures = (run.about.get("data") or {}).get("train", {}).get("pictures", 0)
    norms = [r["bank_norm"] for r in train]
    turned = [
        r["turned"] for r in run.records.get("adversaries", []) if r.get("turned") is not None
    ]
    s.turned = turned[-1] if turned else None
    s.moved = max(norms) / min(norms) - 1 if None not in norms else 1.0
    s.auto = o["memory_lr"] == "auto"
    # How much of the fall of the loss came in the first half, and whether it still falls.
    thirds = [mean("loss", part.tolist()) for part in np.array_split(np.array(train), 3)]
    s.first, s.fall = thirds[0], thirds[0] - thirds[-1]
    s.late = (thirds[1] - thirds[2]) / abs(s.fall) if s.fall else 0.0
    scores = run.curve("knn", "accuracy") or run.curve("rank", "rank")
    s.scores = [value for _, value in scores]
    s.gain = s.scores[-1] - s.scores[0] if s.scores else 0.0
    half = len(s.scores) // 2
    s.late_gain = max(s.scores[half:]) - max(s.scores[:half]) if half > 3 else None
    return s


def collapsed(s) -> bool:
    return s.spread < 0.01 or (s.mass > 0.98 and abs(s.loss - s.chance) < 0.02 * s.chance)


def dead(s) -> bool:
    """Whether all lies in one point, adversaries too, which then do not hold it there."""
    return collapsed(s) and (not s.plays or abs(s.loss - s.equal) < 0.02 * s.equal)


def stands_still(s) -> bool:
    if s.turned is not None:
        return s.turned < 1e-3
    return not s.auto and s.moved < 1e-4


# Name, test, evidence, advice. What is written in braces are signs.
KNOWN = [
    ("diverging", lambda s: s.dropped > 0 or np.isnan(s.loss),
     "{dropped:.0f} steps were not finite, loss {loss:.3g} (curve: dropped)", BY_RATE),
    ("learning rate too high", dead,
     "from step {step} on the queries are one point: spread {spread:.4f}, loss {loss:.3f}, that of "
     "guessing {equal:.3f}, gradient {norm:.2g}", BY_RATE),
    ("collapse", lambda s: collapsed(s) and not dead(s),
     "from step {step} on the features hardly differ: spread {spread:.4f}, loss {loss:.3f} (chance "
     "{chance:.3f})", BY_ADVERSARIES),
    ("adversaries win", lambda s: s.plays and not collapsed(s) and (
        s.mass < 0.01 or (s.loss > s.chance and s.top1 < 0.1)),
     "from step {step} on the keys get {mass:.2%} of the softmax, the own key is the nearest for "
     "{top1:.0%} (curves: mass, top1)", BY_ADVERSARIES),
    ("starved", lambda s: s.plays and not collapsed(s) and s.mass > 0.995,
     "from step {step} on mass is {mass:.3f}", STARVED),
    ("adversaries standing still", lambda s: s.plays and s.mass <= 0.995 and stands_still(s),
     "their length changed by {moved:.2g}, they turned by {turned} radians an epoch",
     "Raise --memory_lr, or take --memory_lr auto"),
    ("learning rate too low", lambda s: not collapsed(s) and s.fall < 0.05 * s.first and s.gain < 2,
     "the loss fell by {fall:.3f} only, to {loss:.3f}, with --lr {rate:g}",
     "Raise --lr, threefold at a time, or train for more epochs"),
    ("waiting for pictures", lambda s: s.waiting > 0.3,
     "{waiting:.0%} of the time (curve: data_share)",
     "More --workers, smaller files, or pack them (python3 -m adco.pack)"),
    ("too few pictures for K", lambda s: s.plays and s.K > s.pictures > 0,
     "{K} adversaries, {pictures} pictures",
     "Lower --cluster, to a sixteenth of the pictures as --recipe auto does"),
    ("plateau", lambda s: s.late_gain is not None and s.late_gain < 0.3 and s.gain > 0,
     "the best score of the second half is {late_gain:+.2f} over that of the first",
     "Fewer epochs are enough here; a slower fall of the rate (--cos 1), stronger views or a larger --arch may give more"),
]  # fmt: skip


def diagnose(run: Run) -> list[Finding]:
    """What is wrong, the gravest first; nothing where nothing is known to be, or no step is done."""
    s = signs_of(run)
    found = [(n, e, a) for n, test, e, a in KNOWN if test(s)] if s else []
    values = vars(s) if s else {}
    advice = {"steps": values.get("last"), "mass": values.get("mass")}
    return [Finding(n, e.format(**values), a.format(**advice)) for n, e, a in found]
