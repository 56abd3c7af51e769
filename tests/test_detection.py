"""The detection runs, as far as they can be held without detectron2."""

import importlib
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from tests.support.scripts import assert_refused

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


def run_detection(script: str, *words, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "detection" / script), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_help_needs_no_detectron2(tmp_path):
    done = run_detection("train_net.py", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "--eval-only" in done.stdout


def test_the_converter_refuses_another_program(tmp_path):
    for words in (["--to", "timm"], ["--to=detectron2"]):
        done = run_detection("convert-pretrain-to-detectron2.py", "a", "b", *words, cwd=tmp_path)
        assert_refused(done, "convert-pretrain", "detectron2 only")


# As much of detectron2 as stands before the checks: its parser, and its configuration.
PARSER = """
import argparse

def default_argument_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config-file", default="")
    parser.add_argument("--num-gpus", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    parser.set_defaults(num_machines=1, machine_rank=0, dist_url="")
    return parser

def launch(*_, **__):
    print("built")
"""
CONFIG = """
import ast, os, yaml

class Node(dict):
    __getattr__ = dict.__getitem__

    def merge_from_file(self, path):
        content = yaml.safe_load(open(path))
        if "_BASE_" in content:
            self.merge_from_file(os.path.join(os.path.dirname(path), content.pop("_BASE_")))
        self.merge(content)

    def merge(self, content):
        for key, value in content.items():
            if isinstance(value, dict):
                self.setdefault(key, Node()).merge(value)
            else:
                self[key] = ast.literal_eval(value) if str(value).startswith("(") else value

    def merge_from_list(self, words):
        assert len(words) % 2 == 0, "Override list has odd length"
        for name, value in zip(words[::2], words[1::2]):
            *above, last = name.split(".")
            node = self
            for part in above:
                node = node[part]
            node[last] = value

    def freeze(self):
        pass

def get_cfg():
    return Node(MODEL=Node(DEVICE="cuda"))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with that part of detectron2, weights, and VOC's folders."""
    site = tmp_path_factory.mktemp("detectron2")
    (site / "detectron2").mkdir()
    for name, text in (("__init__", ""), ("engine", PARSER), ("config", CONFIG)):
        (site / "detectron2" / f"{name}.py").write_text(text)
    for year, split in ((2007, "trainval"), (2007, "test"), (2012, "trainval")):
        folder = site / "voc" / f"VOC{year}"
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{split}.txt").touch()
    torch.save({"state_dict": {"module.conv1.weight": torch.ones(1)}}, site / "ours.pth.tar")
    torch.save({"layer1.0.conv1.weight": torch.ones(1)}, site / "torchvision.pkl")
    torch.save({"model": {"backbone.res2.0.conv1.weight": torch.ones(1)}}, site / "model.pth")
    (site / "output.pkl").write_bytes(pickle.dumps({"model": {}}))
    return site


@pytest.fixture
def train_net(site, monkeypatch, capsys):
    """Runs train_net.py in this process, with that part of detectron2."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(ROOT / "detection"))

    def run(*words, cwd: Path, datasets="datasets") -> subprocess.CompletedProcess:
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
        monkeypatch.setattr(sys, "argv", ["train_net.py", *map(str, words)])
        try:
            code = importlib.import_module("train_net").main()
        except SystemExit as stop:
            code = stop.code
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return run


ON_CPU = ("MODEL.DEVICE", "cpu")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--num-gpus", 0, "MODEL.WEIGHTS", "output.pkl", *ON_CPU], ""),
        (["--num-gpus", 0, "MODEL.WEIGHTS", "model.pth", *ON_CPU], ""),
        (["--num-gpus", 0, "MODEL.WEIGHTS", "detectron2://x.pkl", *ON_CPU], ""),
        (["MODEL.WEIGHTS", "none.pkl", *ON_CPU], "no such file"),
        (["MODEL.WEIGHTS", "ours.pth.tar", *ON_CPU], "convert-pretrain-to-detectron2.py"),
        (["MODEL.WEIGHTS", "torchvision.pkl", *ON_CPU], "convert-pretrain-to-detectron2.py"),
        (["--num-gpus", 8, "MODEL.WEIGHTS", "output.pkl"], "--num-gpus 8: torch finds 0 GPU(s)"),
        (["--num-gpus", 8, "MODEL.WEIGHTS", "output.pkl", *ON_CPU], "torch finds 0 GPU(s)"),
        (["MODEL.WEIGHTS", "output.pkl"], "--num-gpus 0 MODEL.DEVICE cpu"),
        (["MODEL.WEIGHTS"], "odd length"),
    ],
)
def test_what_a_run_lacks_is_told_before_anything_is_built(train_net, site, words, sentence):
    options = ["--config-file", CONFIGS / f"{PASCAL[1]}.yaml", *words]
    done = train_net(*options, cwd=site, datasets=site / "voc")
    if sentence:
        assert_refused(done, "train_net.py: error: ", sentence)
    else:
        assert done.returncode == 0 and done.stdout == "built\n", done.stderr


def test_a_folder_or_a_configuration_that_is_not_there_is_named(train_net, site):
    at = ["--num-gpus", 0, "MODEL.WEIGHTS", "output.pkl", *ON_CPU]
    for name, words in ((PASCAL[1], "datasets/VOC2007/ImageSets"), (COCO[1], "datasets/coco")):
        done = train_net("--config-file", CONFIGS / f"{name}.yaml", *at, cwd=site)
        assert_refused(done, words, "$DETECTRON2_DATASETS")
    done = train_net("--config-file", f"configs/{PASCAL[1]}.yaml", *at, cwd=ROOT)
    assert_refused(done, f"it is detection/configs/{PASCAL[1]}.yaml")
    assert_refused(train_net(cwd=site), "give --config-file")
