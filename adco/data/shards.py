"""Pictures packed into tar shards, in a folder or a store: the one reader of their index.

Beside the shards lies INDEX, plain arrays: of each split the names, labels and classes of the
pictures, and their places. python3 -m adco.pack writes both.
"""

import errno
import os
import zlib
from io import BytesIO

import fsspec
import numpy as np
import torch

from adco.data.decoder import Decoding
from adco.data.pictures import FilePictures, reason
from ops.errors import InputError, some

INDEX = "shards.npz"


class TarPictures(FilePictures):
    """The pictures of a split in shards, each read by a request for its bytes alone.

    places: [n, 4] int64: of each picture the shard, its first byte there, its bytes, their CRC-32.
    """

    remedy = "mend it in the folder, and pack that again"
    away = "the store is away, or its shard is torn"

    def __init__(self, root: str, split: str, index, decoding: Decoding):
        names, classes = (index[f"{split}_{kind}"].item() for kind in ("names", "classes"))
        classes = os.fsdecode(classes).split("\0") if classes else []
        names, labels = os.fsdecode(names).split("\0"), index.get(f"{split}_labels")
        super().__init__(root, names, labels, classes, decoding)
        self.split, self.places = split, torch.from_numpy(index[f"{split}_places"])

    def open(self, index: int) -> BytesIO:
        """The bytes of a picture. Raises OSError, with EIO where the shard cannot be read."""
        shard, start, size, checksum = self.places[self.positions[index]].tolist()
        name = shard_name(self.split, shard)
        try:
            # In a loader process, which may be a fork, this makes connections of its own.
            store, folder = fsspec.core.url_to_fs(self.root)
            content = store.cat_file(f"{folder}/{name}", start=start, end=start + size)
        except Exception as error:  # stores raise errors of all kinds
            raise OSError(errno.EIO, f"{name}: {reason(error)}") from error
        if len(content) < size:
            raise OSError(errno.EIO, f"{name} ends before byte {start + size}")
        if zlib.crc32(content) != checksum:
            raise OSError(f"its bytes in {name} are not those that were packed")
        return BytesIO(content)

    def ends(self) -> dict[str, int]:
        """The name of each shard, and where the last of its pictures ends."""
        shards, starts, sizes, _ = self.places.numpy().T
        ends = np.zeros(shards.max() + 1, np.int64)
        np.maximum.at(ends, shards, starts + sizes)
        return {shard_name(self.split, shard): int(end) for shard, end in enumerate(ends)}

    def block_order(self, block_size: int, rng: np.random.Generator) -> np.ndarray:
        """[n] positions: shards at random, as they lie, and then shuffled block by block."""
        shards, starts = self.places[self.positions, :2].numpy().T
        order = np.lexsort((starts, rng.permutation(shards.max() + 1)[shards]))
        for first in range(0, len(order), block_size):
            rng.shuffle(order[first : first + block_size])
        return order


def shard_name(split: str, shard: int) -> str:
    return f"{split}-{shard:06}.tar"


def index_of(split: str, pictures: FilePictures, places: np.ndarray) -> dict[str, np.ndarray]:
    """What INDEX holds of a split."""
    texts = {"names": "\0".join(pictures.file_names()), "classes": "\0".join(pictures.classes)}
    arrays = {kind: np.bytes_(os.fsencode(text)) for kind, text in texts.items()}
    if pictures.labels is not None:
        arrays["labels"] = pictures.labels
    return {f"{split}_{kind}": array for kind, array in {**arrays, "places": places}.items()}


def load_shards(root: str, decoding: Decoding) -> list[TarPictures]:
    """Train, and val where there is one. Raises InputError where they are not whole.

    root: a folder, or the URL of one in a store that fsspec knows.
    """
    root = root.rstrip("/")
    try:
        store, folder = fsspec.core.url_to_fs(root)
        path = f"{folder}/{INDEX}"
        index = np.load(BytesIO(store.cat_file(path)))
        splits = ["train", "val"] if "val_places" in index else ["train"]
        parts = [TarPictures(root, split, index, decoding) for split in splits]
        if len(store.cat_file(path, start=0, end=1)) != 1:
            raise OSError("the server gives whole files only, not a range of bytes")

        ends = {f"{folder}/{name}": end for part in parts for name, end in part.ends().items()}
        last, after = [end - 1 for end in ends.values()], list(ends.values())
        found = store.cat_ranges(list(ends), last, after, on_error="return")
        is_byte = [isinstance(content, bytes) and len(content) == 1 for content in found]
        torn = [name for name, is_there in zip(ends, is_byte, strict=True) if not is_there]
        if torn:
            raise OSError(f"{len(torn)} of {len(ends)} shards are torn or missing: {some(torn, 3)}")
    except Exception as error:  # as above
        fault = f"no packed pictures at {root!r}: {reason(error)}; expected {INDEX} and its shards"
        raise InputError(f"{fault}, as python3 -m adco.pack writes them") from error
    return parts
