"""What is wrong with a run and what to try: a list of known failures, the gravest first.

What a run warns of while it goes on is asked of pretrain/health.py, and told in its words.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from adco.pretrain.health import BY_RATE
from adco.pretrain.monitor import SCORES
from adco.report.runs import Run

SIGNS = ("cone", "chance", "starved", "win", "still", "one way", "centres")  # of CollapseWatch
# Name, test, what is wrong, what to try. What is in braces are signs.
KNOWN = [
    ("diverging", lambda s: s.dropped > 0 or s.loss != s.loss,
     "{dropped:.0f} steps were not finite", BY_RATE),
    ("learning rate too high", lambda s: s.dead,
     "all features are one point (spread {spread:.4f}) without a gradient ({grad_norm:.2g}), with "
     "--lr {rate:g}", BY_RATE),
    ("learning rate too low", lambda s: s.low,
     "the loss is still at {loss:.3f} (chance {chance:.3f}), the last third of the steps brought "
     "{late:.3f} of its fall of {fall:.3f}, with --lr {rate:g}",
     "Raise --lr, threefold at a time, or train for more epochs"),
    ("waiting for pictures", lambda s: s.waiting > 0.3,
     "{waiting:.0%} of the time (curve: waiting for pictures)",
     "More --workers, smaller files, or packed ones (python3 -m adco.pack)"),
    ("too few pictures for K", lambda s: s.K > s.pictures > 0,
     "{K} adversaries for {pictures} pictures",
     "Lower --cluster, to a sixteenth of the pictures as --recipe auto does"),
    ("plateau", lambda s: s.scores > 7 and s.late_gain < 0.3 and s.gain > 0,
     "the best score of the second half is {late_gain:+.2f} over that of the first",
     "Fewer epochs are enough, or the rate falls too early (--cos 1); stronger views or a larger "
     "--arch may give more"),
]  # fmt: skip


class Finding(NamedTuple):
    name: str
    evidence: str  # numbers, from which step on, and what to try


def signs_of(run: Run, train: list[dict]) -> SimpleNamespace:
    """What the tests look at: of train records, means over the last quarter."""
    o, epochs, tail = run.options, run.records.get("epoch", []), train[-max(3, len(train) // 4) :]
    names = ("loss", "mass", "spread", "top1", "grad_norm", "data_share")

    def mean(name: str, of: list[dict]) -> float:
        return float(np.mean([np.nan if r.get(name) is None else r[name] for r in of]))

    s = SimpleNamespace(**{name: mean(name, tail) for name in names}, rate=o["lr"])
    s.step, s.last, s.plays = tail[0]["step"], tail[-1]["step"], o["negatives"] == "learned"
    s.chance = run.watch().chance
    s.dropped = sum(r["dropped"] or 0 for r in epochs or train)
    seconds, waited = (sum(r[n] or 0 for r in epochs) for n in ("seconds", "data_seconds"))
    s.waiting = waited / seconds if seconds else s.data_share
    s.dead = s.spread < 0.01 and s.grad_norm < 0.02
    # How the fall of the loss is spread over time.
    first, middle, last = (mean("loss", list(part)) for part in np.array_split(train, 3))
    s.fall, s.late = first - last, middle - last
    slow = s.late > max(0.45 * s.fall, 0.05 * first) or abs(s.fall) < 0.02 * first
    s.low = s.spread > 0.01 and s.loss > 0.6 * s.chance and slow and s.fall > -0.02 * first
    s.K = o["cluster"] * s.plays
    s.pictures = (run.about.get("data") or {}).get("train", {}).get("pictures", 0)
    found = [[v for _, v in run.curve(kind, name)] for kind, (name, *_) in SCORES.items()]
    scores = max(found, key=len) or [0.0]
    s.scores, half = len(scores), len(scores) // 2
    s.gain, s.late_gain = scores[-1] - scores[0], max(scores[half:]) - max(scores[:half] or [0.0])
    return s


def diagnose(run: Run) -> list[Finding]:
    """What is wrong, the gravest first; nothing where nothing is known to be, or too few steps are
    done to tell.
    """
    train, warned = run.records.get("train", []), run.records.get("warning", [])
    if len(train) < 4:
        ends = [r for r in warned if r["text"].startswith("diverged: ")]
        return [Finding("diverging", f"at step {r['step']}: {r['text']}") for r in ends]
    s = signs_of(run, train)
    found = {n: f"{text}. {advice}".format(**vars(s)) for n, test, text, advice in KNOWN if test(s)}
    # As if each sign had lasted since that step.
    watch = run.watch({"since": dict.fromkeys(SIGNS, s.step), "told": []}, s.last - s.step)
    looks = [run.records.get(kind, [None])[-1] for kind in ("embedding", "adversaries")]
    warned = watch.read(s.last, s.loss, s.mass, s.spread, s.plays) if not s.dead else []
    pairs = (text.partition(": ")[::2] for text in warned + watch.read_look(s.last, *looks))
    told = {name: text for name, text in pairs if not (s.low and " win" in name)}
    grave = {name: found[name] for name, *_ in KNOWN[:3] if name in found}
    whole = grave | told | found
    return [Finding(name, f"from step {s.step} on {text}") for name, text in whole.items()]
