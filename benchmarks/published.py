"""The published way in our own plain writing, and MoCo v2 as lightly builds it."""

import copy
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms as VT
from PIL import ImageFilter
from torch import Tensor, nn

from adco.data.views import MEAN, STD, Recipe
from adco.encoder import Trunk, build_encoder, build_trunk
from adco.objective import contrastive_logits, directions_of, info_nce, own_key
from ops.distributed import ALONE, World, mean_across_ranks_

DIM, MOCO_T, MEM_T, RATE, MOMENTUM, DECAY, EMA, LR = 128, 0.12, 0.02, 3.0, 0.9, 1e-4, 0.999, 0.03
LIGHTLY = find_spec("lightly") is not None


def play(queries: Tensor, keys: Tensor, W: Tensor, v: Tensor, world: World) -> None:
    """Both players' round: logits [N, M + K] whole, autograd for each player and a third pass for
    the mass; W, v [D, K] and the gradient of W on every process.
    """
    target = own_key(len(queries), world.rank * len(queries), queries.device)
    logits = contrastive_logits(queries, keys, directions_of(W))
    info_nce(logits, target, MOCO_T).backward()

    moving_W = W.detach().requires_grad_()
    logits = contrastive_logits(queries.detach(), keys, directions_of(moving_W))
    (gradient,) = torch.autograd.grad(info_nce(logits, target, MEM_T), moving_W)
    with torch.no_grad():
        (logits / MEM_T).softmax(dim=1)[:, : len(keys)].sum(dim=1).mean()
        gradient = mean_across_ranks_(gradient, world)
        v.mul_(MOMENTUM).sub_(gradient).add_(W, alpha=DECAY)
        W.sub_(v, alpha=RATE)


def bank(K: int, device) -> tuple[Tensor, Tensor]:
    """W and v [D, K], as every process has them."""
    W = torch.randn(DIM, K, generator=torch.Generator().manual_seed(0)).to(device)
    return W, torch.zeros_like(W)


def recipe(size: int):
    """One view in torchvision's transforms on Pillow pictures, as MoCo v2 and AdCo have it."""
    full = Recipe()

    def blur(picture):
        sigma = np.random.default_rng().uniform(*full.blur_sigma)
        return picture.filter(ImageFilter.GaussianBlur(sigma))

    crop = VT.RandomResizedCrop(size, scale=(full.min_scale, full.max_scale))
    jitter = VT.RandomApply([VT.ColorJitter(*full.jitter)], full.jitter_p)
    colours = [jitter, VT.RandomGrayscale(full.gray_p), VT.RandomApply([blur], full.blur_p)]
    end = [VT.RandomHorizontalFlip(full.flip_p), VT.ToTensor(), VT.Normalize(MEAN, STD)]
    return VT.Compose([crop, *colours, *end])


def step(arch: str, K: int, views: list[Tensor], device) -> Callable[[], None]:
    """A step in float32, channels first, with a momentum update a parameter at a time."""
    W, v = bank(K, device)
    encoder = build_encoder(arch, DIM, mlp=True)
    return step_of(encoder, views, device, lambda q, k: play(q, k, W, v, ALONE))


def step_of(encoder: nn.Module, views, device, backward: Callable) -> Callable[[], None]:
    encoder.to(device)
    key_encoder = copy.deepcopy(encoder).requires_grad_(False)
    optimizer = torch.optim.SGD(encoder.parameters(), LR, MOMENTUM, weight_decay=DECAY)

    def step():
        queries = F.normalize(encoder(views[0]), dim=1)
        with torch.no_grad():
            for key, query in zip(key_encoder.parameters(), encoder.parameters(), strict=True):
                key.mul_(EMA).add_(query, alpha=1 - EMA)
            keys = F.normalize(key_encoder(views[1]), dim=1)
        optimizer.zero_grad()
        backward(queries, keys)
        optimizer.step()

    return step


def lightlys_views(size: int):
    from lightly.transforms import MoCoV2Transform

    return MoCoV2Transform(input_size=size)


def lightlys_step(arch: str, K: int, views: list[Tensor], device):
    """MoCo v2 with lightly's head, and its loss with a queue of K."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead

    trunk = build_trunk(arch)
    width = trunk.inplanes
    encoder = nn.Sequential(Trunk(trunk), MoCoProjectionHead(width, width, DIM))
    criterion = NTXentLoss(MOCO_T, memory_bank_size=(K, DIM)).to(device)
    return step_of(encoder, views, device, lambda q, k: criterion(q, k).backward())
