import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from vae_models.model.mmd import mmd


def test_mmd_follows_its_definition():
    x, y = torch.randn(2, 2, 5, 3, dtype=torch.float64)

    def k(a, b):
        return math.exp(-((a - b) ** 2).sum().item() / 6)

    for got, u, v in zip(mmd(x, y), x, y, strict=True):
        pairs = [(i, j) for i in range(5) for j in range(5)]
        within = sum(k(u[i], u[j]) + k(v[i], v[j]) for i, j in pairs if i != j) / 20
        across = sum(k(u[i], v[j]) for i, j in pairs) / 25
        assert got.item() == pytest.approx(within - 2 * across)


def test_mmd_is_unbiased():
    """For N(0, 1) against N(m, s^2) in one dimension, with kernel exp(-(x - y)^2/2): E k(x, y) = exp(-v^2/(2 (1 + c)))
    / sqrt(1 + c), with v and c the mean and the variance of x - y."""

    def expectation(mean, variance):
        return math.exp(-(mean**2) / (2 * (1 + variance))) / math.sqrt(1 + variance)

    m, s = 0.5, 1.5
    expected = expectation(0, 2) + expectation(0, 2 * s**2) - 2 * expectation(m, 1 + s**2)
    estimates = mmd(torch.randn(4000, 10, 1), m + s * torch.randn(4000, 10, 1))
    assert abs(estimates.mean() - expected) < 5 * estimates.std() / math.sqrt(4000)
    null = mmd(torch.randn(4000, 10, 1), torch.randn(4000, 10, 1))
    assert abs(null.mean()) < 5 * null.std() / math.sqrt(4000)


def test_mmd_is_differentiable():
    x, y = (torch.randn(4, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(mmd, (x, y))
    assert gradgradcheck(mmd, (x, y))


def test_mmd_of_large_vectors_is_bounded():
    """Between two samples far apart every kernel is 0, whatever rounding does to the distances."""
    x = (1e6 * torch.randn(50, 20)).requires_grad_()
    discrepancy = mmd(x, 1e6 * torch.randn(50, 20))
    assert discrepancy.abs() < 1e-3
    assert torch.autograd.grad(discrepancy, x)[0].isfinite().all()


@pytest.mark.parametrize("shapes", [((1, 3), (1, 3)), ((4, 3), (5, 3)), ((4, 3), (4, 2))])
def test_mmd_needs_two_samples_of_one_shape(shapes):
    with pytest.raises(ValueError, match="two samples of one shape"):
        mmd(*(torch.zeros(shape) for shape in shapes))
