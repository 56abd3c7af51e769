"""What a run begins with where --init names a file: its trunk, in both encoders."""

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

    Raises InputError where it is one of another --arch or --stem, or the file is another.
    """
    if not config.init or (config.resume == "auto" and not Path(config.init).exists()):
        return None
    trunk = read_trunk(config.init, arch=config.arch)
    first = trunk.weights.get("conv1.weight")
    stem = "small" if first is not None and first.shape[2:] == (3, 3) else "imagenet"
    if stem != config.stem:
        raise InputError(
            f"{config.init} has the first layers of --stem {stem}, this run those of "
            f"{config.stem}: --stem {stem}"
        )
    if config.init_sha256 not in (None, trunk.sha256):
        raise InputError(
            f"{config.init} has the SHA-256 {trunk.sha256}, and --init_sha256 wants "
            f"{config.init_sha256}; fetch the file that is meant"
        )
    return replace(trunk, stem=stem)


def with_init_hash(config: PretrainConfig) -> PretrainConfig:
    """The options with the hash of the --init file, which is found to fit before anything is done.

    The hash decides which run it is, wherever the file lies.
    """
    trunk = read_init(config)
    if trunk is None:
        return config
    trunk.build()
    return replace(config, init_sha256=trunk.sha256)


def begin_with_(model: AdCo, trunk: TrunkWeights) -> list[str]:
    """Give both encoders a trunk; the head of two layers beside it too, where its shapes fit.

    Another head stays fresh: one layer may be a classifier. Returns what was taken and left out, in
    sentences.
    """
    query, head = model.encoder_q, trunk.head
    trunk.load_into_(query)
    shapes = [{n: x.shape for n, x in fc.items()} for fc in (query.fc.state_dict(), head)]
    fits = "0.weight" in head and shapes[0] == shapes[1]
    if fits:
        load_strictly(query.fc, head, trunk.source)
    model.encoder_k.load_state_dict(query.state_dict())

    trained = "" if trunk.epoch is None else f" after {trunk.epoch} epochs"
    sentences = [
        f"both encoders begin with the {trunk.arch} in {trunk.source}{trained}; the projection "
        + ("head is the file's too" if fits else "head is fresh")
    ]
    trunk.tell_left_out(sentences.append, *["fc"] * fits)
    return sentences
