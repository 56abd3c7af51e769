"""Command-line options: from a frozen dataclass to a parser, and back to the dataclass.

No module of options imports torch or numpy, so that `--help` and a bad flag answer at once.
"""

import argparse
import json
import re
import sys
from argparse import SUPPRESS
from argparse import ArgumentDefaultsHelpFormatter as DefaultsShown
from dataclasses import field, fields
from difflib import get_close_matches
from os.path import expanduser
from pathlib import Path
from typing import get_args

from ops.errors import EXIT_BAD_INPUT, InputError, one_line, reported, some, steady_streams

# Intervals of numbers. An infinite one is never allowed.
POSITIVE, AT_LEAST_0, AT_LEAST_1 = "(0, inf)", "[0, inf)", "[1, inf)"
BELOW_1, SHARE = "[0, 1)", "(0, 1]"
LISTS = ((int, ...), (float, ...))  # what a tuple of numbers holds
NUMBER = re.compile(r"[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)  # of a list


def option(default, help, within="", *, names=(), may_change=False, **keywords):
    """A dataclass field that is also a command-line option.

    within: the interval of allowed numbers, such as "[0, 1)".  names: further spellings.
    may_change: whether a run that goes on may have another value.
    """
    # What the parser and the checks need to know travels with the field.
    known = dict(help=help, within=within, names=names, keywords=keywords)
    return field(default=default, metadata={**known, "may_change": may_change})


def free(default, help, within="", **keywords):
    """An option of which a run that goes on may have another value."""
    return option(default, help, within, may_change=True, **keywords)


def switch(default, help, **keywords):
    """An option that is 0 or 1."""
    return option(default, help, choices=(0, 1), **keywords)


def argument(help, **keywords):
    """A dataclass field that the command line gives by its place, without a name."""
    return field(metadata={"help": help, "by_place": True, "names": (), "keywords": keywords})


def check_intervals(config) -> None:
    """Raise InputError where a number, or one in a list, lies outside its option's interval."""
    for f in fields(config):
        # Of a list every number counts; None and auto are no numbers yet.
        interval, value = f.metadata.get("within"), getattr(config, f.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if interval and not all(n in (None, "auto") or lies_within(n, interval) for n in numbers):
            raise InputError(f"{f.name}={value}: expected a number in {interval}")


def lies_within(number: float, interval: str) -> bool:
    """Whether it lies in an interval such as [0, 1): brackets include the end, parentheses not."""
    # nan lies in no interval.
    low, high = map(float, interval[1:-1].split(","))
    ends = [low] * interval.startswith("[") + [high] * interval.endswith("]")
    return low < number < high or number in ends


class OneSentenceParser(argparse.ArgumentParser):
    source = ""  # the file that the words come from, for a message

    def __init__(self, **keywords):
        super().__init__(add_help=False, allow_abbrev=False, argument_default=SUPPRESS, **keywords)

    def error(self, message):
        message = one_line(f"{self.prog}: error: {self.source}{message}")
        self.exit(EXIT_BAD_INPUT, f"{message} (--help lists the options)\n")

    def parse_all(self, argv: list[str], config_type) -> dict:
        """The values of all words. A wrong option is told with the right one that is nearest."""
        values, unknown = self.parse_known_args(argv)
        if unknown:
            known = [name for f in fields(config_type) for name in spellings(f)]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{nearest(unknown, known)}")
        return vars(values)


def nearest(words: list[str], known: list[str]) -> str:
    """What was meant, for a message: the nearest known name of the first word that has one."""
    found = [name for word in words for name in get_close_matches(word.split("=")[0], known, n=1)]
    return f"; did you mean {found[0]}?" if found else ""


def build_parser(config_type, defaults: dict, show_all: bool = True) -> OneSentenceParser:
    """The parser of all options; one that is missing in `defaults` has its field's default.

    A run's config_type names the options that most people need in FIRST, which are shown alone
    without show_all, and in GROUPS the first option below each further heading of the help.
    """
    options, first = fields(config_type), getattr(config_type, "FIRST", ())
    parser = OneSentenceParser(description=config_type.__doc__, formatter_class=DefaultsShown)
    parser.usage = "%(prog)s [DATA] [--OPTION VALUE ...]" if first else None
    needed = group = parser.add_argument_group("what most people need") if first else parser
    groups = {}
    for f in options:
        if heading := first and config_type.GROUPS.get(f.name):
            group = groups[heading] = groups.get(heading) or parser.add_argument_group(heading)
        if first and f.name == "data":
            # The data folder may also come without a name: main_adco.py --sym=1 FOLDER.
            several = "*" if "nargs" in f.metadata["keywords"] else "?"
            same = dict(metavar="DATA", help="same as --data", type=expanduser)
            parser.add_argument("positional_data", nargs=several, **same)
        # tuple[int, ...] is a list of whole numbers. Shells leave the ~ in --save_path=~/runs.
        kind, *more = get_args(f.type) or (f.type,)
        keywords = {"type": expanduser if kind is str else kind, "nargs": "+" if more else None}
        keywords |= {**f.metadata["keywords"], "default": defaults.get(f.name, f.default)}
        if f.metadata.get("by_place"):
            keywords["metavar"] = f.name.upper()
        shown = show_all or not first or f.name in first
        keywords["help"] = f.metadata["help"] if shown else SUPPRESS
        target = needed if f.name in first else group
        target.add_argument(*spellings(f), **keywords)  # its attribute is the first one's name
    if first:
        needed.add_argument("--config", metavar="FILE", help="a run's config.json; options win")
    more = f"--help all: all {len(options)} options" if first else "show the options"
    needed.add_argument("-h", "--help", nargs="?", metavar="all", help=more)
    return parser


def spellings(f) -> list[str]:
    """Every name of an option, in both spellings: --moco_t and --moco-t."""
    if f.metadata.get("by_place"):
        return [f.name]
    names = [f"--{f.name}", *f.metadata["names"]]
    return list(dict.fromkeys(n for name in names for n in (name, name.replace("_", "-"))))


def parse(config_type, argv=None, presets=None):
    """Read the command line into a `config_type`.

    presets: {option: {value: defaults that go with it}}, later ones win. A --config FILE wins over
    all of them, and what is given on the command line over both.
    Raises InputError for values that cannot work; exits with code 2 for options that do not exist.
    """
    argv = data_first(config_type, sys.argv[1:] if argv is None else list(argv))
    # What decides the defaults is looked up first, by a parser that leaves the rest alone.
    peek = OneSentenceParser()
    presets = presets or {}
    for name in (*presets, "config"):
        peek.add_argument(f"--{name}")
    peek.add_argument("-h", "--help", nargs="?")
    asked = vars(peek.parse_known_args(argv)[0])
    defaults = asked
    if "config" in asked:
        defaults = read_config(config_type, asked["config"], argv, presets) | asked
    # The last one first: it wins, and it may decide one before it.
    for name, of_value in reversed(presets.items()):
        defaults = of_value.get(defaults.get(name), {}) | defaults

    parser = build_parser(config_type, defaults, asked.get("help") == "all")
    if "help" in asked:
        parser.print_help()
        parser.exit()
    values = parser.parse_all(argv, config_type)
    values.pop("config", None)
    # The positional folder wins over --data. One folder is no list.
    data = values.pop("positional_data", values.get("data"))
    if data is not None:
        values["data"] = data[0] if isinstance(data, list) and len(data) == 1 else data
    config = config_type(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})
    check_intervals(config)
    return config


def command(name: str, config_type, do, presets=None):
    """The main of a script: do(config) of its command line, with errors in one sentence, which
    begins with the name, or with that of the installed command.
    """

    def main(argv=None, program: str = name) -> int:
        if argv is None:  # the process is the script's own
            steady_streams()
            typed = Path(sys.argv[0])
            program = name if typed.suffix == ".py" else typed.stem
        with reported(program):
            return do(parse(config_type, argv, presets)) or 0

    return main


def read_config(config_type, path: str, argv: list[str], presets) -> dict:
    """The options in a run's config.json, checked as if they were typed; without those that follow
    from what argv gives (config_type.FOLLOWS: option to the options that decide it) and, where that
    gives a recipe, without what the run's own has chosen.
    """
    try:
        file = json.loads(Path(expanduser(path)).read_text())
        content = {**file["config"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds no 'config'"
        raise InputError(f"config={path!r}: expected the config.json of a run; {why}") from error
    by_name = {f.name: f for f in fields(config_type)}
    if unknown := [name for name in content if name not in by_name]:
        meant = nearest(unknown, list(by_name)) if len(unknown) == 1 else ""
        raise InputError(f"config={path!r} holds what is no option here: {some(unknown)}{meant}")
    # A run that says nothing of what a preset goes by is older, and had its default.
    if "command" in file:
        content = {n: by_name[n].default for n in presets} | content
    # Through the parser, as words. null is an option that was not given.
    words = []
    for name, value in content.items():
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words.append(f"--{name}={value}")
    parser = build_parser(config_type, dict.fromkeys(by_name, SUPPRESS))
    given = set(parser.parse_all(argv, config_type))
    parser.source = f"{path}: "
    found = dict.fromkeys(content) | parser.parse_all(words, config_type)
    follows = {n: ("recipe",) for n in by_name if f"recipe: --{n} " in str(file.get("recipe"))}
    follows |= getattr(config_type, "FOLLOWS", {})
    return {n: value for n, value in found.items() if given.isdisjoint(follows.get(n, ()))}


def data_first(config_type, argv: list[str]) -> list[str]:
    """argv with the data folder in front where it ends a list of numbers: --schedule 120 160 DATA.

    The first word of the list that is no number is the folder.
    """
    options = [f for f in fields(config_type) if f.name != "data"]
    lists = [f for f in options if get_args(f.type) in LISTS or "nargs" in f.metadata["keywords"]]
    names = {name for f in lists for name in spellings(f)}
    in_list = False
    for i, word in enumerate(argv):
        if NUMBER.fullmatch(word):
            continue
        if in_list and not word.startswith("-"):
            return [word, *argv[:i], *argv[i + 1 :]]
        in_list = word in names
    return argv
