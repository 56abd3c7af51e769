"""Checkpoints: written whole or not at all, read without running anything they contain."""

import hashlib
import io
import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ops.errors import InputError
from ops.files import write_whole

LAST, PREVIOUS = "checkpoint_last.pth.tar", "checkpoint_previous.pth.tar"
BEST = "checkpoint_best.pth.tar"


def numbered(epoch: int) -> str:
    """The name of the checkpoint that stays after an epoch, counted from 0."""
    return f"checkpoint_{epoch:04d}.pth.tar"


def save(state: dict, path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint whole or not at all.

    previous: the name that the old file is kept under. Raises OSError where the new one cannot be
    written; the old file is then still there.
    """
    # torch.save gives every record a checksum, which `load` verifies.
    content = io.BytesIO()
    torch.save(state, content)
    write_whole(path, content.getbuffer(), previous)


def load(path: str | Path) -> dict:
    """The dictionary in a checkpoint, on the CPU. Unpickles nothing but tensors and plain values.

    Raises InputError where the file does not exist, is damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {str(path)!r}; give the path of an existing file")
    try:
        # torch warns of pickles of other programs; the message below says it better.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Checksums first: torch does not look at them.
            verify(path)
            # weights_only: a file from elsewhere must not run code.
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{str(path)!r} is no checkpoint that can be opened safely: it holds more than tensors "
            "and plain values, or is no torch file at all"
        ) from error
    except Exception as error:  # bytes that are no checkpoint fail in any way
        raise InputError(
            f"{str(path)!r} is damaged or no checkpoint; take an earlier one"
            + (f", {PREVIOUS} beside it" if path.with_name(PREVIOUS).exists() else "")
        ) from error
    if not isinstance(state, dict):
        raise InputError(
            f"{str(path)!r} holds a {type(state).__name__}; a checkpoint is a dictionary"
        )
    return state


def verify(path: Path) -> None:
    """Raise ValueError where a record of the file does not fit its CRC-32."""
    # Files from before torch 1.6 are no zip files, and have no checksums.
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
        if torn:
            raise ValueError(f"the checksum of {torn} is wrong")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def with_module(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of a DistributedDataParallel model, which published checkpoints have."""
    return {f"module.{name}": value for name, value in state_dict.items()}


def without_module(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): value for name, value in state_dict.items()}


def is_state_dict(value) -> bool:
    """Whether a value from a file is a dictionary of tensors by name."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def load_strictly(module: nn.Module, state_dict: dict[str, Tensor], source: str) -> None:
    """Fill a module with weights, all of them or none.

    Raises InputError naming every key that is missing, left over or of another shape.
    """
    if not is_state_dict(state_dict):
        raise InputError(f"{source} holds no state_dict; expected tensors by their names")
    # torch's own message does not say what to do.
    own = module.state_dict()
    faults = {
        "missing": sorted(own.keys() - state_dict.keys()),
        "left over": sorted(state_dict.keys() - own.keys()),
        "of another shape": sorted(
            n for n in own.keys() & state_dict.keys() if own[n].shape != state_dict[n].shape
        ),
    }
    if any(faults.values()):
        found = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
        raise InputError(
            f"{source} does not fit the model ({found}); check --arch and the head's options"
        )
    module.load_state_dict(state_dict)
