"""Which pictures a run is made of, wherever they lie: number, names and labels."""

import hashlib
import unicodedata

import numpy as np

from adco.data.pictures import Pictures


def identity(parts: dict[str, Pictures | None]) -> dict[str, dict]:
    """{part: {pictures, classes, sha256}} of the parts of a data set; plain values.

    The hash is one of names and labels. It does not depend on where the folder lies, on how it is
    mounted, or on the order in which its files are met.
    """
    return {
        part: {
            "pictures": len(pictures),
            "classes": len(pictures.classes),
            "sha256": sha256_of(pictures),
        }
        for part, pictures in parts.items()
        if pictures is not None
    }


def sha256_of(pictures: Pictures) -> str:
    digest = hashlib.sha256()
    # The pictures of data sets in memory have no names.
    names = getattr(pictures, "names", np.array([], "S1")).tolist()
    for words in (names, [name.encode() for name in map(normal, pictures.classes)]):
        digest.update(b"\0".join(words) + b"\1")
    if pictures.labels is not None:
        digest.update(np.ascontiguousarray(pictures.labels, "<i8").tobytes())
    return digest.hexdigest()


def normal(name: str) -> str:
    """A file's name as most systems store it: some take letters and their accents apart."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def difference(theirs: dict[str, dict], ours: dict[str, dict]) -> str:
    """What differs between the data of two runs, in words; nothing where all is the same.

    Of a run that does not say what it was made of, nothing is known to differ.
    """
    found = []
    for part in dict.fromkeys([*theirs, *ours]) if theirs else ():
        then, now = theirs.get(part), ours.get(part)
        if then != now:
            found.append(f"{part} was {in_words(then)}, here it is {in_words(now, then)}")
    return ", ".join(found)


def in_words(part: dict | None, other: dict | None = None) -> str:
    if part is None:
        return "not there"
    text = f"{part['pictures']} pictures in {part['classes']} classes"
    # As many of both: then it is the names.
    same = other and all(part[name] == other[name] for name in ("pictures", "classes"))
    return text + ", of other names or labels" * bool(same)
