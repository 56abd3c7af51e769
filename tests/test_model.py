"""The two encoders: how the key encoder follows the query encoder, and how batches are shuffled."""

import torch

import adco
import adco.encoder
from tests.support.game import assert_same


def copies(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved_apart() -> adco.AdCo:
    """An AdCo whose encoders differ in every parameter and buffer."""
    torch.manual_seed(0)
    model = adco.AdCo("resnet10", dim=8, momentum=0.75)
    assert_same(model.encoder_k.state_dict(), model.encoder_q.state_dict())  # they start as one
    for value in model.encoder_q.state_dict().values():
        value.add_(torch.randn_like(value) if value.is_floating_point() else 3)
    return model


def test_the_key_encoder_starts_as_the_query_encoder_and_follows_in_every_parameter_alone():
    model = moved_apart()
    query, expected = copies(model.encoder_q), copies(model.encoder_k)
    for name, _ in model.encoder_k.named_parameters():
        expected[name] = 0.75 * expected[name] + 0.25 * query[name]
    model.update_key_encoder()
    assert_same(copies(model.encoder_k), expected, rtol=1e-6, atol=1e-7)
    assert_same(copies(model.encoder_q), query)


def test_the_key_encoder_becomes_the_query_encoder_in_every_parameter():
    model = moved_apart()
    model.copy_query_to_key()
    for name, value in model.encoder_k.named_parameters():
        query = model.encoder_q.get_parameter(name)
        assert torch.equal(value, query) and not value.requires_grad, name


def test_a_seed_gives_the_head_that_it_always_gave():
    torch.manual_seed(0)
    head = adco.AdCo("resnet10", dim=8).encoder_q.fc
    torch.manual_seed(0)
    width = adco.encoder.build_trunk("resnet10").fc.in_features
    last, first = torch.nn.Linear(width, 8), torch.nn.Linear(width, width)
    assert_same(head[0].state_dict(), first.state_dict())
    assert_same(head[2].state_dict(), last.state_dict())


def test_shuffles_follow_from_the_seed_and_their_number():
    def drawn(seed: int, number: int) -> tuple:
        model = adco.AdCo("resnet10", dim=8, seed=seed)
        model.num_shuffles = number
        return tuple(model._draw_permutation(64).tolist())

    assert drawn(0, 1) == drawn(0, 1)
    assert len({drawn(*place) for place in ((0, 1), (1, 1), (0, 2), (1, 0))}) == 4
