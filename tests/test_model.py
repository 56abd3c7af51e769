"""The two encoders: how the key encoder follows the query encoder."""

import torch

import adco


def moved_apart() -> adco.AdCo:
    """An AdCo whose encoders differ in every parameter and buffer."""
    torch.manual_seed(0)
    model = adco.AdCo("resnet10", dim=8, momentum=0.75)
    with torch.no_grad():
        for name, value in model.encoder_q.state_dict().items():
            if value.is_floating_point():
                value.add_(torch.randn_like(value))
            assert name in model.encoder_k.state_dict()
    return model


def copies(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.named_parameters()}


def test_every_parameter_of_the_key_encoder_follows_by_the_momentum():
    model = moved_apart()
    query, before = copies(model.encoder_q), copies(model.encoder_k)
    buffers = {name: value.clone() for name, value in model.encoder_k.named_buffers()}
    model.update_key_encoder()
    after = copies(model.encoder_k)
    for name, value in after.items():
        expected = 0.75 * before[name] + 0.25 * query[name]
        torch.testing.assert_close(value, expected, msg=name)
        assert not torch.equal(value, before[name]), name
    for name, value in model.encoder_k.named_buffers():
        assert torch.equal(value, buffers[name]), name
    for name, value in model.encoder_q.named_parameters():
        assert torch.equal(value, query[name]), name


def test_the_key_encoder_becomes_the_query_encoder_in_every_parameter():
    model = moved_apart()
    model.copy_query_to_key()
    query = dict(model.encoder_q.named_parameters())
    for name, value in model.encoder_k.named_parameters():
        assert torch.equal(value, query[name]) and not value.requires_grad, name
