"""What a run begins with where --init names a file: its trunk, in both encoders."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from adco.encoder import TrunkWeights, read_trunk
from adco.model import AdCo
from adco.pretrain.options import PretrainConfig
from ops.checkpoint import load_strictly
from ops.errors import InputError


def read_init(config: PretrainConfig) -> TrunkWeights | None:
    """The trunk in the file of --init. None: there is none to begin with, or a run that goes on
    has one no more, and needs none.

    Raises InputError where it is one of another --arch, or the file is not that of --init_sha256.
    """
    if not config.init or (config.resume == "auto" and not Path(config.init).exists()):
        return None
    trunk = read_trunk(config.init, arch=config.arch)
    if config.init_sha256 not in (None, trunk.sha256):
        raise InputError(f"{config.init} has another SHA-256 than --init_sha256: {trunk.sha256}")
    return replace(trunk, stem=config.stem or trunk.stem, channels=config.channels)


def with_init_hash(config: PretrainConfig) -> PretrainConfig:
    """The options with the hash of the --init file, which decides which run it is.

    Raises InputError where the file does not fit, before anything else is done.
    """
    if trunk := read_init(config):
        trunk.build()
        return replace(config, init_sha256=trunk.sha256, stem=trunk.stem)
    if config.init and config.stem is None:
        return replace(config, stem=stem_before(config))
    return config


def stem_before(config: PretrainConfig) -> str | None:
    """The first layers of the newest run that began with the --init file, which is gone; None:
    there is none.
    """
    files = config.log_folder.rglob("config.json")
    for path in sorted(files, key=lambda path: path.parent.name, reverse=True):
        with suppress(OSError, ValueError, KeyError, TypeError):  # of another program
            kept = json.loads(path.read_text())["config"]
            if kept["init"] == config.init:
                return kept["stem"]
    return None


def begin_with_(model: AdCo, trunk: TrunkWeights) -> list[str]:
    """Give both encoders a trunk; the head of two layers beside it too, where its shapes fit.

    Another head stays fresh: one layer may be a classifier. Returns what was taken and left out, in
    sentences.
    """
    query, head = model.encoder_q, trunk.head
    trunk.load_into_(query)
    own, theirs = ({n: x.shape for n, x in fc.items()} for fc in (query.fc.state_dict(), head))
    fits = own == theirs and "0.weight" in head
    if fits:
        load_strictly(query.fc, head, trunk.source)
    model.encoder_k.load_state_dict(query.state_dict())

    trained = "" if trunk.epoch is None else f" after {trunk.epoch} epochs"
    head_is = "the file's too" if fits else "fresh"
    said = [f"both encoders begin with the {trunk.arch} in {trunk.source}{trained}"]
    said.append(f"the projection head is {head_is}")
    trunk.tell_left_out(said.append, *["fc"] * fits)
    return said
