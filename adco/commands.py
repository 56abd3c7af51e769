"""The installed commands: adco-pretrain is main_adco.py, adco-probe is lincls.py, and so on.

What a command needs is imported by the command.
"""

import sys
from pathlib import Path

from ops.errors import steady_streams
from ops.signals import end_by_requests


def pretrain() -> int:
    from main_adco import main

    end_by_requests()
    return begin(main)


def probe() -> int:
    from lincls import main

    return begin(main)


def voc() -> int:
    from VOC_CLF.main import main

    return begin(main)


def export() -> int:
    from adco.export import main

    return begin(main)


def embed() -> int:
    from adco.embed import main

    return begin(main)


def report() -> int:
    from adco.report import main

    return begin(main)


def begin(main) -> int:
    """Run a script's main. Its errors name the command that was typed."""
    steady_streams()
    return main(program=Path(sys.argv[0]).stem)
