"""Pictures of a folder as tar shards in WebDataset's layout: python3 -m adco.pack FOLDER OUT.

OUT then holds train-000000.tar, ..., val-000000.tar, ... and an index (adco.data.shards). What is
packed is what a run on the folder would read, every file byte for byte. A run on OUT is the run on
the folder: main_adco.py --dataset tar --data OUT.
"""

import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from tqdm import tqdm

from adco.data.datasets import introduction, load_splits
from adco.data.pictures import FilePictures
from adco.data.shards import INDEX, index_of, shard_name
from ops.arguments import POSITIVE, argument, command, option
from ops.errors import InputError
from ops.files import partial_name, told_if_not_written

READERS, READ_AHEAD = 16, 256  # threads, and pictures that they read together


@dataclass(frozen=True)
class PackConfig:
    """Pack the pictures of a folder into tar shards, which a run reads like the folder."""

    folder: str = argument("folder of pictures, as --data of --dataset ImageNet or folder")
    out: str = argument("new folder for the shards")
    shard_mb: float = option(512.0, "size at which a shard ends, MB", POSITIVE)

    def __post_init__(self):
        if "://" in self.out:
            raise InputError(f"out={self.out!r}: pack into a folder, and copy it to the store")
        if os.path.lexists(self.out):
            raise InputError(f"out={self.out!r} is there; expected the name of a new folder")


def pack(config: PackConfig) -> None:
    """Write the shards. Raises InputError, and RunFailed where they cannot be written.

    OUT is there when it is whole: until then all lies in OUT.partial.
    """
    splits = load_splits("folder", config.folder)
    parts = {"train": splits.train, "val": splits.val}
    print("\n".join(introduction(parts)), flush=True)
    out = Path(config.out)
    partial, index = partial_name(out), {}
    with told_if_not_written(f"NOT PACKED: {str(out)!r}"):
        try:
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            partial.mkdir(parents=True)
            for split, pictures in parts.items():
                if pictures is not None:
                    index |= write_shards(partial, split, pictures, 1e6 * config.shard_mb)
            np.savez_compressed(partial / INDEX, **index)
            os.replace(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    print(f"packed {config.folder} into {config.out}: train on it with --dataset tar")


def write_shards(folder: Path, split: str, pictures: FilePictures, shard_bytes: float) -> dict:
    """Write the shards of a split; what the index holds of it."""
    places = np.zeros((len(pictures), 4), np.int64)
    shard, left = 0, len(pictures)
    contents = contents_in_random_order(pictures)
    contents = iter(tqdm(contents, split, left, unit=" pictures", disable=None))
    while left:
        with open(folder / shard_name(split, shard), "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for index, content in contents:
                    start = file.tell() + tarfile.BLOCKSIZE  # after the header
                    places[index] = shard, start, len(content), zlib.crc32(content)
                    # What belongs to one sample has one name, up to its first dot.
                    ending = os.path.splitext(pictures.name(index))[1].lower()
                    add(tar, f"{index:09}{ending}", content)
                    if pictures.labels is not None:
                        add(tar, f"{index:09}.cls", str(pictures.labels[index]).encode())
                    left -= 1
                    if file.tell() >= shard_bytes:
                        break
            file.flush()
            os.fsync(file.fileno())
        shard += 1
    return index_of(split, pictures, places)


def contents_in_random_order(pictures: FilePictures) -> Iterator[tuple[int, bytes]]:
    """Each picture's index and file, always in the same order: a shard is a sample of all."""
    order = np.random.default_rng(0).permutation(len(pictures)).tolist()
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(order), READ_AHEAD):
            chunk = order[first : first + READ_AHEAD]
            yield from zip(chunk, pool.map(pictures.content, chunk), strict=True)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


main = command("adco.pack", PackConfig, pack)


if __name__ == "__main__":
    sys.exit(main())
