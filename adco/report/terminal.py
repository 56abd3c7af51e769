"""What a run has come to, as lines of a name and a value."""

from adco.pretrain.monitor import SCORES
from adco.report.diagnosis import diagnose
from adco.report.runs import Run
from ops.checkpoint import LAST


def summary(run: Run) -> list[tuple[str, str]]:
    """Epochs, and the first and the last score."""
    epochs = run.records.get("epoch", [])
    rows = [("epochs", f"{len(epochs)} in {sum(r['seconds'] or 0 for r in epochs):.0f} s")]
    for kind, (name, title, unit) in SCORES.items():
        scores = [r for r in run.records.get(kind, []) if r[name] is not None]
        # The score before the first epoch; a run that went on from a checkpoint has none.
        if scores and scores[0]["epoch"] == 0 and scores[0]["step"] == 0:
            begun = "weights of --init" if run.options.get("init") else "random weights"
            rows.append((f"{title}, {begun}", f"{scores[0][name]:.1f}{unit}"))
        if scores and scores[-1]["epoch"]:
            rows.append((f"{title}, pre-trained", f"{scores[-1][name]:.1f}{unit}"))
    return rows


def table(run: Run) -> str:
    """The summary, where everything lies, and what is wrong."""
    rows = [*summary(run), ("checkpoint", str(run.folder / LAST)), ("log folder", str(run.folder))]
    if (run.folder / "report.html").exists():
        rows.append(("page", str(run.folder / "report.html")))
    rows += [(f"! {f.name}", f"{f.evidence}: {f.advice}") for f in diagnose(run)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
