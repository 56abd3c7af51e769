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


EVERY = {
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm", "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False, "MODEL.BACKBONE.FREEZE_AT": 0, "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53], "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "TEST.PRECISE_BN.ENABLED": True, "SOLVER.IMS_PER_BATCH": 16, "SOLVER.BASE_LR": 0.02,
}  # fmt: skip
OF_PASCAL = {
    "DATASETS.TRAIN": "('voc_2007_trainval', 'voc_2012_trainval')",
    "DATASETS.TEST": "('voc_2007_test',)", "INPUT.MIN_SIZE_TRAIN": scales(480),
    "SOLVER.MAX_ITER": 24000, "SOLVER.STEPS": "(18000, 22000)", "SOLVER.WARMUP_ITERS": 100,
    "MODEL.MASK_ON": False, "MODEL.ROI_HEADS.NUM_CLASSES": 20,
}  # fmt: skip
OF_COCO = {
    "DATASETS.TRAIN": "('coco_2017_train',)", "DATASETS.TEST": "('coco_2017_val',)",
    "SOLVER.MAX_ITER": 180000, "SOLVER.STEPS": "(120000, 160000)",
    "INPUT.MIN_SIZE_TRAIN": scales(640), "MODEL.MASK_ON": True,
}  # fmt: skip


@pytest.mark.parametrize("name", PASCAL + COCO)
def test_every_run_has_the_published_detector_and_numbers(name):
    found = {key: str(value).replace('"', "'") for key, value in resolved(f"{name}.yaml").items()}
    for key, value in (EVERY | (OF_PASCAL if name in PASCAL else OF_COCO)).items():
        assert found[key] == str(value), key


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
