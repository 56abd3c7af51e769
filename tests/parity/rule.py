"""Starting weights and pictures of the parity files, each from a generator seeded by name."""

import zlib

import torch
from torch import Tensor


def generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"0:{name}".encode()))


def fill_(state: dict[str, Tensor]) -> None:
    """Fill a state dict in place; the key encoder gets what the query encoder gets."""
    for name, tensor in state.items():
        drawn = torch.randn(
            tensor.shape, generator=generator(name.replace("encoder_k", "encoder_q"))
        )
        is_norm = "bn" in name or "downsample.1" in name
        if not tensor.is_floating_point() or name.endswith("running_mean"):
            tensor.zero_()
        elif name.endswith("running_var"):
            tensor.fill_(1)
        elif tensor.dim() == 1:
            tensor.copy_(1 + 0.1 * drawn if is_norm else 0.01 * drawn)
        else:
            tensor.copy_(drawn * (2 / tensor[0].numel()) ** 0.5)


def views(step: int, num_images: int, sizes: list[int], rank: int) -> list[Tensor]:
    return [
        torch.randn(num_images, 3, size, size, generator=generator(f"view{step}.{i}.{rank}"))
        for i, size in enumerate(sizes)
    ]
