"""A page from its parts: tags, tables, thumbnails in one picture, and the template page.html."""

import base64
import io
import json
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from ops.files import write_whole

COLUMNS = 50  # thumbnails in a row of the sprite


def write_page(path: Path, title: str, body: list[str], data: dict) -> None:
    """One file that needs nothing else. data: what the script of the page works on."""
    text = (Path(__file__).parent / "page.html").read_text("utf-8")
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    for name, part in (("title", escape(title)), ("body", "\n".join(body)), ("data", content)):
        text = text.replace(f"{{{{{name}}}}}", part, 1)
    write_whole(path, text.encode())


def shown(value) -> str:
    """A value as a cell of a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def table(rows: list, header=(), key: str = "", kind: str = "") -> str:
    """Rows of values, escaped. key: of a table that can be sorted and filtered."""
    sort = " data-sort" if key else ""
    head = "".join(f"<th{sort}>{escape(str(name))}</th>" for name in header)
    lines = [
        "".join(
            f"<td{' class=num' * isinstance(x, int | float)}>{escape(shown(x))}</td>" for x in row
        )
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    field = f'<p><input data-filter="{key}" placeholder="filter: words"></p>' if key else ""
    name = f' id="{key}"' if key else f' class="{kind}"'
    return f'{field}<div class="scroll"><table{name}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cards(values: dict[str, str]) -> str:
    """Large numbers with what they are below."""
    inner = (
        f'<div class="card"><b>{v}</b><span>{escape(n)}</span></div>' for n, v in values.items()
    )
    return f'<div class="cards">{"".join(inner)}</div>'


def figures(svgs: list[str]) -> str:
    return f'<div class="row">{"".join(f"<figure>{one}</figure>" for one in svgs)}</div>'


class Sprite:
    """Thumbnails side by side in one picture, each where it is first asked for.

    thumbs: uint8 [n, T, T, 3].
    """

    def __init__(self, thumbs: np.ndarray):
        self.thumbs, self.slots = thumbs, {}

    def slot(self, index: int) -> int:
        return self.slots.setdefault(int(index), len(self.slots))

    def tags(self, indices, kinds=None) -> str:
        """Thumbnails in a row. kinds: of each its frame: same, other or plain."""
        kinds = kinds or ["plain"] * len(indices)
        pairs = zip(indices, kinds, strict=True)
        return "".join(f'<i data-t="{self.slot(i)}" class="{kind}"></i>' for i, kind in pairs)

    def data(self) -> dict:
        """For the script: the picture as a data URI, its columns and the side of a thumbnail."""
        side = self.thumbs.shape[1]
        sheet = np.zeros((-(-len(self.slots) // COLUMNS) * side, COLUMNS * side, 3), np.uint8)
        for index, slot in self.slots.items():
            top, left = slot // COLUMNS * side, slot % COLUMNS * side
            sheet[top : top + side, left : left + side] = self.thumbs[index]
        file = io.BytesIO()
        Image.fromarray(sheet).save(file, "JPEG", quality=80)
        image = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        return {"image": image, "columns": COLUMNS, "side": side}
