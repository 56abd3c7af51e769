"""The machinery of options: from a frozen dataclass to a parser, and back to the dataclass.

None of the modules of options imports torch or numpy, so that `--help` and a bad flag answer
immediately.
"""

import argparse
import sys
from dataclasses import field, fields

from ops.errors import EXIT_BAD_INPUT, InputError, shown

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
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {message} (--help lists the options)\n")


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

    presets: data set -> defaults of its own, and "option=value" -> defaults that go with it (later
    ones win); what is given on the command line wins over both.
    Raises InputError for values that cannot work; exits with code 2 for options that do not exist.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    defaults = preset_defaults(argv, presets or {})
    values = vars(build_parser(config_type, defaults).parse_args(argv))
    positional = values.pop("positional_data", None)
    if positional is not None:
        values["data"] = positional
    return from_dict(config_type, values)


def preset_defaults(argv: list[str], presets: dict) -> dict:
    conditions = {key: key if "=" in key else f"dataset={key}" for key in presets}
    peek = OneSentenceParser(add_help=False, allow_abbrev=False)
    for name in dict.fromkeys(condition.split("=")[0] for condition in conditions.values()):
        peek.add_argument(f"--{name}")
    given = {f"{name}={value}" for name, value in vars(peek.parse_known_args(argv)[0]).items()}
    chosen = [presets[key] for key, condition in conditions.items() if condition in given]
    return {name: value for preset in chosen for name, value in preset.items()}


def from_dict(config_type, values: dict):
    """A `config_type` from plain values, as JSON gives them back. Unknown names, values of another
    type and such as are not among the choices raise InputError.
    """
    known = {f.name: f for f in fields(config_type)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(f"{config_type.__name__} has no option named {', '.join(unknown)}")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    for name, value in values.items():
        check_value(known[name], value)
    return config_type(**values)


def check_value(f, value) -> None:
    """Raise InputError where a value cannot be that of the dataclass field `f`."""
    if value is None and f.default is None:
        return
    keywords = f.metadata.get("keywords", {})
    kind = keywords.get("type", f.type)
    several = f.type is tuple
    parts = value if several and isinstance(value, tuple) else (value,)
    fits = isinstance(value, tuple) == several and all(
        isinstance(part, (int, float) if kind is float else kind) and not isinstance(part, bool)
        for part in parts
    )
    if not fits:
        wanted = f"{kind.__name__}{' list' if several else ''}"
        raise InputError(f"{f.name}={shown(value)}: expected {wanted}")
    choices = keywords.get("choices", parts)
    if any(part not in choices for part in parts):
        raise InputError(f"{f.name}={shown(value)}: expected one of {', '.join(map(str, choices))}")
