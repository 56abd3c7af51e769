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
from torch import Tensor

from adco.data.identity import in_words
from adco.encoder import Backbone, Encoder, Trunk, TrunkWeights, read_trunk
from ops import checkpoint
from ops.arguments import argument, option, parse
from ops.errors import InputError, RunFailed, one_line, optional, reported, steady_streams
from ops.files import write_whole
from ops.options import ARCHITECTURES, TIMM
from ops.run_folder import provenance

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
        if self.to == "hub" and Path(self.out).exists():
            raise InputError(f"out={self.out!r} exists; give the name of a new folder")
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
    encoder = trunk.build().eval()
    weights = {
        name.removeprefix("trunk."): value
        for name, value in encoder.state_dict().items()
        if not name.startswith("fc.")
    }
    check_format(config.to, trunk, config.checkpoint)

    out = Path(config.out)
    try:
        if config.to == "hub":
            write_hub(encoder, weights, trunk, out)
        else:
            write_whole(out, content_of(config.to, encoder, weights, trunk))
    except OSError as error:
        raise RunFailed(f"NOT SAVED: {config.out} could not be written ({error})") from error
    trunk.tell_left_out(print)
    if config.push:
        push(out, config.push)
    return len(weights)


def check_format(to: str, trunk: TrunkWeights, source: str) -> None:
    """Raise InputError where the other program has no model for a trunk."""
    if to not in ("safetensors", "onnx") and trunk.stem != "imagenet":
        raise InputError(
            f"{source} has the stem for small pictures, which no {to} model has; use --to "
            "safetensors or onnx"
        )
    if to in ("torchvision", "detectron2") and trunk.channels != 3:
        raise InputError(
            f"{source} takes pictures of {trunk.channels} channels, and {to}'s models take 3; use "
            "--to timm (in_chans), hub, onnx or safetensors"
        )
    if to in ("torchvision", "detectron2") and trunk.arch.startswith(TIMM):
        raise InputError(
            f"{source} holds a {trunk.arch}, and {to} takes torchvision's ResNets; use --to timm, "
            "hub, onnx or safetensors"
        )


def content_of(
    to: str, encoder: Encoder, weights: dict[str, Tensor], trunk: TrunkWeights
) -> bytes | memoryview:
    """The bytes of the file."""
    if to in ("torchvision", "timm"):
        return checkpoint.content_of(weights)
    if to == "safetensors":
        return safetensors_file(weights, header(trunk))
    return onnx_file(encoder, trunk) if to == "onnx" else detectron2_pickle(weights)


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


def onnx_file(encoder: Encoder, trunk: TrunkWeights) -> bytes:
    """Trunk as ONNX: any number of pictures, of the side that they had in training, to features."""
    optional("onnxscript", "--to onnx")
    side = image_size(trunk)
    pictures = torch.zeros(2, trunk.channels, side, side)
    program = torch.onnx.export(
        Trunk(encoder).eval(), (pictures,), dynamo=True, dynamic_shapes=[{0: "batch"}], verbose=False,
        input_names=["pictures"], output_names=["features"],
    )  # fmt: skip
    return program.model_proto.SerializeToString()


def image_size(trunk: TrunkWeights) -> int:
    """Side of the pictures that a trunk was trained on."""
    return trunk.run.get("config", {}).get("image_size", 224)


def write_hub(encoder: Encoder, weights: dict[str, Tensor], trunk: TrunkWeights, out: Path) -> None:
    """A folder as timm and the Hugging Face hub expect it: config.json, model.safetensors, and a
    model card. Whole or not at all.
    """
    timm = optional("timm", "--to hub")
    optional("huggingface_hub", "--to hub")
    if isinstance(encoder, Backbone):
        model, args = encoder.trunk, encoder.args
    else:
        # timm has no resnet10: it is a resnet18 of fewer blocks.
        name, args = trunk.arch, {"in_chans": trunk.channels}
        if name == "resnet10":
            name, args = "resnet18", {**args, "layers": [1, 1, 1, 1]}
        model = timm.create_model(name, num_classes=0, **args)
        checkpoint.load_strictly(model, weights, f"timm's {name}")
    size = image_size(trunk)
    used = {"input_size": [trunk.channels, size, size], "crop_pct": 0.875}
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made = Path(folder) / "made"
        timm.models.save_for_hf(
            model, made, {"pretrained_cfg": used}, args, safe_serialization=True
        )
        (made / "README.md").write_text(model_card(trunk, model))
        made.rename(out)


def model_card(trunk: TrunkWeights, model) -> str:
    """README.md of the folder, with what the hub reads at its head."""
    run, licence = trunk.run, header(trunk)["licence"]
    config = run.get("config", {})
    scores = {run.get("best_of", ""): run.get("best_acc"), "linear probe": run.get("best_acc1")}
    settings = {n: config[n] for n in SETTINGS if config.get(n) not in (None, "")}
    lines = {
        "Epochs": header(trunk)["epoch"],
        "Data": "; ".join(f"{n}: {in_words(part)}" for n, part in run.get("data", {}).items()),
        "Settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
        "Scores": ", ".join(f"{n} {float(x):.2f}" for n, x in scores.items() if x),
        "Licence": licence,
        "Checkpoint": f"SHA-256 {trunk.sha256}",
    }
    said = "\n".join(f"- {name}: {text or 'not known'}" for name, text in lines.items())
    return CARD.format(licence="mit" if trunk.ours else "other", arch=trunk.arch, said=said)


SETTINGS = (
    "dataset", "image_size", "init", "epochs", "global_batch_size", "optimizer", "lr",
    "weight_decay", "cluster", "moco_dim", "moco_m", "moco_t", "mem_t", "memory_lr", "mlp", "sym",
    "multi_crop", "seed",
)  # fmt: skip
CARD = """---
library_name: timm
license: {licence}
pipeline_tag: image-feature-extraction
tags: [timm, image-feature-extraction, self-supervised]
---
# {arch}, pre-trained with AdCo

Features without labels, by contrast with learnable adversaries (arXiv:2011.08435).

{said}

```python
model = timm.create_model("hf-hub:USER/NAME", pretrained=True)  # or local-dir:FOLDER
features = model.eval()(pictures)
```
"""


def push(folder: Path, name: str) -> None:
    """Upload the folder to the Hugging Face hub. Raises RunFailed where that cannot be done."""
    try:
        hub = optional("huggingface_hub", "--push")
        made = hub.HfApi().create_repo(name, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder)
    except Exception as error:  # not signed in, no network, no such user
        raise RunFailed(
            f"{folder} is written, but NOT PUSHED as {name} ({one_line(str(error))}); sign in "
            f"(hf auth login), then: hf upload {name} {folder}"
        ) from error
    print(f"pushed as {made.repo_id}")


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
