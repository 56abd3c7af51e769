"""A page: what its script is to show, as JSON in the template page.html, and thumbnails."""

import base64
import io
import json
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from ops.files import finite_or_none, write_whole

COLUMNS = 50  # thumbnails in a row of the sprite


class Sprite:
    """Thumbnails side by side in one picture, each where it is first asked for.

    It is asked by arrays: thumbs uint8 [n, T, T, 3], of which labels [n] (or None) are known.
    """

    def __init__(self):
        self.slots, self.thumbs, self.labels = {}, [], []

    def __call__(self, thumbs: np.ndarray, labels, indices) -> list[int]:
        """The slots of the thumbs at these indices."""
        for index in map(int, indices):
            if (id(thumbs), index) not in self.slots:
                self.slots[id(thumbs), index] = len(self.slots)
                self.thumbs.append(thumbs[index])
                self.labels.append(None if labels is None else int(labels[index]))
        return [self.slots[id(thumbs), int(index)] for index in indices]

    def data(self) -> dict:
        """The picture as a data URI, its columns, the side of a thumbnail, and their labels."""
        side = len(self.thumbs[0])
        rows = -(-len(self.thumbs) // COLUMNS)
        sheet = np.zeros((rows, COLUMNS, side, side, 3), np.uint8)
        sheet.reshape(-1, side, side, 3)[: len(self.thumbs)] = self.thumbs
        file, sheet = io.BytesIO(), sheet.swapaxes(1, 2).reshape(rows * side, -1, 3)
        Image.fromarray(sheet).save(file, "JPEG", quality=80)
        image = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        return {"image": image, "columns": COLUMNS, "side": side, "labels": self.labels}


def write_page(path: Path, title: str, sections: list[dict], sprite: Sprite) -> None:
    """One file that needs nothing else. sections: as the script in page.html reads them."""
    shown = {"sections": sections, "sprite": sprite.data() if sprite.thumbs else None}
    text = (Path(__file__).parent / "page.html").read_text("utf-8")
    content = json.dumps(finite_or_none(shown), separators=(",", ":")).replace("<", "\\u003c")
    text = text.replace("{{title}}", escape(title), 1).replace("{{data}}", content, 1)
    write_whole(path, text.encode())
