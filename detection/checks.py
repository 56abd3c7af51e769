"""What a detection run needs, looked at before anything is built. detectron2 is not needed here."""

import os
import zipfile
from pathlib import Path

import torch

from ops import checkpoint
from ops.errors import InputError

CONVERT = "convert it: python3 convert-pretrain-to-detectron2.py input.pth.tar output.pkl"


def check_config_file(path: str) -> None:
    beside = Path(__file__).resolve().parent / path
    if not path or not Path(path).is_file():
        is_here = beside.is_file() and f": it is {os.path.relpath(beside)}"
        raise InputError(f"no configuration at {path!r}{is_here or '; give --config-file FILE'}")


def check_weights(path: str) -> None:
    """Refuse MODEL.WEIGHTS that are not there, or that have no names of detectron2's.

    detectron2 would go on with random weights.
    """
    if not path or "://" in path:
        return
    if not Path(path).is_file():
        raise InputError(f"MODEL.WEIGHTS {path}: no such file; if it is a checkpoint, {CONVERT}")
    if path.endswith(".pkl") and not zipfile.is_zipfile(path):
        return  # a pickle runs code when it is read: left to detectron2
    state = checkpoint.load(path)
    if "model" not in state and not any("res2." in str(name) for name in state):
        raise InputError(f"MODEL.WEIGHTS {path} has not detectron2's names; {CONVERT}")


def check_data(names: list[str]) -> None:
    """Refuse data sets of VOC and COCO that are not below $DETECTRON2_DATASETS."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    for name in names:
        kind, year, split = [*name.split("_", 2), "", ""][:3]
        files = {
            "voc": [f"VOC{year}/ImageSets/Main/{split}.txt", f"VOC{year}/Annotations"],
            "coco": [f"coco/annotations/instances_{split}{year}.json", f"coco/{split}{year}"],
        }
        for file in files.get(kind, []):
            if not (root / file).exists():
                expected = "VOC2007/, VOC2012/ and coco/ lie directly in $DETECTRON2_DATASETS"
                raise InputError(f"{name} needs {root / file}; {expected} (default: ./datasets)")


def check_device(device: str, num_gpus: int) -> None:
    found = torch.cuda.device_count()
    if found < (max(1, num_gpus) if device.startswith("cuda") or num_gpus > 1 else 0):
        on_cpu = "--num-gpus 0 MODEL.DEVICE cpu MODEL.RESNETS.NORM BN"
        raise InputError(f"--num-gpus {num_gpus}: torch finds {found} GPU(s); on a CPU: {on_cpu}")
