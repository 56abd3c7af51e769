"""Precision, layout, micro-batches, compilation: the same numbers, or as near as they can be."""

import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.amp import GradScaler

import adco
from adco.data.views import as_batch, normalised
from adco.pretrain.options import PretrainConfig
from ops import checkpoint
from ops.device import amp_dtype, compile_, copying_stream, on_device, tune
from ops.distributed import ALONE, World, exchange_rows
from ops.errors import InputError
from tests.support.game import MODES, assert_same, play, small_game, state_of, views_of
from tests.support.gloo import in_processes
from tests.support.scripts import losses, pretrain

CPU = torch.device("cpu")


def played(world=ALONE, mode="single", accum_steps=1, eval_mode=False, **options) -> tuple:
    """All that a step of the start-up and three rounds leave, and what they reported."""
    game = small_game(torch.float64, **options)
    game[0].train(not eval_mode)
    reported = play(game, world, mode, accum_steps=accum_steps)
    return state_of(*game), reported


def without_statistics(state: dict) -> dict:
    return {name: x for name, x in state.items() if "running" not in name and "num_b" not in name}


# ---- micro-batches


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_in_micro_batches_is_the_batch(mode):
    whole, in_micro_batches = (played(mode=mode, accum_steps=A, eval_mode=True) for A in (1, 4))
    for states in zip(in_micro_batches, whole, strict=True):
        # Uniformity is of pairs inside a micro-batch.
        states = [{n: x for n, x in s.items() if "uniformity" not in n} for s in states]
        assert_same(*states, rtol=1e-10, atol=1e-12)


def test_micro_batches_on_two_processes_are_the_batch_on_one():
    alone, _ = played(mode="both", eval_mode=True)
    for state, _ in in_processes(played, 2, "both", 2, True):
        assert_same(state, alone, rtol=1e-9, atol=1e-11)


def test_micro_batches_on_one_process_are_so_many_processes():
    alone, reported = played(mode="symmetric", accum_steps=2)
    ranks = in_processes(played, 2, "symmetric")
    for state, _ in ranks:
        assert_same(without_statistics(state), without_statistics(alone), rtol=1e-9, atol=1e-11)
    losses = [sum(r[f"loss {i}"] for _, r in ranks) / 2 for i in range(3)]
    torch.testing.assert_close(losses, [reported[f"loss {i}"] for i in range(3)])
    assert abs(reported["loss 0"] - played(mode="symmetric")[1]["loss 0"]) > 1e-4


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
        PretrainConfig(global_batch_size=8, accum_steps=4).images_per_process(2)


# ---- half precision


def test_embeddings_in_bf16_are_float32_and_near():
    views = [torch.randn(8, 3, 32, 32)]
    torch.manual_seed(0)
    plain = adco.AdCo("resnet10")
    half = adco.AdCo("resnet10", amp=torch.bfloat16)
    half.load_state_dict(plain.state_dict())
    keys = plain.embed_keys(views), half.embed_keys(views)
    for one, other in ((plain(views), half(views)), keys):
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
    """A game in fp16, and views large enough for it."""
    views = [torch.nn.functional.interpolate(view, scale_factor=2) for view in views_of(0)]
    return small_game(amp=torch.float16), views


def test_fp16_with_a_scaler_takes_the_steps_of_float32():
    (half, views), plain, taus = half_game(), small_game(), dict(mem_t=0.1, memory_lr=0.5)
    for _ in range(3):
        adco.train_step(*half, views, adco.view_plan(), **taus, scaler=GradScaler("cpu"))
        adco.train_step(*plain, views, adco.view_plan(), **taus)
    start, found, expected = (
        torch.nn.utils.parameters_to_vector(model.encoder_q.parameters())
        for model, _, _ in (small_game(), half, plain)
    )
    assert (found - expected).norm() < 0.05 * (expected - start).norm()


def test_an_overflow_in_fp16_halves_the_scale_and_moves_nothing():
    (game, views), scaler = half_game(), GradScaler("cpu", init_scale=2.0**40)
    before = state_of(*game)
    result = adco.train_step(*game, views, adco.view_plan(), scaler=scaler)
    assert result.dropped == 1 and scaler.get_scale() == 2.0**39
    assert_same(state_of(*game), before)


def test_precision_is_chosen_by_name_and_device():
    assert amp_dtype("none", CPU) is None and amp_dtype("auto", torch.device("meta")) is None
    assert (amp_dtype("bf16", CPU), amp_dtype("fp16", CPU)) == (torch.bfloat16, torch.float16)
    with pytest.raises(InputError, match="amp=bf16"):
        amp_dtype("bf16", torch.device("xla"))


def test_tf32_is_for_convolutions_only():
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision, torch.backends.cudnn.benchmark
    rnn = torch.backends.cudnn.rnn
    rnn_before, allowed = rnn.fp32_precision, torch.backends.cudnn.allow_tf32
    try:
        for tf32, expected in ((True, "tf32"), (False, "ieee")):
            tune(torch.device("cuda"), tf32)
            assert (conv.fp32_precision, matmul.fp32_precision) == (expected, "ieee")
            # What torch itself asks, as does who enters its flags.
            assert torch.backends.cudnn.allow_tf32 == tf32
            with torch.backends.cudnn.flags():
                pass
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
        conv.fp32_precision, matmul.fp32_precision, torch.backends.cudnn.benchmark = before
        rnn.fp32_precision = rnn_before  # torch refuses to export where the two differ


# ---- layout, fused steps, compilation


def test_fused_sgd_takes_the_steps_of_the_plain_one():
    (fused, _), (plain, _) = played(fused=True), played(fused=False)
    assert_same(fused, plain, rtol=1e-10, atol=1e-12)


def test_batches_come_in_the_layout_that_is_asked_for():
    for layout in (torch.channels_last, torch.contiguous_format):
        view = normalised(as_batch([np.zeros((5, 5, 3), np.uint8)] * 2), layout=layout)
        assert view.is_contiguous(memory_format=layout)


def test_all_batches_travel_on_one_stream(monkeypatch):
    made, gpu = [], torch.device("cuda:0")
    monkeypatch.setattr("torch.cuda.Stream", lambda device: made.append(device) or device)
    monkeypatch.setattr("torch.cuda.stream", nullcontext)
    waits = SimpleNamespace(wait_stream=lambda stream: None)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: waits)
    there = SimpleNamespace(record_stream=lambda stream: None)
    batch = [SimpleNamespace(to=lambda device, non_blocking: there)]
    copying_stream.cache_clear()
    try:
        for _ in range(3):  # epochs: for each stream torch would keep memory of its own
            assert list(on_device([batch, batch], gpu)) == [[there], [there]]
    finally:
        copying_stream.cache_clear()
    assert made == [gpu]


def test_a_loaded_momentum_keeps_rates_and_layout_of_this_run():
    theirs = small_game(fused=False)
    adco.train_step(*theirs, views_of(0), adco.view_plan())
    model, _, optimizer = small_game()
    model.to(memory_format=torch.channels_last)
    optimizer.param_groups[0]["weight_decay"] = 0.5
    checkpoint.load_optimizer_(optimizer, theirs[2].state_dict(), "the file")
    group = optimizer.param_groups[0]
    assert group["fused"] and group["weight_decay"] == 0.5
    for name, parameter in model.encoder_q.named_parameters():
        momentum = optimizer.state[parameter]["momentum_buffer"]
        assert momentum.stride() == parameter.stride()
        known = theirs[2].state[theirs[0].encoder_q.get_parameter(name)]["momentum_buffer"]
        assert torch.equal(momentum, known)


def test_a_compiled_encoder_gives_the_same_numbers_under_the_same_names():
    plain, compiled = small_game(), small_game()
    compile_([compiled[0].encoder_q], CPU)
    for game in (plain, compiled):
        adco.train_step(*game, views_of(0), adco.view_plan(), mem_t=0.1, memory_lr=0.5)
    assert_same(state_of(*compiled), state_of(*plain), rtol=1e-4, atol=1e-5)


def test_a_missing_compiler_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()  # what another test has compiled
    no_compiler = torch._inductor.config.patch({"cpp.cxx": ("/no/such/g++",)})
    with no_compiler, pytest.raises(InputError, match="--compile 0"):
        compile_([], CPU)


RUN = ["--image_size", 24, "--epochs", 1, "-b", 24, "--knn_freq", 0, "-p", 1, "--ad_init", 0]


def test_layout_precision_and_parts_reach_a_whole_run(tmp_path, digit_folder):
    def losses_and_filters(words):
        """The loss of each step, and the filters of a convolution in the checkpoint."""
        folder = tmp_path / words
        folder.mkdir()
        run = pretrain(folder, digit_folder, *RUN, *words.split())
        weights = checkpoint.load(run / checkpoint.LAST)["state_dict"]
        return losses(run), weights["module.encoder_q.layer1.0.conv1.weight"]

    base, filters = losses_and_filters("--amp none")
    assert filters.is_contiguous(memory_format=torch.channels_last)
    plain, filters = losses_and_filters("--amp none --channels_last 0")
    assert filters.is_contiguous() and plain == pytest.approx(base, rel=1e-2)
    for words in ("--amp bf16", "--amp none --accum_steps 2"):
        found, _ = losses_and_filters(words)
        assert found[0] != base[0] and found[0] == pytest.approx(base[0], rel=0.2), words
