"""Two kinds of error that a user is told in one sentence, and one way for a script to tell them."""

import sys
from contextlib import contextmanager

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # by Ctrl-C, with nothing to save
EXIT_FAILED = 70  # the run cannot go on; what it has saved is good
EXIT_STOPPED = 75  # stopped on request and saved: start it again with --resume auto


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence: what was expected, what was found, what to do.
    """


class RunFailed(RuntimeError):
    """The run cannot go on. The message is one sentence: what happened, and what is left."""


def one_line(text: str) -> str:
    """The text with every run of white space, line ends included, as one blank."""
    return " ".join(text.split())


def shown(value, most: int = 60) -> str:
    """A value as one short line of a message."""
    text = one_line(repr(value))
    return text if len(text) <= most else text[: most - 3] + "..."


def outcome_of(error: Exception) -> tuple[int, str]:
    """The exit code of an error, or of the kind that it belongs to, and its message on one line.

    A loader process sends its whole traceback as the message; the sentence comes last.
    """
    code = next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    return code, one_line(str(error).rpartition(f"{type(error).__name__}: ")[2])


# An error that is none of these is a fault of the program: a traceback.
EXIT_CODES = {InputError: EXIT_BAD_INPUT, RunFailed: EXIT_FAILED}


@contextmanager
def reported(program: str):
    """Turn these errors and Ctrl-C inside the block into one line on stderr and an exit code."""
    try:
        yield
    except tuple(EXIT_CODES) as error:
        code, sentence = outcome_of(error)
        print(f"{program}: error: {sentence}", file=sys.stderr, flush=True)
        sys.exit(code)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)


def some(names: list[str], most: int = 5) -> str:
    """A list for an error message, cut to a few."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
