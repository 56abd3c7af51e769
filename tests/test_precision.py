"""Precision, layout, micro-batches, compilation: the same numbers, or as near as they can be."""

import json
import weakref

import pytest
import torch
from torch.amp import GradScaler

import adco
from adco.pretrain.options import PretrainConfig
from adco.pretrain.run import run
from adco.pretrain.state import load_optimizer_
from adco.step import startup_step
from ops.arguments import parse
from ops.device import amp_dtype, compile_, on_device, tune
from ops.distributed import World, exchange_rows, wrap_encoder
from ops.errors import InputError
from tests.support.game import MODES, assert_near, small_game, state_of, views_of
from tests.support.gloo import in_processes
from tests.support.scripts import run_script

ALONE = World()


def play(
    world=ALONE, mode="single", accum_steps=1, eval_mode=False, dtype=torch.float64, **options
):
    """A step of the start-up and three rounds; all that they leave, and what they reported."""
    model, bank, optimizer = small_game(dtype, **options)
    if eval_mode:
        model.eval()
    network, plan, num_views = (
        wrap_encoder(model, world),
        adco.view_plan(*MODES[mode]),
        MODES[mode][2],
    )
    views = views_of(99, num_views, world, dtype)
    loss, _ = startup_step(
        network, bank, optimizer, views, plan[0],
        first_column=0, moco_t=0.12, accum_steps=accum_steps,
    )  # fmt: skip
    reported = {"start-up": loss}
    for i in range(3):
        round_ = adco.train_step(
            network, bank, optimizer, views_of(i, num_views, world, dtype), plan,
            mem_t=0.1, memory_lr=0.5, accum_steps=accum_steps,
        )  # fmt: skip
        reported |= {f"{name} {i}": value for name, value in round_._asdict().items()}
    return state_of(model, bank, optimizer), reported


def without_statistics(state: dict) -> dict:
    return {name: x for name, x in state.items() if "running" not in name and "num_b" not in name}


# ---- micro-batches


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_in_micro_batches_is_the_batch(mode):
    whole, in_micro_batches = (play(mode=mode, accum_steps=A, eval_mode=True) for A in (1, 4))
    for found, expected in zip(in_micro_batches, whole, strict=True):
        assert_near(found, expected, rtol=1e-10, atol=1e-12)


def play_in_micro_batches(world: World):
    return play(world, mode="both", accum_steps=2, eval_mode=True)


def test_micro_batches_on_two_processes_are_the_batch_on_one():
    alone, _ = play(mode="both", eval_mode=True)
    for state, _ in in_processes(play_in_micro_batches, 2):
        assert_near(state, alone, rtol=1e-9, atol=1e-11)


def play_shuffled(world: World):
    return play(world, mode="symmetric")


def test_micro_batches_on_one_process_are_so_many_processes():
    alone, reported = play(mode="symmetric", accum_steps=2)
    ranks = in_processes(play_shuffled, 2)
    for state, _ in ranks:
        assert_near(without_statistics(state), without_statistics(alone), rtol=1e-9, atol=1e-11)
    losses = [sum(r[f"loss {i}"] for _, r in ranks) / 2 for i in range(3)]
    torch.testing.assert_close(losses, [reported[f"loss {i}"] for i in range(3)])
    assert abs(reported["loss 0"] - play(mode="symmetric")[1]["loss 0"]) > 1e-4


def test_one_whole_batch_alone_draws_no_shuffle():
    for accum_steps, drawn in ((1, 0), (2, 1)):
        model, _, _ = small_game()
        model.embed_keys(views_of(0)[:1], accum_steps)
        assert model.num_shuffles == drawn


class Kept:
    def __init__(self, x):
        self.x = x


def most_activations(accum_steps: int) -> int:
    """Most numbers kept for backward passes at a time, the parameters themselves left out."""
    game, alive, most = small_game(), weakref.WeakSet(), 0
    own = {p.data_ptr() for p in game[0].parameters()}

    def keep(x):
        nonlocal most
        kept = Kept(x)
        if x.data_ptr() not in own:
            alive.add(kept)
        most = max(most, sum(kept.x.numel() for kept in alive))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.x):
        adco.train_step(*game, views_of(0), adco.view_plan(sym=True), accum_steps=accum_steps)
    return most


def test_activations_of_one_micro_batch_only_are_kept():
    assert most_activations(4) < 0.3 * most_activations(1)


def test_pictures_that_do_not_split_are_refused():
    with pytest.raises(ValueError, match="8 pictures do not split into 3 micro-batches"):
        adco.train_step(*small_game(), views_of(0), adco.view_plan(), accum_steps=3)
    with pytest.raises(InputError, match="accum_steps=8"):
        PretrainConfig(batch_size=12, accum_steps=8)
    with pytest.raises(InputError, match="micro-batches of 4 pictures"):
        PretrainConfig(batch_size=8, accum_steps=4).images_per_process(2)


# ---- half precision


def test_embeddings_in_bf16_are_float32_and_near():
    views = [torch.randn(8, 3, 32, 32)]
    torch.manual_seed(0)
    plain = adco.AdCo("resnet10")
    half = adco.AdCo("resnet10", amp=torch.bfloat16)
    half.load_state_dict(plain.state_dict())
    for one, other in (
        (plain(views), half(views)),
        (plain.embed_keys(views), half.embed_keys(views)),
    ):
        assert other[0].dtype == torch.float32 and not torch.equal(one[0], other[0])
        assert (one[0] * other[0]).sum(dim=1).min() > 0.995


def test_pictures_too_small_for_bf16_are_encoded_in_float32():
    views = [torch.randn(8, 3, 16, 16)]
    plain = adco.AdCo("resnet10")
    half = adco.AdCo("resnet10", amp=torch.bfloat16)
    half.load_state_dict(plain.state_dict())
    assert torch.equal(plain(views)[0], half(views)[0])


def exchange_half(world: World):
    pictures = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(world.rank))
    pictures = pictures.to(torch.bfloat16, memory_format=torch.channels_last)
    there = exchange_rows(pictures, torch.tensor([3, 0, 2, 1]), world)
    return pictures, there, there.is_contiguous(memory_format=torch.channels_last)


def test_pictures_change_process_in_bf16_and_stay_channels_last():
    ranks = in_processes(exchange_half, 2)
    joined = torch.cat([pictures for pictures, _, _ in ranks])
    assert torch.equal(torch.cat([there for _, there, _ in ranks]), joined[[3, 0, 2, 1]])
    assert all(there.dtype == torch.bfloat16 and is_last for _, there, is_last in ranks)


def half_game():
    model, bank, optimizer = small_game(amp=torch.float16)
    return (
        model,
        bank,
        optimizer,
        [torch.nn.functional.interpolate(view, scale_factor=2) for view in views_of(0)],
    )


def test_fp16_with_a_scaler_takes_the_steps_of_float32():
    model, bank, optimizer, views = half_game()
    plain = small_game()
    for _ in range(3):
        adco.train_step(model, bank, optimizer, views, adco.view_plan(), mem_t=0.1,
                        memory_lr=0.5, scaler=GradScaler("cpu"))  # fmt: skip
        adco.train_step(*plain, views, adco.view_plan(), mem_t=0.1, memory_lr=0.5)
    start, found, expected = (
        torch.nn.utils.parameters_to_vector(m.encoder_q.parameters())
        for m in (small_game()[0], model, plain[0])
    )
    assert (found - expected).norm() < 0.05 * (expected - start).norm()


def test_an_overflow_in_fp16_halves_the_scale_and_moves_nothing():
    model, bank, optimizer, views = half_game()
    scaler = GradScaler("cpu", init_scale=2.0**40)
    before = state_of(model, bank, optimizer)
    result = adco.train_step(model, bank, optimizer, views, adco.view_plan(), scaler=scaler)
    assert result.dropped == 1 and scaler.get_scale() == 2.0**39
    assert_near(state_of(model, bank, optimizer), before, rtol=0, atol=0)


def test_precision_is_chosen_by_name_and_device():
    cpu = torch.device("cpu")
    assert amp_dtype("none", cpu) is None and amp_dtype("auto", torch.device("meta")) is None
    assert (amp_dtype("bf16", cpu), amp_dtype("fp16", cpu)) == (torch.bfloat16, torch.float16)
    with pytest.raises(InputError, match="amp=bf16"):
        amp_dtype("bf16", torch.device("xla"))


def test_tf32_is_for_convolutions_only():
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision, torch.backends.cudnn.benchmark
    try:
        for tf32, expected in ((True, "tf32"), (False, "ieee")):
            tune(torch.device("cuda"), tf32)
            assert (conv.fp32_precision, matmul.fp32_precision) == (expected, "ieee")
    finally:
        conv.fp32_precision, matmul.fp32_precision, torch.backends.cudnn.benchmark = before


# ---- layout, fused steps, compilation


def test_fused_sgd_takes_the_steps_of_the_plain_one():
    (fused, _), (plain, _) = play(fused=True), play(fused=False)
    assert_near(fused, plain, rtol=1e-10, atol=1e-12)


def test_batches_come_in_the_layout_that_is_asked_for():
    for layout in (torch.channels_last, torch.contiguous_format):
        (batch,) = on_device([views_of(0)], torch.device("cpu"), layout)
        assert all(view.is_contiguous(memory_format=layout) for view in batch)


def test_a_loaded_momentum_keeps_rates_and_layout_of_this_run():
    theirs = small_game(fused=False)
    adco.train_step(*theirs, views_of(0), adco.view_plan())
    model, _, optimizer = small_game()
    model.to(memory_format=torch.channels_last)
    optimizer.param_groups[0]["weight_decay"] = 0.5
    load_optimizer_(optimizer, theirs[2].state_dict(), "the file")
    group = optimizer.param_groups[0]
    assert group["fused"] and group["weight_decay"] == 0.5
    for parameter, known in zip(
        model.encoder_q.parameters(), theirs[0].encoder_q.parameters(), strict=True
    ):
        momentum = optimizer.state[parameter]["momentum_buffer"]
        assert momentum.stride() == parameter.stride()
        assert torch.equal(momentum, theirs[2].state[known]["momentum_buffer"])


def test_compiled_encoders_give_the_same_numbers_under_the_same_names():
    plain, compiled = small_game(), small_game()
    compile_(compiled[0].children(), torch.device("cpu"))
    for game in (plain, compiled):
        adco.train_step(*game, views_of(0), adco.view_plan(), mem_t=0.1, memory_lr=0.5)
    assert_near(state_of(*compiled), state_of(*plain), rtol=1e-4, atol=1e-5)


TINY = [
    *("--dataset", "folder", "--arch", "resnet10", "--image_size", "24", "--cluster", "32"),
    *("--epochs", "1", "-b", "24", "-j", "0", "--knn_freq", "0", "-p", "1", "--ad_init", "0"),
]


def test_a_missing_compiler_is_one_sentence(tmp_path, digit_folder):
    compiler = {"CXX": "/no/such/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    words = [*TINY, "--data", digit_folder, "--compile", 1]
    result = run_script("main_adco.py", *words, cwd=tmp_path, **compiler)
    assert result.returncode == 2
    assert "--compile 0" in result.stderr.splitlines()[-1], result.stderr


def losses_and_filters(folder, data, *words):
    """The loss of each step of a run, and the filters of a convolution in its checkpoint."""
    options = [*TINY, "--data", str(data), "--save_path", str(folder), *words]
    assert run(parse(PretrainConfig, options), ALONE, torch.device("cpu"), local_size=1) == 0
    (metrics,) = folder.rglob("metrics.jsonl")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    state = torch.load(metrics.parent / "checkpoint_last.pth.tar", weights_only=True)
    filters = state["state_dict"]["module.encoder_q.layer1.0.conv1.weight"]
    return [r["loss"] for r in records if r["kind"] == "train"], filters


def test_layout_precision_and_parts_reach_a_whole_run(tmp_path, digit_folder):
    def play_run(*words):
        return losses_and_filters(tmp_path / "-".join(words), digit_folder, *words)

    base, filters = play_run("--amp", "none")
    assert filters.is_contiguous(memory_format=torch.channels_last)
    plain, filters = play_run("--amp", "none", "--channels_last", "0")
    assert filters.is_contiguous() and plain == pytest.approx(base, rel=1e-2)
    for words in ("--amp bf16", "--amp none --accum_steps 2"):
        losses, _ = play_run(*words.split())
        assert losses[0] != base[0] and losses[0] == pytest.approx(base[0], rel=0.2), words
