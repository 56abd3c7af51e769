"""The detection runs, as far as they can be held without detectron2."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "detection" / "configs"
PASCAL = ("pascal_voc_R_50_C4_24k", "pascal_voc_R_50_C4_24k_adco")
COCO = ("coco_R_50_C4_2x", "coco_R_50_C4_2x_adco")


def resolved(name: str) -> dict:
    """A configuration laid over its bases, as flat names, "MODEL.MASK_ON" -> value."""
    content = yaml.safe_load((CONFIGS / name).read_text())
    base = content.pop("_BASE_", None)
    return {**(resolved(base) if base else {}), **flat(content)}


def flat(tree: dict, prefix: str = "") -> dict:
    found = {}
    for name, value in tree.items():
        inner = (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
        found |= inner
    return found


def scales(low: int) -> str:
    return str(tuple(range(low, 801, 32)))


@pytest.mark.parametrize("name", PASCAL + COCO)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.ROI_HEADS.NAME", "Res5ROIHeadsExtraNorm"),
        ("MODEL.RESNETS.NORM", "SyncBN"),
        ("MODEL.RESNETS.STRIDE_IN_1X1", False),
        ("MODEL.BACKBONE.FREEZE_AT", 0),
        ("MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53]),
        ("MODEL.PIXEL_STD", [58.395, 57.12, 57.375]),
        ("INPUT.FORMAT", "RGB"),
        ("TEST.PRECISE_BN.ENABLED", True),
        ("SOLVER.IMS_PER_BATCH", 16),
        ("SOLVER.BASE_LR", 0.02),
    ],
)
def test_every_run_shares_the_c4_detector(name, key, value):
    assert resolved(f"{name}.yaml")[key] == value


@pytest.mark.parametrize("name", PASCAL)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATASETS.TRAIN", "('voc_2007_trainval', 'voc_2012_trainval')"),
        ("DATASETS.TEST", "('voc_2007_test',)"),
        ("SOLVER.MAX_ITER", 24000),
        ("SOLVER.STEPS", "(18000, 22000)"),
        ("SOLVER.WARMUP_ITERS", 100),
        ("INPUT.MIN_SIZE_TRAIN", scales(480)),
        ("MODEL.MASK_ON", False),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 20),
    ],
)
def test_pascal_runs_have_the_published_numbers(name, key, value):
    assert as_text(resolved(f"{name}.yaml")[key]) == as_text(value)


@pytest.mark.parametrize("name", COCO)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATASETS.TRAIN", "('coco_2017_train',)"),
        ("DATASETS.TEST", "('coco_2017_val',)"),
        ("SOLVER.MAX_ITER", 180000),
        ("SOLVER.STEPS", "(120000, 160000)"),
        ("INPUT.MIN_SIZE_TRAIN", scales(640)),
        ("MODEL.MASK_ON", True),
    ],
)
def test_coco_runs_have_the_published_numbers(name, key, value):
    assert as_text(resolved(f"{name}.yaml")[key]) == as_text(value)


def as_text(value) -> str:
    return str(value).replace('"', "'")


@pytest.mark.parametrize("name", [PASCAL[1], COCO[1]])
def test_an_adco_run_differs_from_its_rival_in_weights_and_output_only(name):
    ours, theirs = resolved(f"{name}.yaml"), resolved(f"{name.removesuffix('_adco')}.yaml")
    assert {key for key in ours if ours[key] != theirs.get(key)} == {"MODEL.WEIGHTS", "OUTPUT_DIR"}


@pytest.mark.skipif(find_spec("detectron2") is not None, reason="detectron2 is installed")
@pytest.mark.parametrize("folder", [ROOT, ROOT / "detection"])
def test_without_detectron2_one_sentence_says_how_to_install_it(folder):
    script = (ROOT / "detection" / "train_net.py").relative_to(folder)
    options = ["--config-file", f"configs/{PASCAL[1]}.yaml", "--num-gpus", "8"]
    done = subprocess.run([sys.executable, script, *options], cwd=folder, capture_output=True)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert "pip install" in line
