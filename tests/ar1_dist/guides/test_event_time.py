"""Which event dimension is time, and chains along another one than the last."""

import copy

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from ar1_dist import AR1Normal
from ar1_dist.guides.event_time import MovedimDistribution, find_time_dim

K, T = 2, 5


def normal(*shape: int, event_dim: int | None = None):
    return dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape) if event_dim is None else event_dim)


def hmm(kind: type = dist.GaussianHMM):
    features = normal(K)
    if kind is dist.IndependentHMM:
        one = normal(1).expand([K])
        steps = normal(1).expand([K, T])
        return kind(dist.GaussianHMM(one, torch.eye(1), steps, torch.eye(1), steps, duration=T))
    if kind is dist.GaussianMRF:
        pair = dist.MultivariateNormal(torch.zeros(2 * K), torch.eye(2 * K)).expand([T])
        return kind(dist.MultivariateNormal(torch.zeros(K), torch.eye(K)), pair, pair)
    if kind is dist.DiscreteHMM:
        return kind(torch.zeros(3), torch.zeros(3, 3), normal(3, K, event_dim=1), duration=T)
    return kind(features, torch.eye(K), features, torch.eye(K), features, duration=T)


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        (normal(T), -1),
        (normal(1), -1),
        (normal(T, 1), -2),
        (normal(1, T), -1),
        (normal(1, T, 1), -2),
        (normal(1, 1), -1),
        (normal(T, K), None),
        (normal(3, T, K, event_dim=2), None),
        (dist.MultivariateNormal(torch.zeros(T, K), torch.eye(K)).to_event(1), None),
        (AR1Normal(torch.zeros(K, T), 1.0, 0.5).to_event(1), -1),
        (AR1Normal(torch.zeros(K, T), 1.0, 0.5).to_event(1).mask(torch.tensor(True)), -1),
        (AR1Normal(torch.zeros(T, 1), 1.0, 0.5).to_event(1), -1),
        (MovedimDistribution(AR1Normal(torch.zeros(K, T), 1.0, 0.5).to_event(1), -2), -2),
        (hmm(), -2),
        (hmm(dist.LinearHMM), -2),
        (hmm(dist.IndependentHMM), -2),
        (hmm(dist.GaussianMRF), -2),
        (hmm(dist.DiscreteHMM), -2),
        (hmm().mask(torch.tensor(True)), -2),
    ],
    ids=repr,
)
def test_which_dimension_is_time(prior, expected):
    assert find_time_dim(prior) == expected


@pytest.fixture
def chains() -> AR1Normal:
    return AR1Normal(torch.randn(3, K, T), torch.rand(3, K, T) + 0.5, atanh_rho=torch.randn(3, K, T - 1))


def test_values_are_moved(chains):
    base = chains.to_event(1)
    moved = MovedimDistribution(base, -2)
    assert (moved.batch_shape, moved.event_shape, moved.has_rsample) == ((3,), (T, K), True)
    torch.manual_seed(0)
    draws = moved.rsample((4,))
    torch.manual_seed(0)
    expected = base.rsample((4,))
    assert torch.equal(draws, expected.mT)
    torch.testing.assert_close(moved.log_prob(draws), base.log_prob(expected))
    assert torch.equal(moved.mean, base.mean.mT)
    assert torch.equal(moved.variance, base.variance.mT)
    assert torch.equal(moved.entropy(), base.entropy())
    assert not moved.sample().requires_grad
    expanded = moved.expand([6, 3])
    assert expanded.sample().shape == (6, 3, T, K)
    assert expanded.log_prob(draws[0]).shape == (6, 3)


def test_repr():
    chain = AR1Normal(torch.zeros(2, 5), 1.0, 0.5).to_event(1)
    assert repr(MovedimDistribution(chain, -2)) == f"MovedimDistribution({chain!r}, -2)"


def test_its_own_draw_is_scored_by_its_noise():
    """In float32, around a level at which rounding is as large as the innovations."""
    level = 1e5 + torch.arange(T) / 100
    chain = AR1Normal(level.expand(K, T), torch.linspace(1, 2, T), atanh_rho=torch.full((K, T - 1), 10.0))
    moved = MovedimDistribution(chain.to_event(1), -2)
    draw = moved.rsample()
    of_noise = moved.log_prob(draw).item()
    assert of_noise < K * T * 10  # minus the logarithm of the innovations' scale for each coordinate
    assert moved.log_prob(draw.clone()).item() < of_noise - 1e3
    again = copy.deepcopy(moved)
    assert again.log_prob(draw).item() < of_noise - 1e3
    del draw
    assert moved.log_prob(moved.mean).isfinite()


def test_divergences(chains):
    moved = MovedimDistribution(chains.to_event(1), -2)
    loc = torch.randn(T, K)
    for univariate in (dist.Normal, dist.Laplace):
        kl = kl_divergence(moved, univariate(loc, 2.0).to_event(2))
        expected = kl_divergence(chains, univariate(loc.mT, 2.0).to_event(1)).sum(-1)
        torch.testing.assert_close(kl, expected)
    other = MovedimDistribution(AR1Normal(torch.zeros(K, T), 1.0, 0.5).to_event(1), -2)
    torch.testing.assert_close(kl_divergence(moved, other), kl_divergence(chains, other.base_dist.base_dist).sum(-1))
    one = MovedimDistribution(AR1Normal(torch.zeros(1, T), 1.0, 0.5).to_event(1), -2)
    assert kl_divergence(one, normal(T, 1)).item() == pytest.approx(-2 * np.log(1 - 0.25), rel=1e-5)


@pytest.mark.parametrize(
    ("other", "error"),
    [
        (normal(T, K + 1), ValueError),
        (normal(T, K, event_dim=1), NotImplementedError),
        (dist.MultivariateNormal(torch.zeros(T, K), torch.eye(K)).to_event(1), NotImplementedError),
        (MovedimDistribution(normal(T, K, 4), -3), NotImplementedError),
    ],
)
def test_no_divergence(chains, other, error):
    with pytest.raises(error):
        kl_divergence(MovedimDistribution(chains.to_event(1), -2), other)
