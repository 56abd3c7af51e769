"""Tiny real pictures and trunks for the tests of the probe."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adco.encoder import build_trunk
from adco.probe.options import ProbeConfig
from adco.probe.run import run
from ops import checkpoint

COLOURS = {"azure": (30, 60, 220), "green": (20, 200, 40), "red": (220, 30, 30)}


def paint(path, colour, rng, size=24, noise=25):
    """A noisy picture of one colour: classes that any features tell apart."""
    change = rng.integers(-noise, noise + 1, 3) + rng.integers(-25, 26, (size, size, 3))
    pixels = np.clip(np.array(colour) + change, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def class_folders(root, num_train=8, num_val=5, noise=25):
    """train/COLOUR/picture and val/COLOUR/picture below root."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_train), ("val", num_val)):
        for name, colour in COLOURS.items():
            for i in range(count):
                paint(root / split / name / f"{name}_{i}.png", colour, rng, noise=noise)
    return root


def trunk_file(path, arch="resnet10", seed=1):
    """A checkpoint of the published kind with random weights and used BatchNorm statistics."""
    torch.manual_seed(seed)
    trunk = build_trunk(arch)
    for _ in range(5):
        trunk(torch.randn(8, 3, 32, 32))
    names = {f"module.encoder_q.{n}": v for n, v in trunk.state_dict().items()}
    names = {n: v for n, v in names.items() if ".fc." not in n}
    checkpoint.save({"epoch": 1, "arch": arch, "state_dict": names}, path)
    return str(path)


def small_config(folder, trunk, **options):
    """A probe of small pictures, in seconds."""
    defaults = dict(
        dataset="folder", data=str(folder), pretrained=trunk, image_size=32, batch_size=10,
        epochs=2, lr=0.5, workers=0, save_path=str(Path(folder) / "out"), device="cpu",
        min_scale=0.5,
    )  # fmt: skip
    return ProbeConfig(**{**defaults, **options}).with_global_batch(1, 1)


def run_folder(config):
    """The newest folder that a run has written."""
    written = Path(config.save_path).rglob("config.json")
    return max(written, key=lambda path: path.stat().st_mtime_ns).parent


def run_each(configs, config, world, device):
    """Several runs in one process group."""
    return max(run(each, world, device) for each in configs)
