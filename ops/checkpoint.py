"""Checkpoints: written whole or not at all, read without running anything they contain."""

import hashlib
import os
import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ops.errors import InputError


def save(state: dict, path: Path) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new one, never a
    part.
    """
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: str | Path) -> dict:
    """The dictionary in a checkpoint, on the CPU. Only tensors and plain values are ever unpickled.

    Raises InputError where there is no such file, or it is torn, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {str(path)!r}; give the path of an existing file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign pickles; the refusal says it better
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{str(path)!r} is no checkpoint that can be opened safely: it holds more than tensors "
            "and plain values, or is no torch file at all"
        ) from error
    except Exception as error:  # bytes that are no checkpoint make the reader fail in any way
        raise InputError(
            f"{str(path)!r} is damaged or no checkpoint; take an earlier one"
        ) from error
    if not isinstance(state, dict):
        raise InputError(
            f"{str(path)!r} holds a {type(state).__name__}; a checkpoint is a dictionary"
        )
    return state


def sha256(path: str | Path) -> str:
    """The fingerprint of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def with_module(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as a DistributedDataParallel model has them, which the published checkpoints use."""
    return {f"module.{name}": value for name, value in state_dict.items()}


def without_module(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): value for name, value in state_dict.items()}


def load_strictly(module: nn.Module, state_dict: dict[str, Tensor], source: str) -> None:
    """Fill a module, or raise InputError naming every key that is missing, left over or of another
    shape.
    """
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
