"""Command-line options: from a frozen dataclass to a parser, and back to the dataclass.

No module of options imports torch or numpy, so that `--help` and a bad flag answer at once.
"""

import argparse
import re
import sys
from dataclasses import field, fields
from os.path import expanduser
from typing import get_args

from ops.errors import EXIT_BAD_INPUT, InputError, one_line

# Intervals of numbers. An infinite one is never allowed.
POSITIVE, AT_LEAST_0, AT_LEAST_1 = "(0, inf)", "[0, inf)", "[1, inf)"
BELOW_1, SHARE = "[0, 1)", "(0, 1]"
NUMBER = re.compile(r"[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)  # of a list


def option(default, help, within="", *, names=(), may_change=False, **keywords):
    """A dataclass field that is also a command-line option.

    within: the interval of allowed numbers, such as "[0, 1)".  names: further spellings.
    may_change: whether a run that goes on may have another value.
    """
    # What the parser and the checks need to know travels with the field.
    known = dict(help=help, within=within, names=names, may_change=may_change, keywords=keywords)
    return field(default=default, metadata=known)


def switch(default, help, **keywords):
    """An option that is 0 or 1."""
    return option(default, help, choices=(0, 1), **keywords)


def argument(help):
    """A dataclass field that the command line gives by its place, without a name."""
    return field(metadata={"help": help, "by_place": True})


def check_intervals(config) -> None:
    """Raise InputError where a number, or one in a list, lies outside its option's interval."""
    for f in fields(config):
        # Of a list every number counts; None is an option that was not given.
        interval, value = f.metadata.get("within"), getattr(config, f.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if interval and not all(n is None or lies_within(n, interval) for n in numbers):
            raise InputError(f"{f.name}={value}: expected a number in {interval}")


def lies_within(number: float, interval: str) -> bool:
    """Whether it lies in an interval such as [0, 1): brackets include the end, parentheses not."""
    # nan lies in no interval.
    low, high = map(float, interval[1:-1].split(","))
    return low < number < high or number in (
        [low] * interval.startswith("[") + [high] * interval.endswith("]")
    )


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
    # The data folder may also come without a name: main_adco.py --sym=1 FOLDER.
    if "data" in {f.name for f in fields(config_type)}:
        parser.add_argument("positional_data", nargs="?", metavar="DATA", help="same as --data")
    for f in fields(config_type):
        if f.metadata.get("by_place"):
            parser.add_argument(f.name, metavar=f.name.upper(), help=f.metadata["help"])
            continue
        # tuple[int, ...] is a list of whole numbers.
        kind = {"type": get_args(f.type)[0], "nargs": "+"} if get_args(f.type) else {"type": f.type}
        keywords = {**kind, **f.metadata["keywords"]}
        default = defaults.get(f.name, f.default)
        parser.add_argument(
            *spellings(f), dest=f.name, default=default, help=f.metadata["help"], **keywords
        )
    return parser


def spellings(f) -> list[str]:
    """Every name of an option, in both spellings: --moco_t and --moco-t."""
    names = [f"--{f.name}", *f.metadata["names"]]
    return list(dict.fromkeys(n for name in names for n in (name, dashed(name))))


def dashed(name: str) -> str:
    return "--" + name[2:].replace("_", "-") if name.startswith("--") else name


def parse(config_type, argv=None, presets=None):
    """Read the command line into a `config_type`.

    presets: {option: {value: defaults that go with it}}, later ones win; what is given on the
    command line wins over all of them.
    Raises InputError for values that cannot work; exits with code 2 for options that do not exist.
    """
    # The options that presets depend on are looked up first: they change the defaults.
    argv = sys.argv[1:] if argv is None else list(argv)
    defaults = preset_defaults(argv, presets or {})
    parser = build_parser(config_type, defaults)
    values = vars(parser.parse_args(data_first(config_type, argv)))
    # The positional folder wins over --data.
    positional = values.pop("positional_data", None)
    if positional is not None:
        values["data"] = positional
    # Shells leave the ~ in --save_path=~/runs.
    for name, value in values.items():
        if isinstance(value, str) and value.startswith("~"):
            values[name] = expanduser(value)
    config = config_type(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})
    check_intervals(config)
    return config


def data_first(config_type, argv: list[str]) -> list[str]:
    """argv with the data folder in front where it ends a list of numbers: --schedule 120 160 DATA.

    The first word of the list that is no number is the folder.
    """
    lists = {
        name
        for f in fields(config_type)
        if get_args(f.type) or "nargs" in f.metadata.get("keywords", ())
        for name in spellings(f)
    }
    in_list = False
    for i, word in enumerate(argv):
        if NUMBER.fullmatch(word):
            continue
        if in_list and not word.startswith("-"):
            return [word, *argv[:i], *argv[i + 1 :]]
        in_list = word in lists
    return argv


def preset_defaults(argv: list[str], presets: dict[str, dict[str, dict]]) -> dict:
    """The defaults that go with what argv says of the options in `presets`."""
    # A parser that knows these options only, and leaves the others alone.
    peek = OneSentenceParser(add_help=False, allow_abbrev=False)
    for name in presets:
        peek.add_argument(f"--{name}")
    given = vars(peek.parse_known_args(argv)[0])
    defaults = {}
    for name, of_value in presets.items():
        defaults |= of_value.get(given[name], {})
    return defaults
