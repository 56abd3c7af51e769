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
        # A loader process sends its whole traceback as the message; the sentence comes last.
        sentence = str(error).rpartition(f"{InputError.__name__}: ")[2].strip()
        print(f"{program}: error: {sentence}", file=sys.stderr, flush=True)
        sys.exit(EXIT_BAD_INPUT)
