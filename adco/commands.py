"""The installed commands: adco-pretrain is main_adco.py, adco-probe is lincls.py, and so on.

What a command needs is imported by the command.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ops.errors import steady_streams
from ops.signals import end_by_requests

# Before the names of what lies beside adco/ in the repository: "adco." where it is installed.
BESIDE = steady_streams.__module__.removesuffix("ops.errors")


def command(home: str, *begin: Callable) -> Callable[[], int]:
    """The main of a script, with streams that never fail. Its errors name what was typed."""

    def run() -> int:
        main = import_module(home).main
        for prepare in (steady_streams, *begin):
            prepare()
        return main(program=Path(sys.argv[0]).stem)

    return run


pretrain = command(f"{BESIDE}main_adco", end_by_requests)
probe = command(f"{BESIDE}lincls")
voc = command(f"{BESIDE}VOC_CLF.main")
export, embed, report = map(command, ("adco.export", "adco.embed", "adco.report.__main__"))
