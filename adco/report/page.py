"""A page: what its script is to show, as JSON in the template page.html, and thumbnails."""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from ops.files import finite_or_none, write_whole

COLUMNS = 50  # thumbnails in a row of the sprite


class Sprite:
    """Thumbnails side by side in one picture, each where it is first asked for."""

    def __init__(self):
        self.slots, self.thumbs, self.labels = {}, [], []

    def __call__(self, e: SimpleNamespace, indices) -> list[int]:
        """The slots of the pictures at these indices of what embed_run gave."""
        keys = [(id(e), int(index)) for index in indices]
        for key in keys:
            if key not in self.slots:
                self.slots[key] = len(self.slots)
                self.thumbs.append(e.thumbs[key[1]])
                self.labels.append(None if e.labels is None else int(e.labels[key[1]]))
        return [self.slots[key] for key in keys]

    def data(self) -> dict:
        """The picture as a data URI, its columns, the side of a thumbnail, and their labels."""
        side, rows = len(self.thumbs[0]), -(-len(self.thumbs) // COLUMNS)
        sheet = np.zeros((rows, COLUMNS, side, side, 3), np.uint8)
        sheet.reshape(-1, side, side, 3)[: len(self.thumbs)] = self.thumbs
        file, sheet = io.BytesIO(), sheet.swapaxes(1, 2).reshape(rows * side, -1, 3)
        Image.fromarray(sheet).save(file, "JPEG", quality=80)
        image = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        return {"image": image, "columns": COLUMNS, "side": side, "labels": self.labels}


def write_page(path: Path, title: str, sections: list[dict], sprite: Sprite) -> None:
    """One file that needs nothing else. sections: as the script in page.html reads them."""
    sprite = sprite.data() if sprite.thumbs else None
    shown = finite_or_none({"title": title, "sections": sections, "sprite": sprite})
    content = json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c")
    text = (Path(__file__).parent / "page.html").read_text("utf-8")
    write_whole(path, text.replace("{{data}}", content, 1).encode())
