import copy
import pickle

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from torch.autograd.functional import jacobian
from torch.distributions import Independent, TransformedDistribution
from torch.distributions import Normal as TorchNormal

from ar1_dist import AR1Normal, AR1Transform
from ar1_dist.functional import log_cosh

from . import reference
from .cases import CASES, any_case, assert_close, over


@given(any_case())
def test_colours_by_the_cholesky_factor(case):
    parameters = case.arrays()
    noise = np.random.default_rng(1).normal(size=(2, *case.batch_shape, case.d))
    factor = np.linalg.cholesky(reference.covariance(parameters))
    expected = parameters["loc"] + (factor @ noise[..., None])[..., 0]
    assert_close(AR1Transform(**case.parameters())(torch.tensor(noise)), expected)


@given(any_case())
def test_inverse_undoes(case):
    transform = AR1Transform(**case.parameters())
    noise = torch.randn(2, *case.batch_shape, case.d, dtype=torch.float64)
    assert_close(transform.inv(transform(noise)), noise.numpy())


@over([case for case in CASES if case.d <= 17 and not case.batch_shape])
def test_log_det_is_the_jacobians(case):
    transform = AR1Transform(**case.parameters())
    x = torch.randn(case.d, dtype=torch.float64)
    y = transform(x)
    assert_close(transform.log_abs_det_jacobian(x, y), torch.linalg.slogdet(jacobian(transform, x)).logabsdet)
    assert_close(transform.inv.log_abs_det_jacobian(y, x), -transform.log_abs_det_jacobian(x, y))


def test_batch_of_parameters_takes_one_value():
    transform = AR1Transform(torch.zeros(4, 3), 2.0, torch.full((5, 1, 1), 0.5))
    x = torch.randn(3)
    assert transform(x).shape == transform.inv(x).shape == (5, 4, 3)
    assert transform.log_abs_det_jacobian(x, x).shape == (5, 4)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_chains(dtype, shared):
    d = 100_000
    torch.manual_seed(1)
    atanh_rho = torch.full((1,), 2.0, dtype=dtype) if shared else torch.randn(d - 1, dtype=dtype)
    transform = AR1Transform(torch.randn(d, dtype=dtype), 1.5, atanh_rho=atanh_rho)
    noise = torch.randn(d, dtype=dtype)
    value = transform(noise)
    precision = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(transform.inv(value), noise, rtol=precision, atol=precision)
    rho = np.tanh(np.broadcast_to(atanh_rho.double().numpy(), (d - 1,)))
    expected = d * np.log(1.5) + 0.5 * np.log1p(-(rho**2)).sum()
    assert transform.log_abs_det_jacobian(noise, value).item() == pytest.approx(expected, rel=1e-6)


def test_is_a_torch_transform():
    parameters = {"loc": torch.randn(4), "scale": torch.rand(4) + 0.5, "rho": torch.full((3,), -0.7)}
    flow = TransformedDistribution(
        TorchNormal(torch.zeros(4), 1.0).expand((4,)), [AR1Transform(**parameters)], validate_args=True
    )
    value = torch.randn(7, 4)
    torch.testing.assert_close(flow.log_prob(value), AR1Normal(**parameters).log_prob(value))


def test_batch_shape_of_a_transformed_distribution():
    """Parameters' leading dimensions are the distribution's, as of torch's affine transform."""
    base = Independent(TorchNormal(torch.zeros(3), 1.0), 1)
    flow = TransformedDistribution(base, [AR1Transform(torch.zeros(4, 3), 1.0, 0.5)])
    assert (flow.batch_shape, flow.event_shape) == ((4,), (3,))
    assert flow.rsample((2,)).shape == (2, 4, 3)
    assert flow.log_prob(torch.zeros(3)).shape == (4,)
    inverse = TransformedDistribution(base, [AR1Transform(torch.zeros(4, 3), 1.0, 0.5).inv])
    assert inverse.rsample((2,)).shape == (2, 4, 3)


def test_cached_transform_can_be_copied():
    scale = torch.tensor(2.0, requires_grad=True)
    copied = copy.deepcopy(AR1Transform(torch.zeros(3), scale, 0.5).with_cache())
    assert copied.scale.item() == 2.0


def test_cache_returns_the_very_noise():
    transform = AR1Transform(torch.zeros(3), 1.0, 0.5).with_cache(1)
    noise = torch.randn(3)
    assert transform.inv(transform(noise)) is noise
    assert transform.with_cache(1) is transform


def test_equality():
    def build(rho):
        return AR1Transform(torch.zeros(3), 1.0, rho)

    assert build(0.5) == build(0.5)
    assert build(0.5) != build(0.25)
    assert build(0.5) != AR1Transform(torch.zeros(3), 1.0, atanh_rho=0.5)
    assert build(torch.tensor([0.5, 0.5])) != build(0.5)


def test_copies_leave_out_what_was_derived():
    rho = torch.tensor([0.5], requires_grad=True)
    transform = AR1Transform(torch.zeros(3), 1.0, rho)
    assert transform.atanh_rho.requires_grad
    for copied in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert copied == transform
        assert copied.rho.is_leaf
        assert copied.atanh_rho.item() == pytest.approx(transform.atanh_rho.item())


def test_wrong_event_size():
    transform = AR1Transform(torch.zeros(3), 1.0, 0.5)
    for call in (transform, transform.inv):
        with pytest.raises(ValueError, match=r"must be 3, loc's; got shape \(2, 1\)"):
            call(torch.zeros(2, 1))


@pytest.mark.parametrize("x", [0.0, 1e-20, 1e-4, -0.3, 1.0, -15.0, 40.0])
def test_log_cosh(x):
    expected = mpmath.log(mpmath.cosh(mpmath.mpf(x)))
    assert log_cosh(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(float(expected), rel=1e-14, abs=0)
