"""Checkpoints: written whole or not at all, read without running anything they contain."""

import hashlib
import io
import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.serialization import safe_globals

from ops.errors import InputError, one_line, shown, some
from ops.files import write_whole

LAST, PREVIOUS = "checkpoint_last.pth.tar", "checkpoint_previous.pth.tar"
BEST = "checkpoint_best.pth.tar"

# numpy's numbers, as numpy 1 and 2 pickle them: their function and the types of their dtypes.
SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [
    *((SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"},
]


def numbered(epoch: int) -> str:
    """The name of the checkpoint that stays after an epoch, counted from 0."""
    return f"checkpoint_{epoch:04d}.pth.tar"


def save(state: dict, path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint whole or not at all.

    previous: the name that the old file is kept under. Raises OSError where the new one cannot be
    written; the old file is then still there.
    """
    write_whole(path, content_of(state), previous)


def content_of(state: dict) -> memoryview:
    """The bytes of a checkpoint."""
    # torch.save gives every record a checksum, which `load` verifies.
    content = io.BytesIO()
    torch.save(state, content)
    return content.getbuffer()


def snapshot(state: dict) -> dict:
    """A copy of a state on the CPU, which later steps do not change."""
    taken = copied(state)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # the copies below are on their way
    return taken


def copied(value):
    """Tensors, and what holds them. From a GPU all travel at once, into pinned memory."""
    if isinstance(value, Tensor):
        copy = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return copy.copy_(value, non_blocking=value.is_cuda)
    if isinstance(value, dict):
        return {name: copied(x) for name, x in value.items()}
    return [copied(x) for x in value] if isinstance(value, list) else value


def load(path: str | Path) -> dict:
    """The dictionary in a checkpoint, on the CPU. Unpickles nothing but tensors and plain values.

    A safetensors file gives its tensors as `state_dict`, and what its header says.
    Raises InputError where the file does not exist, is damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {str(path)!r}; give the path of an existing file")
    try:
        if (header := safetensors_header(path)) is not None:
            from safetensors.torch import load_file

            return {**header.get("__metadata__", {}), "state_dict": load_file(path)}
        # torch warns of pickles of other programs; the message below says it better.
        with warnings.catch_warnings(), safe_globals(NUMPY_NUMBERS):
            warnings.simplefilter("ignore")
            # Checksums first: torch does not look at them.
            verify(path)
            # weights_only: a file from elsewhere must not run code.
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint fail in any way
        raise InputError(f"{str(path)!r} {why_unreadable(path, error)}") from error
    if not isinstance(state, dict):
        kind = type(state).__name__
        raise InputError(f"{str(path)!r} holds a {kind}; a checkpoint is a dictionary")
    return state


def peek(path: Path) -> dict:
    """The plain values in a checkpoint of ours; its tensors are neither read nor checked.

    Raises whatever bytes that are no checkpoint raise.
    """
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def safetensors_header(path: Path) -> dict | None:
    """What a safetensors file says of itself; None where the file is of another kind."""
    # Eight bytes with the length of the header, then the header: a JSON object.
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size or file.read(1) != b"{":
            return None
        return json.loads(b"{" + file.read(length - 1))


def why_unreadable(path: Path, error: Exception) -> str:
    """Why a file could not be read as a checkpoint, and what to do."""
    if isinstance(error, (PermissionError, FileNotFoundError)):  # it may just be renamed
        return f"cannot be read: {error.strerror.lower()}"
    # torch names the type that it would have to import.
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        what = f"cannot be opened safely: it holds a {found[1]} beside tensors and plain values"
        how = "open it with torch.load(..., weights_only=False) and save its state_dict alone"
        return f"{what}; where you trust it, {how}"
    # A web page, or the pointer of a file that was not fetched.
    with open(path, "rb") as file:
        start = one_line(file.read(100).decode(errors="replace").rstrip("\ufffd"))
    if start and start.isprintable() and "\ufffd" not in start:
        return f"is damaged or no checkpoint: text that begins {shown(start)}; fetch the file"
    if isinstance(error, pickle.UnpicklingError):
        return "cannot be opened safely: it is no torch file, or holds more than plain values"
    beside = f", {PREVIOUS} beside it" if path.with_name(PREVIOUS).exists() else ""
    return f"is damaged or no checkpoint; take an earlier one{beside}"


def verify(path: Path) -> None:
    """Raise ValueError where a record of the file does not fit its CRC-32."""
    # Files from before torch 1.6 are no zip files, and have no checksums.
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if torn := archive.testzip():
                raise ValueError(f"the checksum of {torn} is wrong")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(np.memmap(path, mode="r")).hexdigest()


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

    Raises InputError naming keys that are missing, left over, of another shape or not finite.
    """
    if not is_state_dict(state_dict):
        raise InputError(f"{source} holds no state_dict; expected tensors by their names")
    # torch's own message does not say what to do.
    own = module.state_dict()
    common = own.keys() & state_dict.keys()
    faults = {
        "missing": own.keys() - common,
        "left over": state_dict.keys() - common,
        "of another shape": {n for n in common if own[n].shape != state_dict[n].shape},
    }
    if any(faults.values()):
        found = [f"{what}: {some(sorted(names), 2)}" for what, names in faults.items() if names]
        why, where = "; ".join(found), "--arch, --stem, --channels, the head's options"
        raise InputError(f"{source} does not fit the model ({why}); check {where}")
    # As the module's own type holds them.
    broken = [n for n, value in state_dict.items() if not value.to(own[n].dtype).isfinite().all()]
    if broken:
        why = f"{source} holds numbers that are not finite, in {some(broken, 3)}"
        raise InputError(f"{why}; take a checkpoint from before they came")
    module.load_state_dict(state_dict)


def check_goes_on(state: dict, source: str, kind: str) -> None:
    """Raise InputError where a file lacks what a run goes on from. kind: what it has to be."""
    for key in ("epoch", "state_dict", "optimizer"):
        if key not in state:
            raise InputError(f"{source} has no {key!r}; to go on from it, it has to be {kind}")


KINDS = {"betas", "trust_coeff"}  # what groups of AdamW, and of LARS, have and SGD's have not


def load_optimizer_(optimizer: Optimizer, state: dict, source: str) -> None:
    """Load an optimizer's momenta. Rates, decay and the kind of kernel stay those of this run.

    Of two encoders it may be kept over the parameters of the query encoder alone: the key encoder's
    come last and have none, so the numbering is the same. Raises InputError where it does not fit.
    """
    own = optimizer.state_dict()["param_groups"]
    try:
        kind, here = (KINDS & groups[0].keys() for groups in (state["param_groups"], own))
        if kind != here:
            raise ValueError("it is another --optimizer's")
        for group, ours in zip(state["param_groups"], own, strict=True):
            theirs, number = len(group["params"]), len(ours["params"])
            if theirs not in (number, number // 2):
                raise ValueError(f"{theirs} parameters for {number}")
        optimizer.load_state_dict({"state": state["state"], "param_groups": own})
        for parameter, kept in optimizer.state.items():
            # A count of steps has no shape.
            for name in [n for n, x in kept.items() if torch.is_tensor(x) and n != "step"]:
                if kept[name].shape != parameter.shape:
                    raise ValueError(f"momentum {tuple(kept[name].shape)}")
                if not kept[name].isfinite().all():
                    raise ValueError("momentum that is not finite")
                # Laid out as the parameter: a fused step walks both in the order of memory.
                kept[name] = torch.empty_like(parameter, requires_grad=False).copy_(kept[name])
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        what = f"the optimizer state in {source}"
        raise InputError(f"{what} does not fit this model: {shown(error)}") from error
