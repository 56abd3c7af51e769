"""Where a ResNet trunk lies in a file of any program: the prefix under which all its names are."""

import re
from typing import NamedTuple

import torch
from torch import Tensor

from ops.errors import InputError, shown, some

# What torch puts into names around compiled and sharded modules.
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
# torchvision's children by their place, where they lie in a Sequential.
BY_PLACE = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
PARTS = tuple(BY_PLACE.values())
# Words in the prefix of an encoder that follows another one.
FOLLOWERS = {"momentum", "teacher", "target", "ema", "k", "key"}
LEAST_NAMES = 10  # fewer are no trunk: one block has names of their kind too


class FoundTrunk(NamedTuple):
    prefix: str
    weights: dict[str, Tensor]  # torchvision's names
    head: dict[str, Tensor]  # what lies below `fc` beside them
    left_out: dict[str, int]  # tensors of the file that are in neither, by their part of it


def flattened(content: dict, above: str = "") -> dict[str, Tensor]:
    """The tensors of dictionaries inside one another, their names joined by dots."""
    found = {}
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            found[WRAPPERS.sub("", above + name)] = value
        elif isinstance(name, str) and isinstance(value, dict):
            found |= flattened(value, f"{above}{name}.")
    return found


def find_trunk(content: dict, wanted: set[str], encoder: str, source: str) -> FoundTrunk:
    """The trunk in a file's dictionaries.

    wanted: names of the trunk's tensors, batch counters aside.
    encoder: key takes one that follows another (momentum, teacher, ...), query one that does not.
    Raises InputError where there is none of this kind, or more than one.
    """
    tensors = flattened(content)
    every = prefixes(tensors, wanted)
    if not every:
        raise InputError(
            f"{source!r} holds no ResNet trunk; expected tensors such as conv1.weight and "
            f"layer1.0.conv1.weight, below any prefix, found {shown(some(list(tensors)))}"
        )
    kind = [p for p in every if is_follower(p) == (encoder == "key")]
    if not kind:
        way_out = "" if encoder == "key" else "; take it with adco.export --encoder key"
        raise InputError(
            f"{source!r} holds no weights of a {encoder} encoder; found a trunk at "
            f"{some(shown_prefixes(every), 3)} alone{way_out}"
        )

    # Of several those in which nothing is missing or left over; of equal ones the first.
    trunks = {prefix: trunk_below(prefix, tensors) for prefix in kind}
    whole = [p for p in kind if {n for n in trunks[p] if not is_counter(n)} == wanted] or kind
    chosen = trunks[whole[0]]
    if any(not equal(trunks[prefix], chosen) for prefix in whole):
        raise InputError(
            f"{source!r} holds several trunks, at {some(shown_prefixes(whole), 3)}; save the one "
            "that is meant, alone"
        )
    prefix = whole[0]
    head = {n[len(prefix) + 3 :]: t for n, t in tensors.items() if n.startswith(f"{prefix}fc.")}
    return FoundTrunk(prefix, chosen, head, left_out(prefix, tensors))


def prefixes(tensors: dict[str, Tensor], wanted: set[str]) -> list[str]:
    """Prefixes below which names of a trunk lie, in the order of the file."""
    counts: dict[str, int] = {}
    for name in tensors:
        starts = [0, *(found.end() for found in re.finditer(r"\.", name))]
        for start in starts:
            if torchvisions_name(name[start:]) in wanted:
                counts[name[:start]] = counts.get(name[:start], 0) + 1
    return [prefix for prefix, count in counts.items() if count >= LEAST_NAMES]


def torchvisions_name(name: str) -> str:
    first, dot, rest = name.partition(".")
    return BY_PLACE.get(first, first) + dot + rest


def trunk_below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything below the prefix that belongs to a trunk, under torchvision's names."""
    below = {torchvisions_name(n[len(prefix) :]): n for n in tensors if n.startswith(prefix)}
    return {name: tensors[n] for name, n in below.items() if name.split(".")[0] in PARTS}


def left_out(prefix: str, tensors: dict[str, Tensor]) -> dict[str, int]:
    """How many tensors are not the trunk's, by the first word that tells their place from its."""
    words, counts = prefix.split("."), {}
    for name in tensors:
        if name.startswith(prefix):
            part = name[len(prefix) :].split(".")[0]
            if BY_PLACE.get(part, part) in PARTS:
                continue
        else:
            pairs = zip(name.split("."), words, strict=False)
            part = next((word for word, other in pairs if word != other), name)
        counts[part] = counts.get(part, 0) + 1
    return counts


def is_follower(prefix: str) -> bool:
    return not FOLLOWERS.isdisjoint(re.split(r"[._]", prefix.lower()))


def is_counter(name: str) -> bool:
    """Whether it is one of BatchNorm's batch counters, which old files lack."""
    return name.endswith("num_batches_tracked")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def shown_prefixes(found: list[str]) -> list[str]:
    return [shown(prefix.removesuffix(".")) for prefix in found]
