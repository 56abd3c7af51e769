"""Encoders for other programs: python3 -m adco.export CHECKPOINT OUT --to FORMAT.

torchvision  a state dict for torchvision.models.resnet50() with fc = nn.Identity()
timm         the same, for timm.create_model("resnet50", num_classes=0, checkpoint_path=OUT)
hub          a folder for timm.create_model("local-dir:OUT", pretrained=True), with a model card
safetensors  the names of torchvision or timm, without pickle; the header says what they are
onnx         pictures to features, for onnxruntime and others
detectron2   the pickle that detectron2 reads, with its names
"""

import copyreg
import io
import pickle
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from adco.data.identity import in_words
from adco.encoder import Backbone, Encoder, Trunk, TrunkWeights, read_trunk
from ops import checkpoint
from ops.arguments import argument, command, option
from ops.errors import InputError, RunFailed, one_line, optional
from ops.files import told_if_not_written, write_whole
from ops.options import ARCHITECTURES, TIMM
from ops.run_folder import provenance

ADCO = "arXiv:2011.08435"
FORMATS = ("torchvision", "timm", "hub", "safetensors", "onnx", "detectron2")


@dataclass(frozen=True)
class ExportConfig:
    """Take the encoder out of a checkpoint, without its head, in the form another program reads."""

    checkpoint: str = argument("checkpoint of any program, with a ResNet or a model of timm")
    out: str = argument("file to write; hub: the folder")
    to: str = option("torchvision", "which program is to read it", choices=FORMATS)
    encoder: str = option("query", "which encoder", choices=("query", "key"))
    arch: str = option(
        None, "architecture, where the file does not name it (resnet50)", choices=ARCHITECTURES
    )
    push: str = option("", "hub: upload the folder to this repository, USER/NAME")

    def __post_init__(self):
        if self.push and self.to != "hub":
            raise InputError(f"push={self.push!r} belongs to --to hub")
        if Path(self.out).is_dir():
            raise InputError(f"out={self.out!r} is a folder; give the file to write (hub: new)")
        if not Path(self.out).resolve().parent.is_dir():
            raise InputError(f"out={self.out!r}: its folder does not exist; make it first")
        if Path(self.out).resolve() == Path(self.checkpoint).resolve():
            raise InputError(f"out={self.out!r} is the checkpoint itself; give another file")


def export(config: ExportConfig) -> None:
    """Write the file.

    Raises InputError, and RunFailed where it cannot be written: nothing is left behind then.
    """
    # Building the model checks that the weights are whole.
    trunk = read_trunk(config.checkpoint, config.encoder, config.arch)
    encoder = trunk.build().eval()
    full = encoder.state_dict()
    weights = {n.removeprefix("trunk."): full[n] for n in full if not n.startswith("fc.")}
    check_format(config.to, trunk, config.checkpoint)

    out = Path(config.out)
    with told_if_not_written(f"NOT SAVED: {out}"):
        if config.to == "hub":
            write_hub(encoder, weights, trunk, out)
        else:
            write_whole(out, content_of(config.to, encoder, weights, trunk))
    trunk.tell_left_out(print)
    if config.push:
        push(out, config.push)
    what = f"{len(weights)} tensors of the {config.encoder} encoder for {config.to}"
    print(f"wrote {config.out}: {what}")


def content_of(to: str, encoder: Encoder, weights: dict[str, Tensor], trunk: TrunkWeights):
    """The bytes of a file in one of FORMATS."""
    if to == "safetensors":
        return save(weights, header(trunk))
    if to == "onnx":
        return onnx_file(encoder, trunk)
    return detectron2_pickle(weights) if to == "detectron2" else checkpoint.content_of(weights)


def check_format(to: str, trunk: TrunkWeights, source: str) -> None:
    """Raise InputError where the other program has no model for a trunk."""
    plain = to in ("timm", "hub") or (trunk.channels == 3 and not trunk.arch.startswith(TIMM))
    if to not in ("safetensors", "onnx") and not (plain and trunk.stem == "imagenet"):
        raise InputError(
            f"{source} holds a {trunk.arch} of {trunk.channels} channels with the stem "
            f"{trunk.stem!r}, which no {to} model has; use --to safetensors or onnx of adco.export"
        )


def header(trunk: TrunkWeights) -> dict[str, str]:
    """What the weights are, where they come from, and under which licence."""
    said = {name: str(getattr(trunk, name)) for name in ("arch", "stem", "channels")}
    return {
        "format": "pt",
        **said,
        "epoch": "unknown" if trunk.epoch is None else str(trunk.epoch),
        "commit": provenance()["commit"] or "unknown",  # of the program that exported
        "licence": "MIT" if trunk.ours else "that of the checkpoint's authors",
    }


def onnx_file(encoder: Encoder, trunk: TrunkWeights) -> bytes:
    """The trunk for any number of pictures, of the side that they had in training."""
    optional("onnxscript", "--to onnx")
    program = torch.onnx.export(
        Trunk(encoder).eval(), (torch.zeros(2, *input_size(trunk)),), dynamo=True, verbose=False,
        dynamic_shapes=[{0: "batch"}], input_names=["pictures"], output_names=["features"],
    )  # fmt: skip
    return program.model_proto.SerializeToString()


def input_size(trunk: TrunkWeights) -> list[int]:
    """[C, S, S] of the pictures that a trunk was trained on; S is 224 where nobody says it."""
    return [trunk.channels, *[trunk.run.get("config", {}).get("image_size", 224)] * 2]


def write_hub(encoder: Encoder, weights: dict, trunk: TrunkWeights, out: Path) -> None:
    """A folder as timm and the Hugging Face hub expect it, whole or not at all: config.json,
    model.safetensors, and a model card.
    """
    timm = optional("timm", "--to hub")
    args = encoder.args if isinstance(encoder, Backbone) else {"in_chans": trunk.channels}
    name = trunk.arch.removeprefix(TIMM)
    if name == "resnet10":  # which timm has as a resnet18 of fewer blocks
        name, args = "resnet18", {**args, "layers": [1, 1, 1, 1]}
    model = timm.create_model(name, num_classes=0, **args)
    model.load_state_dict(weights)
    # A ViT's positions are for timm's size: with another one some versions would resample them.
    fixed = model.pretrained_cfg.get("fixed_input_size")
    size = [trunk.channels, *model.pretrained_cfg["input_size"][1:]] if fixed else input_size(trunk)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made = Path(folder) / "made"
        cfg = {"pretrained_cfg": {"input_size": size, **about_weights(trunk)}}
        timm.models.save_for_hf(model, made, cfg, args, safe_serialization=True)
        # Private (timm 0.9 to 1.0), and what timm's own push_to_hf_hub writes its card with.
        (made / "README.md").write_text(model_card(trunk, timm.models._hub.generate_readme))
        made.rename(out)


def about_weights(trunk: TrunkWeights) -> dict:
    """What timm says of weights, in place of what it would say of its own of that name."""
    crop = 224 / 256 if trunk.run.get("config", {}).get("eval_crop", 1) else 1.0
    paper = ADCO if trunk.ours else ""
    said = {"tag": "", "origin_url": "", "paper_name": "", "paper_ids": paper, "crop_pct": crop}
    return {**said, "license": licence(trunk), "test_input_size": None, "test_crop_pct": None}


def licence(trunk: TrunkWeights) -> str:
    return "mit" if trunk.ours else "other"


def model_card(trunk: TrunkWeights, generate_readme) -> str:
    """README.md: what the hub reads, then data, settings, scores and licence, as far as known."""
    config = trunk.run.get("config", {})
    details = header(trunk) | {
        "data": {part: in_words(kept) for part, kept in (trunk.run.get("data") or {}).items()},
        "settings": {name: config[name] for name in SETTINGS if config.get(name) is not None},
        "scores": {n: x for n, x in trunk.run.items() if n.startswith("best") and x},
        "checkpoint": f"SHA-256 {trunk.sha256}",
    }
    said = f"Pre-trained without labels by adversarial contrast (AdCo, {ADCO})."
    card = dict(license=licence(trunk), description=said, details=details)
    return generate_readme({**card, "tags": ["timm"]}, trunk.arch, "image-feature-extraction")


SETTINGS = (
    "dataset", "image_size", "init_sha256", "epochs", "global_batch_size", "optimizer", "lr",
    "weight_decay", "cluster", "moco_t", "mem_t", "memory_lr", "sym", "multi_crop", "seed",
)  # fmt: skip


def push(folder: Path, name: str) -> None:
    """Upload the folder to the Hugging Face hub. Raises RunFailed where that cannot be done."""
    try:
        hub = optional("huggingface_hub", "--push")
        made = hub.HfApi().create_repo(name, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder)
    except Exception as error:  # not signed in, no network, no such user
        why = f"{folder} is written, but NOT PUSHED as {name} ({one_line(str(error))}); sign in"
        raise RunFailed(f"{why} (hf auth login), then: hf upload {name} {folder}") from error


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


def detectron2_name(name: str) -> str:
    """layer1.0.bn2.weight of torchvision is res2.0.conv2.norm.weight in detectron2."""
    name = re.sub(r"^(?!layer)", "stem.", name)  # conv1, bn1
    name = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


main = command("adco.export", ExportConfig, export)


if __name__ == "__main__":
    sys.exit(main())
