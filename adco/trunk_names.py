"""Where a trunk lies in a file of any program: the prefix under which its names are."""

import re
from collections import Counter, defaultdict
from collections.abc import KeysView

import torch
from torch import Tensor

from ops.errors import InputError, some

# What torch puts into names around compiled and sharded modules.
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
# torchvision's children by their place, where they lie in a Sequential.
BY_PLACE = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# Words in the prefix of an encoder that follows another one.
FOLLOWERS = {"momentum", "teacher", "target", "ema", "average", "averaged", "k", "key"}
LEAST_NAMES = 10  # fewer are no trunk: one block has names of their kind too


def find_trunk(
    content: dict, wanted: KeysView[str], heads: list[str], encoder: str, source: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], Counter]:
    """The trunk in a file's dictionaries, under torchvision's or timm's names; what the file has on
    top of it; the number of its other tensors, by their part of the file.

    wanted: names of the trunk's tensors, batch counters aside.  heads: names of layers on top.
    encoder: key takes one that follows another (momentum, teacher, ...), query one that does not.
    Raises InputError where there is none of this kind, or more than one.
    """
    # A prefix below which names of a trunk lie may end at any dot.
    tensors, below, found = flattened(content), defaultdict(dict), defaultdict(dict)
    for name, tensor in tensors.items():
        for dot in re.finditer(r"^|\.", name):
            prefix, rest = name[: dot.end()], name[dot.end() :]
            below[prefix][rest] = found[prefix][torchvisions_name(rest)] = tensor
    every = [prefix for prefix in found if len(wanted & found[prefix].keys()) >= LEAST_NAMES]
    kind = [prefix for prefix in every if follows(prefix) == (encoder == "key")]
    if not kind:
        raise InputError(
            f"{source!r} holds no weights of a {encoder} encoder; expected the tensors of --arch "
            f"({next(iter(wanted))}, ...) below any prefix, found {some(every or [*tensors], 3)!r}"
            + ("; adco.export --encoder takes the other one" if every else "")
        )

    # Of several those in which nothing is missing or left over; they may be one under two names.
    children, tops = {name.split(".")[0] for name in wanted}, tuple(f"{head}." for head in heads)

    def belongs(name: str) -> bool:
        return name.split(".")[0] in children and not name.startswith(tops)

    trunks = {p: {name: found[p][name] for name in found[p] if belongs(name)} for p in kind}
    whole = [p for p in kind if {n for n in trunks[p] if not is_counter(n)} == wanted] or kind
    prefix, *others = whole
    if any(not equal(trunks[prefix], trunks[other]) for other in others):
        fault = f"{source!r} holds several trunks, below {some(whole, 3)!r}"
        raise InputError(f"{fault}; save the one that is meant")
    # In files of ours the head lies beside a trunk of timm.
    places = [f"{prefix.removesuffix('trunk.')}fc.", *(prefix + top for top in tops)]
    head = {name: tensor for place in places for name, tensor in below[place].items()}
    return trunks[prefix], head, left_out(prefix, tensors, belongs)


def flattened(content: dict, above: str = "") -> dict[str, Tensor]:
    """The tensors of dictionaries inside one another, their names joined by dots."""
    found = {}
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            found[WRAPPERS.sub("", above + name)] = value
        elif isinstance(name, str) and isinstance(value, dict):
            found |= flattened(value, f"{above}{name}.")
    return found


def torchvisions_name(name: str) -> str:
    first, dot, rest = name.partition(".")
    return BY_PLACE.get(first, first) + dot + rest


def left_out(prefix: str, tensors: dict[str, Tensor], belongs) -> Counter:
    """How many tensors are not the trunk's, by the first word that tells their place from its."""
    counts, own = Counter(), prefix.split(".")
    for name in tensors:
        pairs = zip(name.split("."), own, strict=False)
        part = next((word for word, other in pairs if word != other), name)
        rest = torchvisions_name(name[len(prefix) :])
        counts[part] += not (name.startswith(prefix) and belongs(rest))
    return +counts


def follows(prefix: str) -> bool:
    return not FOLLOWERS.isdisjoint(re.split(r"[._]", prefix.lower()))


def is_counter(name: str) -> bool:
    """Whether it is one of BatchNorm's batch counters, which old files lack."""
    return name.endswith("num_batches_tracked")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
