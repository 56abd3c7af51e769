"""Encoders for other programs: python3 -m adco.export CHECKPOINT OUT --to FORMAT.

torchvision  a state dict for torchvision.models.resnet50() with fc = nn.Identity()
timm         the same, for timm.create_model("resnet50", num_classes=0, checkpoint_path=OUT)
safetensors  the same names in a file without pickle; its header says what they are
detectron2   the pickle that detectron2 reads, with its names
"""

import copyreg
import io
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from adco.encoder import TrunkWeights, read_trunk
from ops import checkpoint
from ops.arguments import argument, option, parse
from ops.errors import InputError, RunFailed, reported, steady_streams
from ops.files import write_whole
from ops.options import ARCHITECTURES
from ops.run_folder import provenance

FORMATS = ("torchvision", "timm", "safetensors", "detectron2")


@dataclass(frozen=True)
class ExportConfig:
    """Take the encoder out of a checkpoint, without its head, in the form another program reads."""

    checkpoint: str = argument("checkpoint of any program that uses torchvision's ResNets")
    out: str = argument("file to write")
    to: str = option("torchvision", "which program is to read it", choices=FORMATS)
    encoder: str = option("query", "which encoder", choices=("query", "key"))
    arch: str = option(
        None, "architecture, where the file does not name it (resnet50)", choices=ARCHITECTURES
    )

    def __post_init__(self):
        if Path(self.out).is_dir():
            raise InputError(f"out={self.out!r} is a folder; give the file to write")
        if not Path(self.out).resolve().parent.is_dir():
            raise InputError(f"out={self.out!r}: its folder does not exist; make it first")
        if Path(self.out).resolve() == Path(self.checkpoint).resolve():
            raise InputError(f"out={self.out!r} is the checkpoint itself; give another file")


def export(config: ExportConfig) -> int:
    """Write the file. Returns how many tensors it holds.

    Raises InputError, and RunFailed where it cannot be written: nothing is left behind then.
    """
    # Building the model checks that the weights are whole.
    trunk = read_trunk(config.checkpoint, config.encoder, config.arch)
    full = trunk.build().state_dict()
    weights = {name: full[name] for name in full if not name.startswith("fc.")}

    # What the other program has no model for.
    if config.to != "safetensors" and trunk.stem != "imagenet":
        raise InputError(
            f"{config.checkpoint} has the stem for small pictures, which no {config.to} model has; "
            "use --to safetensors"
        )
    if config.to in ("torchvision", "detectron2") and trunk.channels != 3:
        raise InputError(
            f"{config.checkpoint} takes pictures of {trunk.channels} channels, and {config.to}'s "
            "models take 3; use --to timm (in_chans) or safetensors"
        )
    if config.to == "timm" and trunk.arch == "resnet10":
        raise InputError("timm has no resnet10 of this kind; use --to torchvision or safetensors")

    if config.to in ("torchvision", "timm"):
        content = checkpoint.content_of(weights)
    elif config.to == "safetensors":
        content = safetensors_file(weights, header(trunk))
    else:
        content = detectron2_pickle(weights)
    try:
        write_whole(Path(config.out), content)
    except OSError as error:
        raise RunFailed(f"NOT SAVED: {config.out} could not be written ({error})") from error
    trunk.tell_left_out(print)
    return len(weights)


def header(trunk: TrunkWeights) -> dict[str, str]:
    """What the weights are, where they come from, and under which licence."""
    return {
        "format": "pt",
        "arch": trunk.arch,
        "stem": trunk.stem,
        "channels": str(trunk.channels),
        "epoch": "unknown" if trunk.epoch is None else str(trunk.epoch),
        "commit": provenance()["commit"] or "unknown",  # of the program that exported
        "licence": "MIT" if trunk.ours else "that of the checkpoint's authors",
    }


def safetensors_file(weights: dict[str, Tensor], header: dict[str, str]) -> bytes:
    from safetensors.torch import save

    return save(weights, header)


def detectron2_pickle(weights: dict[str, Tensor]) -> bytes:
    """The pickle, with numpy's public names only: numpy 1.22 to 2 read it."""
    # The heuristics let detectron2 find these names below prefixes of its own.
    arrays = {detectron2_name(name): value.numpy() for name, value in weights.items()}
    content = {"model": arrays, "__author__": "AdCo", "matching_heuristics": True}
    # Pickled as usual, an array names a module that numpy 2 has moved. Its own buffer is writable.
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=4)
    pickler.dispatch_table = copyreg.dispatch_table | {
        np.ndarray: lambda a: (np.ndarray, (a.shape, a.dtype.str, bytearray(a.tobytes())))
    }
    pickler.dump(content)
    return file.getvalue()


# From torchvision's names to detectron2's, in this order.
RENAMES = (
    (r"^(?!layer)", "stem."),  # conv1, bn1
    (r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}"),
    (r"bn(\d)", r"conv\1.norm"),
    (r"downsample\.0", "shortcut"),
    (r"downsample\.1", "shortcut.norm"),
)


def detectron2_name(name: str) -> str:
    """layer1.0.bn2.weight of torchvision is res2.0.conv2.norm.weight in detectron2."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def main(argv=None, program: str = "adco.export") -> int:
    with reported(program):
        config = parse(ExportConfig, argv)
        num_tensors = export(config)
        print(
            f"wrote {config.out}: {num_tensors} tensors of the {config.encoder} encoder "
            f"for {config.to}"
        )
        return 0


if __name__ == "__main__":
    steady_streams()
    sys.exit(main())
