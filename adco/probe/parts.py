"""Features [n, d] on their way to a file: batch by batch in a folder, and the file's formats."""

import csv
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import numpy as np
from torch import Tensor

from adco.data.pictures import Pictures
from ops.files import write_whole


class Parts:
    """The rows that are there, in a folder, a file for each batch; and the columns of text."""

    def __init__(self, folder: Path, pictures: Pictures, batch_size: int, width: int):
        self.folder, self.pictures, self.width = folder, pictures, width
        everything = range(len(pictures))
        self.batches = [everything[i:][:batch_size] for i in range(0, len(pictures), batch_size)]
        self.texts = {"name": [pictures.name(number) for number in everything]}
        if pictures.labels is not None:
            classes = [*pictures.classes, ""]  # -1: of no class
            self.texts["label"] = [classes[label] for label in pictures.labels]

    def path(self, batch: int) -> Path:
        return self.folder / f"{batch:09}.rows"

    def write(self, batch: int, features: Tensor, numbers: Tensor) -> None:
        """Write a batch: the features of those of its pictures that are not broken."""
        rows = np.full((len(self.batches[batch]), self.width), np.nan, "<f4")
        rows[numbers - self.batches[batch].start] = features.cpu()
        write_whole(self.path(batch), rows.tobytes())

    def blocks(self):
        """(columns of text, rows [n, d]) of each batch, in order."""
        for batch, numbers in enumerate(self.batches):
            part = slice(numbers.start, numbers.stop)
            rows = np.fromfile(self.path(batch), "<f4").reshape(-1, self.width)
            yield [texts[part] for texts in self.texts.values()], rows


def write_npz(path: Path, parts: Parts) -> None:
    with ZipFile(path, "w") as archive:
        # Without a date (that of ZipInfo) the same rows are the same bytes.
        for title, texts in parts.texts.items():
            with archive.open(ZipInfo(f"{title}.npy"), "w", force_zip64=True) as file:
                np.save(file, np.array(texts))
        with archive.open(ZipInfo("features.npy"), "w", force_zip64=True) as file:
            shape = len(parts.pictures), parts.width
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for _, rows in parts.blocks():
                file.write(rows.tobytes())


def write_csv(path: Path, parts: Parts) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*parts.texts, *(f"f{i}" for i in range(parts.width))])
        for texts, rows in parts.blocks():
            for *words, row in zip(*texts, rows.tolist(), strict=True):
                writer.writerow([*words, *(f"{number:.9g}" for number in row)])  # exact


def write_parquet(path: Path, parts: Parts) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    fields = [(title, pa.string()) for title in parts.texts]
    schema = pa.schema([*fields, ("features", pa.list_(pa.float32(), parts.width))])
    with ParquetWriter(path, schema) as writer:
        for texts, rows in parts.blocks():
            features = pa.FixedSizeListArray.from_arrays(rows.ravel(), parts.width)
            columns = [*map(pa.array, texts), features]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


WRITERS = {".npz": write_npz, ".csv": write_csv, ".parquet": write_parquet}
