"""What is wrong with a run and what to try: a list of known failures, the gravest first.

What a run warns of while it goes on is asked of pretrain/health.py, and told in its words.
"""

from typing import NamedTuple

import numpy as np

from adco.pretrain.health import BY_RATE
from adco.pretrain.monitor import SCORES
from adco.report.runs import Run

SIGNS = ("cone", "chance", "starved", "win", "still", "one way", "centres")  # of CollapseWatch
TOO_HIGH, TOO_LOW = "learning rate too high", "learning rate too low"
FEWEST = 4  # logged steps from which anything can be told
GRAVEST = ("diverging", TOO_HIGH, TOO_LOW)


class Finding(NamedTuple):
    name: str
    evidence: str  # numbers, from which step on, and what to try


def average(records, name: str) -> float:
    return float(np.mean([np.nan if r.get(name) is None else r[name] for r in records]))


def slowness(run: Run, train: list[dict], loss: float, grad_norm: float) -> str:
    """How it shows that the loss is high for want of a higher rate; empty: it does not. loss,
    grad_norm: means over the last records.
    """
    watch, parts = run.watch(), np.array_split(train, 3)
    if len(train) < 3:
        return ""
    first, middle, last = (average(part, "loss") for part in parts)
    fall, late = first - last, middle - last
    plays = run.options["negatives"] == "learned"
    if plays and loss > watch.lost:
        # A lost game: an encoder that could fall steeply is slow, or else the adversaries are fast.
        columns, pictures = (look.get("turned_a_step") for look in last_looks(run))
        steep = grad_norm > 0.8 * average(parts[0], "grad_norm")
        slow = steep and columns is not None and columns < 2 * (pictures or 0)
        course = f"the loss is {loss:.3f} (that of guessing is {watch.guess:.3f}), its gradient"
        return f"{course} as steep as at first ({grad_norm:.2g})" if slow else ""
    falls = late > max(0.45 * fall, 0.05 * first) and fall > 0
    # Against adversaries a loss may stand still, or rise, in a healthy game.
    stands = abs(fall) < 0.02 * first and not plays
    course = f"the loss is {loss:.3f} (chance {watch.chance:.3f}), in thirds of the steps looked at"
    slow = (falls or stands) and loss > 0.6 * watch.chance
    return f"{course} {first:.3f}, {middle:.3f} and {last:.3f}" if slow else ""


def last_looks(run: Run) -> list[dict]:
    """At the adversaries, and at fixed pictures (monitor.Look)."""
    return [run.records.get(kind, [{}])[-1] for kind in ("adversaries", "embedding")]


def failures(run: Run, train: list[dict], tail: list[dict]) -> dict[str, str]:
    """Known failures by their name: what is wrong, and what to try. tail: the train records to
    look at.
    """
    o, epochs = run.options, run.records.get("epoch", [])
    loss, spread, grad_norm = (average(tail, name) for name in ("loss", "spread", "grad_norm"))
    dropped = sum(r.get("dropped") or 0 for r in epochs or train)
    seconds, waited = (sum(r.get(n) or 0 for r in epochs) for n in ("seconds", "data_seconds"))
    waiting = waited / seconds if seconds else average(tail, "data_share")
    # The loss jumps where adversaries begin late.
    if o.get("adversaries_from"):
        train = [r for r in train if r.get("mass") is not None and r["mass"] < 1] or train
    course, adversaries = slowness(run, train, loss, grad_norm), last_looks(run)[0]
    twins = adversaries.get("twins") or 0
    K = o["cluster"] * (o["negatives"] == "learned")
    pictures = (run.about.get("data") or {}).get("train", {}).get("pictures", 0)
    curves = [[v for _, v in run.curve(kind, name)] for kind, (name, *_) in SCORES.items()]
    scores = max(curves, key=len) or [0.0]
    half = len(scores) // 2
    gain, late_gain = scores[-1] - scores[0], max(scores[half:]) - max(scores[:half] or [0.0])
    known = {
        "diverging": (dropped > 0 or loss != loss,
            f"{dropped:.0f} steps were not finite. {BY_RATE}"),
        TOO_HIGH: (spread < 0.01 and grad_norm < 0.02,
            f"all features are one point (spread {spread:.4f}) without a gradient "
            f"({grad_norm:.2g}), with --lr {o['lr']:g}. {BY_RATE}"),
        TOO_LOW: (spread > 0.01 and course, f"{course}, with --lr {o['lr']:g}. Raise --lr, "
            "threefold at a time, or train for more epochs"),
        "waiting for pictures": (waiting > 0.3,
            f"{waiting:.0%} of the time (curve: waiting for pictures). "
            "More --workers, smaller files, or packed ones (python3 -m adco.pack)"),
        "too few pictures for K": (K > pictures > 0, f"{K} adversaries for {pictures} pictures. "
            "Lower --cluster, to a sixteenth of the pictures as --recipe auto does"),
        "the adversaries are twins": (twins > 0.5 and (adversaries.get("cosine") or 0) < 0.9,
            f"{twins:.0%} of them lie within a cosine of 0.95 of another, so fewer would do as "
            "well. Lower --memory_lr, or --cluster"),
        "plateau": (len(scores) > 7 and late_gain < 0.3 and gain > 0,
            f"the best score of the second half is {late_gain:+.2f} over that of the first. Fewer "
            "epochs are enough, or the rate falls too early (--cos 1); stronger views or a larger "
            "--arch may give more"),
    }  # fmt: skip
    return {name: text for name, (is_so, text) in known.items() if is_so}


def diagnose(run: Run) -> list[Finding]:
    """What is wrong, the gravest first; nothing where nothing is known to be, or too few steps are
    done to tell.
    """
    train, warned = run.records.get("train", []), run.records.get("warning", [])
    if len(train) < FEWEST:
        ends = [r for r in warned if r["text"].startswith("diverged: ")]
        return [Finding("diverging", f"at step {r['step']}: {r['text']}") for r in ends]
    tail = train[-max(3, len(train) // 4) :]  # means over the last quarter
    found, step, last = failures(run, train, tail), tail[0]["step"], tail[-1]["step"]
    # As if each sign had lasted since that step.
    watch = run.watch({"since": dict.fromkeys(SIGNS, step), "told": []}, last - step)
    adversaries, embedding = last_looks(run)
    means = (average(tail, name) for name in ("loss", "mass", "spread"))
    plays = run.options["negatives"] == "learned"
    warned = watch.read(last, *means, plays) if TOO_HIGH not in found else []
    pairs = (
        text.partition(": ")[::2] for text in warned + watch.read_look(last, embedding, adversaries)
    )
    told = {name: text for name, text in pairs if not (TOO_LOW in found and " win" in name)}
    whole = {name: found[name] for name in GRAVEST if name in found} | told | found
    return [Finding(name, f"from step {step} on {text}") for name, text in whole.items()]
