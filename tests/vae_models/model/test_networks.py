import pytest
import torch
from torch import nn

from vae_models.model.networks import NETWORKS, convolutional


def shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for name, parameter in module.named_parameters() if name.endswith("weight")]


@pytest.mark.parametrize(
    ("name", "image_shape"),
    [
        ("mlp", (1, 8, 8)),
        ("mlp", (3, 5, 7)),
        ("cnn", (1, 28, 28)),
        ("cnn", (3, 8, 12)),
        ("conv64", (1, 64, 64)),
        ("conv64", (3, 32, 16)),
        ("dcgan", (1, 28, 28)),
        ("dcgan", (3, 8, 4)),
    ],
)
def test_shapes_and_gradients(name, image_shape):
    encoder, decoder, num_features = NETWORKS[name](image_shape, 6)
    features, images = encoder(torch.rand(3, *image_shape)), decoder(torch.randn(3, 6))
    assert features.shape == (3, num_features)
    assert images.shape == (3, *image_shape)
    (features.square().sum() + images.square().sum()).backward()
    assert all(p.grad.abs().sum() > 0 for module in (encoder, decoder) for p in module.parameters() if p.dim() > 1)


def test_mlp_is_the_papers():
    encoder, decoder, num_features = NETWORKS["mlp"]((1, 28, 28), 20)
    assert num_features == 400
    assert shapes(encoder) + shapes(decoder) == [(400, 784), (400, 20), (784, 400)]
    assert (encoder(torch.randn(10, 1, 28, 28)) >= 0).all()


def test_cnn():
    """Ordinary padding: 3.2 million weights in the hidden layer, not the over 100 million of the reference code."""
    encoder, decoder, num_features = NETWORKS["cnn"]((1, 28, 28), 20)
    assert num_features == 1024
    assert shapes(encoder) == [(64, 1, 4, 4), (128, 64, 4, 4), (1024, 128 * 7 * 7)]
    assert shapes(decoder) == [(1024, 20), (128 * 7 * 7, 1024), (128, 64, 4, 4), (64, 1, 4, 4)]
    assert sum(p.numel() for p in encoder.parameters()) + sum(p.numel() for p in decoder.parameters()) < 14e6


def test_conv64():
    encoder, decoder, num_features = NETWORKS["conv64"]((3, 64, 64), 10)
    assert num_features == 256
    convolutions = [(32, 3, 4, 4), (32, 32, 4, 4), (64, 32, 4, 4), (64, 64, 4, 4)]
    assert shapes(encoder) == [*convolutions, (256, 64 * 4 * 4)]
    assert shapes(decoder) == [(256, 10), (64 * 4 * 4, 256), *reversed(convolutions)]


def test_dcgan_normalises_over_the_batch():
    encoder, decoder, _ = NETWORKS["dcgan"]((1, 28, 28), 10)
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    assert [m.num_features for m in encoder.modules() if isinstance(m, kinds)] == [128, 1024]
    assert [m.num_features for m in decoder.modules() if isinstance(m, kinds)] == [1024, 128 * 7 * 7, 64]
    assert not any(isinstance(m, kinds) for m in NETWORKS["cnn"]((1, 28, 28), 10).encoder.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_starts_with_xaviers_weights(name):
    for module in NETWORKS[name]((1, 64, 64), 20)[:2]:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                assert layer.weight.std().item() == pytest.approx((2 / sum(layer.weight.shape)) ** 0.5, rel=0.05)
                assert layer.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("name", "image_shape", "said"),
    [
        ("cnn", (1, 30, 28), "2 convolutions of stride 2 need images whose sides are divisible by 4, got 30x28"),
        ("dcgan", (1, 28, 29), "divisible by 4, got 28x29"),
        ("conv64", (1, 28, 28), "4 convolutions of stride 2 need images whose sides are divisible by 16, got 28x28"),
    ],
)
def test_images_that_cannot_be_halved(name, image_shape, said):
    with pytest.raises(ValueError, match=said):
        NETWORKS[name](image_shape, 6)


def test_options():
    assert NETWORKS["mlp"]((1, 8, 8), 4, hidden=7).num_features == 7
    encoder = NETWORKS["cnn"]((1, 8, 8), 4, channels=(3,), hidden=5).encoder
    assert shapes(encoder) == [(3, 1, 4, 4), (5, 3 * 4 * 4)]
    assert shapes(convolutional((1, 8, 8), 4, channels=(3,), hidden=5).encoder) == shapes(encoder)
