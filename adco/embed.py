"""Features of pictures as a file: python3 -m adco.embed CHECKPOINT DATA OUT.

OUT is .npz, .csv or .parquet, with the columns name, label (the class, where there are classes) and
features [n, d] float32 (in a .csv f0 to f(d-1)), in the order of the names. The row of a picture
that cannot be read is nan, and it is named. adco.embed(model, pictures) gives the array alone.

Until all is there the rows lie in the folder OUT.part, batch by batch: the same command goes on
from them.
"""

import csv
import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adco.data.datasets import introduction, load_splits
from adco.data.decoder import Decoding, decoding_of
from adco.data.folder import read_folder
from adco.data.identity import check_same_everywhere, identity
from adco.data.loader import CheckViews, batch_loader, check_loader
from adco.data.pictures import ArrayPictures, BrokenPicture, FolderPictures, Pictures
from adco.encoder import Encoder, Trunk, network_of, note_other_views, read_trunk
from adco.probe.features import features_of
from adco.probe.options import PROBE_PRESETS
from ops.arguments import AT_LEAST_0, AT_LEAST_1, argument, command, option, switch
from ops.distributed import Flags, World, once_per_node
from ops.errors import EXIT_STOPPED, InputError, RunFailed, optional
from ops.files import json_bytes, partial_name, told_if_not_written, write_whole
from ops.launch import device_kind, launch
from ops.options import ARCHITECTURES, DATASETS, PictureOptions, ProcessOptions
from ops.signals import StopRequest, WaitInterrupted
from ops.training import unwrap
from ops.workers import end_workers, workers_per_process

# Options that decide the numbers, beside the checkpoint, the pictures and how these are read.
DECIDING = ("of", "image_size", "eval_crop", "batch_size")
PARTS = ("trunk", "head")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(ProcessOptions, PictureOptions):
    """Write the features of pictures to a file, in the order of their names."""

    checkpoint: str = argument("checkpoint of any program, with a ResNet or a model of timm")
    data: str = argument("folder of the pictures, or what --data is for --dataset")
    out: str = argument("new file: .npz, .csv or .parquet")
    of: str = option("trunk", "what gives the features", choices=PARTS)
    dataset: str = option("folder", "which data set DATA holds", choices=DATASETS)
    split: str = option("train", "which part, where there is a val", choices=("train", "val"))
    arch: str = option(None, "architecture, where the file does not say", choices=ARCHITECTURES)
    channels: int = option(None, "C of the pictures (default: the checkpoint's)", AT_LEAST_1)
    image_size: int = option(224, "side of the views, pixels", AT_LEAST_1)
    eval_crop: int = switch(1, "1: the centre of a picture; 0: the whole")
    batch_size: int = option(256, "pictures at a time", AT_LEAST_1, names=("-b",))
    workers: int = option(32, "loader processes a node", AT_LEAST_0, names=("-j",))

    def __post_init__(self):
        super().__post_init__()
        out = Path(self.out).absolute()
        if out.suffix not in WRITERS or os.path.lexists(out) or not out.parent.is_dir():
            raise InputError(
                f"out={self.out!r}: expected a new file {', '.join(WRITERS)} in an existing folder"
            )
        if out.suffix == ".parquet":
            optional("pyarrow", f"out={self.out}")


def embed(model, pictures, *, of="trunk", image_size=224, batch_size=256, workers=0) -> np.ndarray:
    """Features of pictures, float32 [n, d], in their order.

    model: a checkpoint, an AdCo or one of its encoders, whose trunk or head is taken; or any other
    module that takes [N, C, H, W].  pictures: a folder (all below it, in the order of their names),
    files, or arrays [H, W, C] of whole numbers and PIL images.  Raises InputError, also for a
    broken picture.
    """
    if of not in PARTS:
        raise InputError(f"of={of!r}: expected {' or '.join(PARTS)}")
    if isinstance(model, (str, os.PathLike)):
        trunk = read_trunk(os.fspath(model))
        network = model = network_of(trunk, of, [image_size]).to(device_kind("auto"))
    else:
        encoder = getattr(unwrap(model), "encoder_q", None)
        network = model = encoder or model
        if isinstance(model, Encoder) and of == "trunk":
            network = Trunk(model)
        elif encoder and of == "trunk":
            fault = "the trunk of an encoder of one's own is not known"
            raise InputError(f"{fault}: give it, or 'head'")
    # C is that of the first convolution; of a network without any: RGB.
    channels = next((p.shape[1] for p in network.parameters() if p.dim() == 4), 3)
    root = Path()
    if isinstance(pictures, (str, os.PathLike)):
        root, pictures = Path(pictures), read_folder(Path(pictures)).names
    if len(pictures) and isinstance(pictures[0], (str, os.PathLike)):
        names, how = [*map(os.fspath, pictures)], Decoding(channels=channels)
        found = FolderPictures(root, names, decoding=how)
    else:
        found = ArrayPictures(pictures, channels=channels)
    if not len(found):
        raise InputError("no pictures; expected a folder, files or arrays")
    views, was_training = CheckViews(found, image_size), model.training
    try:
        rows = features_of(network.eval(), check_loader(views, batch_size, workers))
        return np.concatenate([features.cpu().numpy() for features, _ in rows])
    finally:
        model.train(was_training)


class Parts:
    """Rows [n, d] in one file of a folder, with an empty file for each batch that is there."""

    def __init__(self, folder: Path, number: int, batch_size: int, width: int):
        self.folder, self.file, self.shape = folder, folder / "features", (number, width)
        self.batches = [range(number)[i:][:batch_size] for i in range(0, number, batch_size)]

    def path(self, batch: int) -> Path:
        return self.folder / f"{batch:09}.rows"

    def write(self, batch: int, features: Tensor, numbers: Tensor) -> None:
        """Write a batch: the features of those of its pictures that are not broken."""
        places, width = self.batches[batch], self.shape[1]
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
        return np.memmap(self.file, "<f4", "r", shape=self.shape)


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


def run(config: EmbedConfig, world: World, device: torch.device) -> int:
    """Write the file, as one process of `world`. Returns the exit code.

    Raises InputError where OUT.part is of something else.
    """
    trunk = read_trunk(config.checkpoint, arch=config.arch)
    config = replace(config, channels=config.channels or trunk.channels)
    network = network_of(replace(trunk, channels=config.channels), config.of, [config.image_size])
    network.eval().to(device)
    where = config.dataset, config.data, False, decoding_of(config)
    pictures = getattr(once_per_node(lambda: load_splits(*where), world), config.split)
    if pictures is None:
        raise InputError(f"{config.data!r} has no val: leave out --split val")
    # Of too small views or a head that does not fit nothing is begun.
    shape = 1, config.channels, config.image_size, config.image_size
    with torch.no_grad():
        width = network(torch.zeros(shape, device=device)).shape[1]
    parts = Parts(Path(config.out + ".part"), len(pictures), config.batch_size, width)

    # What the rows are of: those that are there have to be of the same.
    flags, data = Flags(world), identity({config.split: pictures})
    check_same_everywhere(data, flags)
    names = (*DECIDING, *(f.name for f in fields(PictureOptions)))
    decides = {"checkpoint": trunk.sha256, "data": data, **{n: getattr(config, n) for n in names}}
    note = parts.folder / "of.json"
    theirs = json.loads(note.read_text()) if note.exists() else decides
    if other := [name for name in decides if theirs.get(name) != decides[name]]:
        raise InputError(f"{str(parts.folder)!r} is of another {', '.join(other)}: remove it first")
    workers = workers_per_process(config.workers, world.local_size)
    with told_if_not_written(f"NOT WRITTEN: {config.out}"):
        if world.first:
            note_other_views(trunk, config, print)
            print("\n".join(introduction({config.split: pictures})), flush=True)
            write_whole(note, json_bytes(decides))
            parts.file.touch()
        with StopRequest() as stop, suppress(WaitInterrupted):
            views = CheckViews(pictures, config.image_size, True, whole=not config.eval_crop)
            if fill(parts, network, views, workers, world, flags, stop):
                with stop.waiting():
                    if world.first:
                        finish(parts, pictures, Path(config.out))
                    return 0
    end_workers()
    if world.first:
        print(f"stopped by {stop.name}: the same command goes on", flush=True)
    return EXIT_STOPPED


def fill(parts: Parts, network, views: CheckViews, workers: int, world, flags, stop) -> bool:
    """Write all batches that are missing; False where a stop came. Every process calls it."""
    views.labels = np.arange(len(views))  # which pictures have come
    missing = [b for b in range(len(parts.batches)) if not parts.path(b).exists()]
    (stopped,) = flags.exchange(0)  # all have looked
    # A batch is the same pictures on any number of processes, so its rows are the same numbers.
    mine = missing[world.rank :: world.size]
    found = features_of(network, batch_loader(views, [parts.batches[b] for b in mine], workers))
    done = len(views) - sum(len(parts.batches[b]) for b in missing)
    silent = None if world.first else True  # None: where nobody watches
    bar = tqdm(total=len(views), initial=done, unit=" pictures", disable=silent)
    for batch in [*mine, None][: -(-len(missing) // world.size)]:
        count = 0
        with suppress(WaitInterrupted), stop.waiting():
            if batch is not None:
                parts.write(batch, *next(found))
                count = len(parts.batches[batch])
        stopped, count = flags.exchange(int(stop.received is not None), count)
        bar.update(count)
        if stopped:
            break
    bar.close()
    return not stopped


def finish(parts: Parts, pictures: Pictures, out: Path) -> None:
    """Write OUT, say which of its rows are nan and why, and take the parts away."""
    if not all(parts.path(batch).exists() for batch in range(len(parts.batches))):
        why = f"not all rows have come to {str(parts.folder)!r}"
        raise RunFailed(f"{why}; have it in a folder that all nodes share, and start again")
    rows = parts.rows()
    broken = np.flatnonzero(np.isnan(rows[:, 0])).tolist()
    for number in broken:
        why = "it could not be read before"
        try:
            pictures.read(number)
        except BrokenPicture as error:
            why = error.reason
        print(f"nan: {pictures.name(number)}: {why}", file=sys.stderr, flush=True)
    if len(broken) == len(rows):
        shutil.rmtree(parts.folder)
        raise InputError(f"none of the {len(rows)} pictures can be read; give sound ones")
    texts = {"name": [pictures.name(number) for number in range(len(rows))]}
    if pictures.labels is not None:
        classes = [*pictures.classes, ""]  # -1: of no class
        texts["label"] = [classes[label] for label in pictures.labels]
    WRITERS[out.suffix](partial_name(out), texts, rows)
    os.replace(partial_name(out), out)
    shutil.rmtree(parts.folder)
    print(f"wrote {out}: {len(rows)} rows of {rows.shape[1]}, {len(broken)} of them nan")


PRESETS = {"dataset": PROBE_PRESETS["dataset"]}
main = command("adco.embed", EmbedConfig, lambda config: launch(run, config), PRESETS)


class CallableModule(type(sys)):
    """This module: an import of it takes the place of the function in adco."""

    def __call__(self, *arguments, **options) -> np.ndarray:
        return embed(*arguments, **options)


sys.modules[__name__].__class__ = CallableModule

if __name__ == "__main__":
    sys.exit(main())
