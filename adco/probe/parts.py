"""Features [n, d] on their way to a file: batch by batch in a folder, and the file's formats."""

import csv
import os
from pathlib import Path

import numpy as np
from torch import Tensor

from ops.files import write_whole


class Parts:
    """Rows [n, d] in one file of a folder, with an empty file for each batch that is there."""

    def __init__(self, folder: Path, number: int, batch_size: int):
        self.folder, self.file, self.number = folder, folder / "features", number
        self.batches = [range(number)[i:][:batch_size] for i in range(0, number, batch_size)]

    def path(self, batch: int) -> Path:
        return self.folder / f"{batch:09}.rows"

    def write(self, batch: int, features: Tensor, numbers: Tensor) -> None:
        """Write a batch: the features of those of its pictures that are not broken."""
        places, width = self.batches[batch], features.shape[1]
        rows = np.full((len(places), width), np.nan, "<f4")
        rows[numbers - places.start] = features.cpu()
        with open(self.file, "r+b") as file:  # no map of it: a full disk would end the process
            file.seek(4 * width * places.start)
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())
        write_whole(self.path(batch), b"")

    def rows(self) -> np.ndarray:
        """All of them, read when they are used."""
        return np.memmap(self.file, "<f4", "r").reshape(self.number, -1)


# Write columns of text {title: [n]} and rows [n, d] as `features`, a part at a time.


def write_npz(path: Path, texts: dict[str, list[str]], rows: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.savez(file, **{title: np.array(words) for title, words in texts.items()}, features=rows)


def write_csv(path: Path, texts: dict[str, list[str]], rows: np.ndarray) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*texts, *(f"f{i}" for i in range(rows.shape[1]))])
        for *words, row in zip(*texts.values(), rows, strict=True):
            writer.writerow([*words, *(f"{number:.9g}" for number in row.tolist())])  # exact


def write_parquet(path: Path, texts: dict[str, list[str]], rows: np.ndarray) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    features = pa.FixedSizeListArray.from_arrays(rows.ravel(), rows.shape[1])
    write_table(pa.table({**texts, "features": features}), path, row_group_size=1024)


WRITERS = {".npz": write_npz, ".csv": write_csv, ".parquet": write_parquet}
