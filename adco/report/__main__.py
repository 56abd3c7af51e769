"""python3 -m adco.report RUN...     RUN: a run folder, or one above it; several are compared"""

import sys
from dataclasses import dataclass
from pathlib import Path

from adco.report.diagnosis import diagnose
from adco.report.pages import compare, report_one
from adco.report.runs import Run, runs_below
from ops.arguments import argument, option, parse
from ops.checkpoint import LAST
from ops.errors import reported, steady_streams


@dataclass(frozen=True)
class ReportConfig:
    """Draw a pre-training run: report.html in its folder, and a table. Several: compare.html."""

    runs: tuple[str, ...] = argument("run folder, or one above; several are compared", nargs="+")
    data: str = option("", "folder of the pictures, where it is not the one the run was given")
    format: str = option(
        "html", "the figures as files too, in RUN/figures", choices=("html", "png", "pdf")
    )


def table(run: Run, result: dict[str, str]) -> str:
    """What the run has come to, where it lies, and what is wrong. result: rows of its page."""
    last = run.folder / LAST
    rows = run.scores() | result | ({"checkpoint": last} if last.exists() else {})
    rows |= {"log folder": run.folder, "page": run.folder / "report.html"}
    rows |= {f.name: f.evidence for f in diagnose(run)}
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def report_run(config: ReportConfig) -> None:
    """Write the page of one run and print its table, or compare several."""
    folders = [Path(name) for name in config.runs]
    runs = [run for folder in folders for run in runs_below(folder)]
    if len(runs) > 1:
        print(compare(runs, folders[0] if len(folders) == 1 else folders[0].resolve().parent))
        return
    (drawn, result), files = report_one(runs[0], config.data), runs[0].folder / "figures"
    for name, figure in drawn.items() if config.format != "html" else ():
        files.mkdir(exist_ok=True)
        figure.savefig(files / f"{name}.{config.format}", facecolor="white", dpi=150)
    print(table(runs[0], result))


def main(argv=None, program: str = "adco.report") -> int:
    with reported(program):
        report_run(parse(ReportConfig, argv))
    return 0


if __name__ == "__main__":
    steady_streams()
    sys.exit(main())
