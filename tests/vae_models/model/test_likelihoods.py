import math

import pytest
import torch
from torch import nn

from vae_models.model.likelihoods import LIKELIHOODS

SHAPE = (2, 3, 1, 4, 5)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_shapes_and_gradients(name):
    output = torch.randn(SHAPE, requires_grad=True)
    p = LIKELIHOODS[name]()(output)
    assert (p.batch_shape, p.event_shape) == (SHAPE[:2], SHAPE[2:])
    assert p.mean.shape == SHAPE
    p.log_prob(torch.rand(SHAPE)).sum().backward()
    assert (output.grad != 0).all()


def test_bernoulli_takes_grey_values():
    output, x = torch.randn(SHAPE), torch.rand(SHAPE)
    pi = output.sigmoid()
    expected = (x * pi.log() + (1 - x) * (1 - pi).log()).sum((-3, -2, -1))
    torch.testing.assert_close(LIKELIHOODS["bernoulli"]()(output).log_prob(x), expected)


@pytest.mark.parametrize("logit", [-3.0, -0.01, 0.0, 0.4, 5.0])
def test_continuous_bernoulli_is_normalised(logit):
    x = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    p = LIKELIHOODS["continuous-bernoulli"]()(torch.full((len(x), 1, 1, 1), logit, dtype=torch.float64))
    density = p.log_prob(x.reshape(-1, 1, 1, 1)).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-6)
    assert torch.trapezoid(x * density, x).item() == pytest.approx(p.mean[0].item(), abs=1e-6)


def test_gaussian():
    output, x = torch.randn(SHAPE), torch.randn(SHAPE)
    squares = (x - output).square().sum((-3, -2, -1))
    expected = -squares / (2 * 0.3**2) - 20 * (math.log(0.3) + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(LIKELIHOODS["gaussian"](0.3)(output).log_prob(x), expected)


def test_gaussian_learns_its_scale():
    """The likelihood is greatest at the root mean square of the residuals."""
    residuals = 0.7 * torch.randn(200, 1, 4, 5)
    best = residuals.square().mean().sqrt().item()

    def slope(scale):
        likelihood = LIKELIHOODS["gaussian"](scale, learn_scale=True)
        log_prob = likelihood(torch.zeros_like(residuals)).log_prob(residuals).mean()
        return torch.autograd.grad(log_prob, likelihood.log_scale)[0].item()

    assert slope(best) == pytest.approx(0.0, abs=1e-3)
    assert slope(0.9 * best) > 1 > -1 > slope(1.1 * best)
    likelihood = LIKELIHOODS["gaussian"](learn_scale=True)
    fixed = LIKELIHOODS["gaussian"](0.5)
    assert not list(fixed.parameters())
    assert isinstance(likelihood.log_scale, nn.Parameter)
    assert "log_scale" in fixed.state_dict()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_gaussian_needs_a_positive_scale(scale):
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        LIKELIHOODS["gaussian"](scale)
