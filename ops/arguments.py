"""Command-line options: from a frozen dataclass to a parser, and back to the dataclass.

No module of options imports torch or numpy, so that `--help` and a bad flag answer at once.
"""

import argparse
import sys
from dataclasses import field, fields

from ops.errors import EXIT_BAD_INPUT, InputError, one_line

SWITCH = {"choices": (0, 1)}


def option(default, help, *, names=(), **keywords):
    """A dataclass field that is also a command-line option; `names` are further spellings."""
    return field(default=default, metadata={"help": help, "names": names, "keywords": keywords})


def argument(help):
    """A dataclass field that the command line gives by its place, without a name."""
    return field(metadata={"help": help, "by_place": True})


def at_least(config, least, *names):
    for name in names:
        if not getattr(config, name) >= least:
            raise InputError(f"{name}={getattr(config, name)}: expected {least} or more")


def above_zero(config, *names):
    for name in names:
        if not 0 < getattr(config, name) < float("inf"):
            raise InputError(f"{name}={getattr(config, name)}: expected a number above 0")


class OneSentenceParser(argparse.ArgumentParser):
    def error(self, message):
        message = one_line(f"{self.prog}: error: {message} (--help lists the options)")
        self.exit(EXIT_BAD_INPUT, message + "\n")


def build_parser(config_type, defaults: dict) -> argparse.ArgumentParser:
    parser = OneSentenceParser(
        description=config_type.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    if "data" in {f.name for f in fields(config_type)}:
        parser.add_argument("positional_data", nargs="?", metavar="DATA", help="same as --data")
    for f in fields(config_type):
        if f.metadata.get("by_place"):
            parser.add_argument(f.name, metavar=f.name.upper(), help=f.metadata["help"])
            continue
        names = [f"--{f.name}", *f.metadata["names"]]
        both_spellings = dict.fromkeys(n for name in names for n in (name, dashed(name)))
        keywords = {"type": f.type, **f.metadata["keywords"]}
        default = defaults.get(f.name, f.default)
        parser.add_argument(
            *both_spellings, dest=f.name, default=default, help=f.metadata["help"], **keywords
        )
    return parser


def dashed(name: str) -> str:
    return "--" + name[2:].replace("_", "-") if name.startswith("--") else name


def parse(config_type, argv=None, presets=None):
    """Read the command line into a `config_type`.

    presets: {option: {value: defaults that go with it}}, later ones win; what is given on the
    command line wins over all of them.
    Raises InputError for values that cannot work; exits with code 2 for options that do not exist.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    defaults = preset_defaults(argv, presets or {})
    values = vars(build_parser(config_type, defaults).parse_args(argv))
    positional = values.pop("positional_data", None)
    if positional is not None:
        values["data"] = positional
    return config_type(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def preset_defaults(argv: list[str], presets: dict[str, dict[str, dict]]) -> dict:
    """The defaults that go with what argv says of the options in `presets`."""
    peek = OneSentenceParser(add_help=False, allow_abbrev=False)
    for name in presets:
        peek.add_argument(f"--{name}")
    given = vars(peek.parse_known_args(argv)[0])
    defaults = {}
    for name, of_value in presets.items():
        defaults |= of_value.get(given[name], {})
    return defaults
