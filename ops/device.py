"""What a device can do, set up once: precision, kernels, and the way of the batches to it."""

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from math import inf
from pathlib import Path

import torch
from torch import Tensor, nn

from ops.errors import InputError

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def amp_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The precision of the encoders' convolutions for --amp `name`; None: float32 throughout.

    auto: bf16 where the device computes in it, rather than imitating it. Raises InputError for one
    that the device cannot do at all.
    """
    # By choice, or by what the device does well.
    if name == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else None
    if name == "none":
        return None
    try:
        # Try it: no table knows all devices.
        with torch.autocast(device.type, PRECISIONS[name]):
            torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)
    except (RuntimeError, TypeError) as error:
        why = f"amp={name}: this {device.type} device cannot compute in it"
        raise InputError(f"{why}; use --amp auto or none") from error
    return PRECISIONS[name]


def has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu_info = Path("/proc/cpuinfo")  # Linux
    if device.type != "cpu" or not cpu_info.exists():
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpu_info.read_text().split())


def tune(device: torch.device, tf32: bool) -> None:
    """Let a GPU choose its fastest convolutions, with `tf32` in TensorFloat-32. The objective's
    matrix products stay in float32.
    """
    if device.type == "cuda":
        # Every batch has one shape: it pays to try the kernels once.
        torch.backends.cudnn.benchmark = True
        # torch asks for one precision of both, and of its older switch.
        torch.backends.cudnn.allow_tf32 = tf32
        for kind in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
            kind.fp32_precision = "tf32" if tf32 else "ieee"
        torch.backends.cuda.matmul.fp32_precision = "ieee"


def compile_(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Have the modules compiled, in place: names in their state dicts stay.

    Raises InputError where torch.compile lacks what it needs (a C++ compiler, on GPUs Triton).
    """
    try:
        # A small function tells whether the compiler is there, before hours depend on it.
        torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except Exception as error:  # each part of the compiler has its own way to miss something
        reason = " ".join(str(error).split("\n")[:2]) or type(error).__name__
        remedy = "install a C++ compiler such as g++, or use --compile 0"
        why = f"compile=1: torch.compile does not work here ({reason})"
        raise InputError(f"{why}; {remedy}") from error
    for module in modules:
        module.compile()


def on_device(batches: Iterable[list[Tensor]], device: torch.device) -> Iterator[list[Tensor]]:
    """The batches on the device.

    On CUDA a batch travels on a stream of its own. Steps are only enqueued, so the host is here
    again while the device computes the last one, and the copy runs beside it. Nothing is taken from
    `batches` ahead of the step it is for.
    """
    if device.type != "cuda":
        yield from ([x.to(device) for x in batch] for batch in batches)
        return
    copying = copying_stream(device)
    for batch in batches:
        with torch.cuda.stream(copying):
            there = [x.to(device, non_blocking=True) for x in batch]
        # The step waits for its batch, on the device; the host waits for neither.
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        for x in there:
            x.record_stream(computing)  # its memory is free when the step is done, not before
        yield there


@cache
def copying_stream(device: torch.device):
    """The stream of the copies, beside the computation: one, for memory is kept for each stream."""
    return torch.cuda.Stream(device)


def free_memory(device: torch.device) -> float:
    """Bytes that this process can still take on a GPU, with those it has and does not use.

    inf on other devices.
    """
    if device.type != "cuda":
        return inf
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held on the device; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
