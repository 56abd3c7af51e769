"""python3 -m adco.report RUN...     RUN: a run folder, or one above it"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from adco.report.compare import compare
from adco.report.one import report_one
from adco.report.runs import newest_run, read_run, runs_below
from adco.report.terminal import table
from ops.arguments import argument, option, parse
from ops.errors import reported, steady_streams

FORMATS = ("html", "png", "pdf")


@dataclass(frozen=True)
class ReportConfig:
    """Draw a pre-training run: report.html in its folder, and a table. Several: compare.html."""

    runs: tuple[str, ...] = argument("run folder, or one above; several are compared", nargs="+")
    data: str = option("", "folder of the pictures, where it is not the one the run was given")
    format: str = option("html", "the figures as files too, in RUN/figures", choices=FORMATS)


def report_run(config: ReportConfig) -> None:
    """Write the page of one run and print its table, or compare several."""
    folders = [Path(name) for name in config.runs]
    several = len(folders) > 1
    runs = [run for folder in folders for run in (runs_below(folder) or [newest_run(folder)])]
    if several or len(runs) > 1:
        return compare(
            [read_run(run) for run in runs], folders[0].parent if several else folders[0]
        )
    run = read_run(runs[0])
    drawn = report_one(run, config.data)
    if config.format != "html":
        (run.folder / "figures").mkdir(exist_ok=True)
        for name, figure in drawn.items():
            figure.savefig(
                run.folder / f"figures/{name}.{config.format}", facecolor="white", dpi=150
            )
    print(table(run))


def main(argv=None, program: str = "adco.report") -> int:
    with reported(program):
        report_run(parse(ReportConfig, argv))
    return 0


if __name__ == "__main__":
    steady_streams()
    if hasattr(os, "nice"):  # whatever else goes on comes first
        os.nice(10)
    sys.exit(main())
