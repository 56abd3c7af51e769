"""The broken pictures that a run has met: each named once, and not more of them than a limit."""

from contextlib import suppress
from pathlib import Path

LIST = "bad_pictures.txt"


class BadPictures:
    """What is known to be broken of `num_pictures`, and how much of it a run bears.

    limit: share of the pictures.  known: name to reason, as a checkpoint kept it.
    """

    def __init__(self, limit: float, num_pictures: int, known=()):
        self.limit, self.num_pictures = limit, num_pictures
        self.known: dict[str, str] = dict(known)

    @property
    def count(self) -> int:
        return len(self.known)

    def add(self, news: dict[str, str]) -> list[str]:
        """A sentence about each picture that has not been named before, in the order of names."""
        fresh = {name: news[name] for name in sorted(news) if name not in self.known}
        self.known |= fresh
        return [
            f"broken picture {name}: {reason}; another one stands in for it"
            for name, reason in fresh.items()
        ]

    def complaint(self, folder: Path | None = None) -> str:
        """A sentence when there are more than the limit allows, else nothing.

        With a folder, the list of all that are known goes into bad_pictures.txt there.
        """
        if self.count <= self.limit * self.num_pictures:
            return ""
        name, reason = next(iter(self.known.items()))
        where = ""
        if folder is not None:
            with suppress(OSError):  # a full disk must not hide the message
                lines = (f"{name}\t{reason}\n" for name, reason in sorted(self.known.items()))
                (folder / LIST).write_text("".join(lines), encoding="utf-8")
                where = f"; all that are known in {folder / LIST}"
        return (
            f"{self.count} of {self.num_pictures} pictures are broken, more than --bad_images_max "
            f"{self.limit:g}; first: {name} ({reason}){where}; remove them or raise the limit"
        )
