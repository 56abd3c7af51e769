"""Which pictures a run is made of, wherever they lie: number, names and labels."""

import hashlib
import os
import unicodedata

import numpy as np

from adco.data.pictures import Pictures
from ops.distributed import Flags
from ops.errors import InputError


def identity(parts: dict[str, Pictures | None]) -> dict[str, dict]:
    """{part: {pictures, classes, sha256}} of the parts of a data set; plain values.

    The hash is one of names and labels. It does not depend on where the folder lies, on how it is
    mounted, or on the order in which its files are met.
    """
    return {part: identity_of(x) for part, x in parts.items() if x is not None}


def identity_of(pictures: Pictures) -> dict:
    digest = hashlib.sha256()
    # The pictures of data sets in memory have no names.
    for text in ("\0".join(pictures.file_names()), "\0".join(pictures.classes)):
        digest.update(os.fsencode(normal(text)))
        digest.update(b"\1")
    if pictures.labels is not None:
        digest.update(np.ascontiguousarray(pictures.labels, "<i8").tobytes())
    numbers = {"pictures": len(pictures), "classes": len(pictures.classes)}
    return {**numbers, "sha256": digest.hexdigest()}


def normal(name: str) -> str:
    """A file's name as most systems store it: some take letters and their accents apart."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def in_order(names) -> list[str]:
    """Names in an order that does not depend on how the system stores them."""
    return sorted(names, key=None if all(map(str.isascii, names)) else normal)


def difference(theirs: dict[str, dict] | None, ours: dict[str, dict]) -> str:
    """What differs between the data of two runs, in words; nothing where all is the same.

    Of a run that does not say what it was made of, nothing is known to differ.
    """
    known = theirs if isinstance(theirs, dict) and theirs else ours
    return ", ".join(
        f"{part} was {in_words(known.get(part))}, here it is {in_words(ours.get(part))}"
        for part in dict.fromkeys([*known, *ours])
        if known.get(part) != ours.get(part)
    )


def in_words(part: dict | None) -> str:
    if part is None:
        return "not there"
    return "{pictures} pictures in {classes} classes (names and labels {sha256:.8})".format(**part)


def check_same_everywhere(ours: dict, flags: Flags, what="data", differ=difference) -> None:
    """Raise InputError where another process has other data, as on a node with a copy of its own,
    or other options. For all processes to call.
    """
    for rank, theirs in enumerate(flags.gather(ours)):
        if other := differ(theirs, ours):
            raise InputError(f"process {rank} has other {what}: {other}; give all nodes the same")
