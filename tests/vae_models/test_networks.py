import pytest
import torch

from vae_models.networks import NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 5, 7)])
def test_shapes(name, image_shape):
    encoder, decoder, num_features = NETWORKS[name](image_shape, 6)
    assert encoder(torch.rand(2, *image_shape)).shape == (2, num_features)
    assert decoder(torch.randn(2, 6)).shape == (2, *image_shape)


def test_mlp_is_the_papers():
    encoder, decoder, num_features = NETWORKS["mlp"]((1, 28, 28), 20)
    assert num_features == 400
    shapes = [tuple(parameter.shape) for parameter in [*encoder.parameters(), *decoder.parameters()]]
    assert shapes == [(400, 784), (400,), (400, 20), (400,), (784, 400), (784,)]
    assert (encoder(torch.randn(10, 1, 28, 28)) >= 0).all()
