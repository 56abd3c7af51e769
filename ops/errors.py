"""Errors that a user is told in one sentence, and the one way in which a script tells them."""

import os
import sys
import tempfile
import traceback
from contextlib import contextmanager, suppress
from importlib import import_module

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # by Ctrl-C, with nothing to save
EXIT_FAILED = 70  # the run cannot go on; what it has saved is good
EXIT_STOPPED = 75  # stopped on request and saved: start it again with --resume auto


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence: what was expected, what was found, what to do.
    """

    code = EXIT_BAD_INPUT


class RunFailed(RuntimeError):
    """The run cannot go on. The message is one sentence: what happened, and what is left."""

    code = EXIT_FAILED


def optional(package: str, what: str):
    """A package that not everybody needs, imported for `what`. Raises InputError without it."""
    try:
        return import_module(package)
    except ImportError as error:
        why = f"{what} needs {package}, which is not installed ({error}): python3 -m pip install"
        raise InputError(f"{why} {package.split('.')[0]}") from error


def one_line(text: str) -> str:
    """The text with every run of white space, line ends included, as one blank."""
    return " ".join(text.split())


def printable(text: str) -> str:
    """The text with whatever is no visible character as \\x.., for a terminal or a list."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text
    )


def shown(value, most: int = 60) -> str:
    """A value as one short line of a message."""
    text = one_line(repr(value))
    return text if len(text) <= most else text[: most - 3] + "..."


def outcome_of(error: Exception) -> tuple[int, str]:
    """The exit code of an error, or of the kind that it belongs to, and its message on one line.

    A loader process sends its whole traceback as the message; the sentence comes last. The
    traceback of an error that nobody foresaw is kept in a file, which the message names.
    """
    sentence = printable(one_line(str(error).rpartition(f"{type(error).__name__}: ")[2]))
    if isinstance(error, (InputError, RunFailed)):
        return error.code, sentence
    # A fault of the program, or of the machine.
    log = write_traceback("".join(traceback.format_exception(error)))
    what = f"this was not foreseen: {type(error).__name__}: {shown(sentence, 300)}"
    return EXIT_FAILED, f"{what} (the traceback is {log}); what is saved is good"


def error_of(code: int, sentence: str) -> Exception:
    """The error that an outcome, perhaps of another process, is told by."""
    return (InputError if code == EXIT_BAD_INPUT else RunFailed)(sentence)


# Where a traceback is written: the run folder, once there is one.
log_folders = [tempfile.gettempdir()]


def write_traceback(text: str) -> str:
    """Where it was written, for a message."""
    for folder in reversed(log_folders):
        path = os.path.join(folder, f"error-{os.getpid()}.log")
        with suppress(OSError), open(path, "a") as file:
            file.write(text)
            return f"in {path}"
    return "lost, for want of room"


class Steady:
    """A stream that never fails: what cannot be said (full disk, closed pipe) is lost."""

    stream = None  # until there is one; a copy has none at first

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name):
        return getattr(self.stream, name)


def steady_streams() -> None:
    """From now on nothing that is printed can end this process. For the start of a script."""
    # A stream that is closed would give its number to the next file that is opened.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Steady(stream))


@contextmanager
def reported(program: str):
    """Turn errors and Ctrl-C inside the block into one line on stderr and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        code, sentence = outcome_of(error)
        print(f"{program}: error: {sentence}", file=sys.stderr, flush=True)
        sys.exit(code)


def some(names: list[str], most: int = 5) -> str:
    """A list for an error message, cut to a few."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
