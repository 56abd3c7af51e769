"""python3 -m adco.report RUN...     RUN: a run folder, or one above it; several are compared"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from adco.report.diagnosis import diagnose
from adco.report.drawing import write_figures
from adco.report.pages import compare, report_one
from adco.report.runs import Run, runs_below
from ops.arguments import argument, command, option
from ops.checkpoint import LAST
from ops.errors import InputError


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
    found = [run for folder in folders for run in runs_below(folder)]
    runs = list({run.folder.resolve(): run for run in found}.values())
    alone = len(runs) == 1
    folder = runs[0].folder if alone else above(folders)
    page, figures = folder / ("report.html" if alone else "compare.html"), folder / "figures"
    wanted, fault = config.format != "html", ""
    if not os.access(folder, os.W_OK):
        fault = "it cannot be written; copy the run to another place"
    elif page.is_dir() or (wanted and figures.is_file()):
        fault = f"something else has the name {page.name if page.is_dir() else figures.name}"
    if fault:
        raise InputError(f"expected a place for {page.name} in {str(folder)!r}: {fault}")
    if alone:
        drawn, result = report_one(runs[0], config.data)
    else:
        drawn = compare(runs, folder, config.data)
    if wanted:
        write_figures(drawn, figures, config.format)
    print(table(runs[0], result) if alone else page)


def above(folders: list[Path]) -> Path:
    """Where the page of several runs lies: in the first folder where it holds all, or beside it."""
    first, *others = (folder.resolve() for folder in folders)
    return first if all(first in (path, *path.parents) for path in others) else first.parent


main = command("adco.report", ReportConfig, report_run)


if __name__ == "__main__":
    sys.exit(main())
