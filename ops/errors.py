"""One kind of error for everything a user can mend, and one way for a script to report it."""

import sys
from contextlib import contextmanager

EXIT_BAD_INPUT = 2


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one sentence: expected, found, what
    to do.
    """


@contextmanager
def reported(program: str):
    """Turn an InputError inside the block into one line on stderr and exit code 2."""
    try:
        yield
    except InputError as error:
        print(f"{program}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_BAD_INPUT)
