"""What one device does with the published step: right numbers, speed, memory, what safety costs.

python3 -m benchmarks.device                                  # at most 8 minutes on a GPU
python3 -m benchmarks.device --arch resnet18 --batch_size 8 --cluster 16384   # a CPU
python3 -m benchmarks.device --parts round --batch_size 256   # a round on given embeddings
python3 -m benchmarks.device --parts views --data FOLDER      # views of your pictures, on one core
python3 -m benchmarks.device --nproc 2 --batch_size 8         # the round and safety, on processes
"""

import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain
from math import inf, nan
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from simplejpeg import encode_jpeg
from sklearn.datasets import load_sample_images

from adco.data import views
from adco.data.datasets import from_folders
from adco.data.decoder import decode
from adco.data.loader import RENDERERS
from adco.data.pictures import ArrayPictures
from adco.fused import losses
from adco.negatives import NegativeBank
from adco.objective import Pair
from adco.pretrain.game import Game
from adco.pretrain.options import PretrainConfig
from adco.pretrain.state import Progress, pack
from adco.pretrain.upkeep import CHECK_STEPS
from benchmarks import print_head, print_row, published
from benchmarks.published import DECAY, DIM, MEM_T, MOCO_T, MOMENTUM, RATE
from ops import checkpoint
from ops.arguments import AT_LEAST_1, POSITIVE, command, option
from ops.device import tune
from ops.distributed import Flags, World, broadcast_from_first_, gather_rows
from ops.errors import InputError
from ops.launch import launch
from ops.options import ARCHITECTURES, ProcessOptions
from ops.training import BufferSnapshot, check_finite, check_ranks_agree

USUAL = (500, 375)  # pixels, of most of ImageNet
Ways = Iterator[tuple[str, dict[str, Callable], int]]  # what is done, by whom, pictures a call


def parity(config, world: World, device: torch.device) -> Ways:
    """Five steps of the files in tests/parity, in float32 without TensorFloat-32: own rows."""
    from tests import test_parity  # the tests hide GPUs from what has not looked for them yet

    tune(device, tf32=False)
    for case in ("nosym", "multi"):
        known = torch.load(test_parity.FILES / f"{case}_r0.pt", weights_only=True)
        played = test_parity.play(World(), case, device=device)
        loss = (played["loss"] / torch.tensor(known["loss"]) - 1).abs().max()
        W = (played["bank"]["W"] - known["W"]).norm() / known["W"].norm()
        print_row(f"parity, {case}", f"loss apart by {loss:.1e}, W by {W:.1e}", *[""] * 4)
    tune(device, tf32=True)
    yield from ()


def round_ways(config, world: World, device: torch.device) -> Ways:
    """Both players' round on given embeddings. The least: cosines, a gradient for each player."""
    N, K = config.batch_size, config.cluster
    torch.manual_seed(world.rank)
    queries, own = (F.normalize(torch.randn(N, DIM, device=device), dim=1) for _ in range(2))
    queries.requires_grad_()
    keys, whole = gather_rows(own, world), published.bank(K, device)
    bank, directions = NegativeBank(K, DIM).to(device), torch.randn(DIM, K, device=device)
    cosines = torch.empty(N, K, device=device)

    def ours():
        queries.grad = None
        pairs = [Pair(queries, keys, 1.0)]
        result = losses(pairs, bank.W, MOCO_T, MEM_T, world.rank * N, world)
        result.loss.backward()
        bank.ascend_(result.bank_gradient, RATE, MOMENTUM, DECAY)

    def least():
        torch.mm(own, directions, out=cosines)
        return cosines @ directions.T, own.T @ cosines

    plain = partial(published.play, queries, keys, *whole, world)
    ways = {"ours": ours, "published": plain, "three products": least}
    yield f"round: R {world.size}, N {N}, K {K}", ways, N


def view_ways(config, world: World, device: torch.device) -> Ways:
    """Two full-size views of each of N JPEGs, to normalised tensors, on one core."""
    own = ArrayPictures(load_sample_images().images)  # two photographs
    pictures = from_folders(Path(config.data), False).train if config.data else own
    read = (pictures.read(i % len(pictures)) for i in range(config.batch_size))
    jpegs = [encode_jpeg(cv2.resize(x, USUAL), 90, colorsubsampling="420") for x in read]
    recipe, threads = views.Recipe(), torch.get_num_threads()
    plain = published.recipe(recipe.size)

    def ours(renderer):
        for index, data in enumerate(jpegs):
            pixels = decode(BytesIO(data))
            rngs = (views.view_rng(0, 0, index, view) for view in (0, 1))
            draws = [views.draw_view(recipe, *pixels.shape[1::-1], rng) for rng in rngs]
            rendered = [renderer.render(pixels, drawn, recipe.size) for drawn in draws]
            views.normalised(views.as_batch(rendered))

    def others(transform):
        for data in jpegs:
            transform(Image.open(BytesIO(data)).convert("RGB"))

    ways = {f"ours, {name}": partial(ours, renderer) for name, renderer in RENDERERS.items()}
    ways["published"] = partial(others, lambda picture: (plain(picture), plain(picture)))
    if published.LIGHTLY:
        ways["lightly"] = partial(others, published.lightlys_views(recipe.size))
    torch.set_num_threads(1)
    yield f"two 224 views of {len(jpegs)} JPEGs", ways, len(jpegs)
    torch.set_num_threads(threads)


def game_of(config, world: World, device, **more) -> Game:
    options = PretrainConfig(
        dataset="digits", arch=config.arch, image_size=config.image_size, workers=0,
        global_batch_size=config.batch_size * world.size, cluster=config.cluster, **more,
    )  # fmt: skip
    return Game(options, world, device)


def step_ways(config, world: World, device: torch.device) -> Ways:
    """Steps on views that are there."""
    kinds = {amp: dict(amp=amp) for amp in ("bf16", "fp16")} | {"float32": dict(amp="none")}
    if device.type == "cuda":  # on CPUs it gained nothing: 1.01 to 1.03 times the step without
        kinds |= {f"{name}, compiled": {**kind, "compile": 1} for name, kind in kinds.items()}
    kinds["float32, channels first"] = dict(amp="none", channels_last=0)
    ways = {}
    for name, kind in kinds.items():
        try:
            game = game_of(config, world, device, **kind)
            ways[f"ours, {name}"] = partial(game.play, next(game.batches(0)))
        except InputError as error:
            print_row("step", f"ours, {name}", str(error).partition(";")[0], *[""] * 3)
    size = (config.batch_size, 3, config.image_size, config.image_size)
    batch = [torch.randn(size, device=device) for _ in range(2)]
    same = config.arch, config.cluster, batch, device
    ways["published"] = published.step(*same)
    if published.LIGHTLY:
        ways["lightly's MoCo v2"] = published.lightlys_step(*same)
    yield f"step, {config.image_size} px", ways, config.batch_size


def safety_ways(config, world: World, device: torch.device) -> Ways:
    """A step, and what comes between two steps so that a run is never lost."""
    game, flags = game_of(config, world, device), Flags(world)
    batch = next(game.batches(0))

    def guard():
        buffers = BufferSnapshot(game.model)
        _, dropped = check_finite(game.model, game.bank.W, game.bank.W[0, 0])
        buffers.restore_if_(dropped)

    def check():
        broadcast_from_first_(game.model.buffers(), world)
        check_ranks_agree(game.model.state_dict(), world)

    def save():
        state = pack(game.players, Progress(), game.config, {})
        if world.first:
            checkpoint.save(state, Path(folder) / checkpoint.LAST)

    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "step": lambda: game.play(batch),
            "guard, every step": guard,
            "flags, every step": lambda: flags.exchange(0, 0, 0, 0),
            f"check, every {CHECK_STEPS} steps": check,
            f"save, every {game.config.save_minutes:.0f} minutes": save,
        }
        yield "safety", ways, config.batch_size


PARTS = dict(parity=parity, round=round_ways, views=view_ways, steps=step_ways, safety=safety_ways)
TOGETHER = ("round", "safety")  # of several processes


@dataclass(frozen=True)
class DeviceBenchmark(ProcessOptions):
    """One table of one device: parity, a round, views, steps, what safety costs."""

    parts: tuple[str, ...] = option((), "which; none: all that can be", choices=tuple(PARTS))
    data: str = option("", "folder of pictures; none: photographs of scikit-learn")
    arch: str = option("resnet50", "encoder", choices=ARCHITECTURES)
    batch_size: int = option(64, "N of each process", AT_LEAST_1)
    image_size: int = option(224, "side of the views, pixels", AT_LEAST_1)
    cluster: int = option(65536, "K", AT_LEAST_1)
    repeats: int = option(7, "times that each way is taken, in turn with the others", AT_LEAST_1)
    minutes: float = option(8.0, "after which each is taken once", POSITIVE)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    ways: dict[str, Callable[[], object]], repeats: int, device: torch.device, end: float = inf
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Seconds of each call, all ways in turn `repeats` times, after one turn that does not count:
    a busy moment of the machine then meets all of them. And the most bytes that the last call held
    beside what was there before it. end: time.monotonic() at which one counted turn is enough.
    """
    seconds, held = {name: [] for name in ways}, {}
    for turn in range(repeats + 1):
        if turn > 1 and time.monotonic() > end:
            break
        for name, way in ways.items():
            before = peak_bytes(device, reset=True)
            wait_for(device)
            start = time.perf_counter()
            way()
            wait_for(device)
            seconds[name].append(time.perf_counter() - start)
            held[name] = peak_bytes(device) - before
    return {name: np.array(turns[1:]) for name, turns in seconds.items()}, held


def spread(values, form: str) -> str:
    """Median, and in brackets the quartiles."""
    low, middle, high = (format(x, form) for x in np.quantile(values, (0.25, 0.5, 0.75)))
    return f"{middle} ({low} to {high})"


def describe(device: torch.device) -> str:
    """The machine and what it can do at most: products of 2048 x 2048, copies of 256 MB."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    a, b = (torch.randn(2048, 2048, device=device) for _ in range(2))
    x, y = (torch.ones(2**26, device=device) for _ in range(2))
    half_a, half_b = a.bfloat16(), b.bfloat16()
    ways = {"float": lambda: a @ b, "half": lambda: half_a @ half_b, "copy": lambda: x.copy_(y)}
    full, half, copy = (min(turns) for turns in interleaved(ways, 7, device)[0].values())
    return (
        f"{name}, torch {torch.__version__}, {torch.get_num_threads()} thread(s) of "
        f"{os.cpu_count()} core(s); limits: matrix product {2e-9 * 2048**3 / full:.0f} GFLOP/s in "
        f"float32 and {2e-9 * 2048**3 / half:.0f} in bfloat16, copy {8e-9 * 2**26 / copy:.1f} GB/s"
    )


def peak_bytes(device: torch.device, reset: bool = False) -> float:
    """Most memory held; reset: from now on, which is what is held now. nan where none tells."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if sys.platform != "linux":
        return nan
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def run(config: DeviceBenchmark, world: World, device: torch.device) -> int:
    tune(device, tf32=True)
    alone = world.size == 1
    parts = config.parts or (PARTS if alone else TOGETHER)
    if not alone and not {*TOGETHER}.issuperset(parts):
        raise InputError(f"parts={parts}: several processes take {' and '.join(TOGETHER)} alone")
    if world.first:
        print(describe(device))
        size = f"N {config.batch_size} on {world.size} process(es), {config.image_size} px"
        print(f"{config.arch}, {size}, K {config.cluster}, {config.repeats} turns")
        print("" if published.LIGHTLY else "lightly is left out: it is not installed\n")
        print_head("what", "way", "ms", "pictures/s", "times the first", "GB on top")
    # Several processes have to take as many turns each.
    end = time.monotonic() + 60 * config.minutes if alone else inf
    for what, ways, pictures in chain.from_iterable(
        PARTS[part](config, world, device) for part in parts
    ):
        seconds, held = interleaved(ways, config.repeats, device, end)
        first = next(iter(seconds.values()))
        for name, turns in seconds.items() if world.first else ():
            rate, ratio = f"{pictures / np.median(turns):.1f}", spread(turns / first, ".3g")
            print_row(
                what, name, spread(1e3 * turns, ".1f"), rate, ratio, f"{held[name] / 1e9:.2f}"
            )
    return 0


main = command("benchmarks.device", DeviceBenchmark, partial(launch, run))


if __name__ == "__main__":
    sys.exit(main())
