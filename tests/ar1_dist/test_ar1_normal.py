import copy
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from hypothesis import given
from torch.distributions import Independent, MultivariateNormal, Normal

from ar1_dist import AR1Normal

from . import reference
from .cases import CASES, Case, any_case, assert_close, over

# --- Against the dense reference ---


@given(any_case())
def test_log_prob_entropy_and_views(case):
    q, parameters = case.build(), case.arrays()
    covariance = reference.covariance(parameters)
    value = np.random.default_rng(1).normal(size=(2, *case.batch_shape, case.d))
    assert_close(q.log_prob(torch.tensor(value)), reference.log_prob(parameters, value))
    assert_close(q.entropy(), reference.entropy(parameters))
    assert_close(q.covariance_matrix, covariance)
    assert_close(q.scale_tril, np.linalg.cholesky(covariance))
    assert_close(q.precision_matrix @ q.covariance_matrix, np.broadcast_to(np.eye(case.d), covariance.shape))
    assert_close(q.scale_tril @ q.scale_tril.mT, covariance)
    assert_close(q.variance, np.diagonal(covariance, axis1=-2, axis2=-1))
    assert_close(q.stddev, np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1)))


@over(CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cases(case, dtype):
    q = case.build(dtype)
    rounded = {name: value.double().numpy() for name, value in case.parameters(dtype).items()}
    value = torch.randn(*case.batch_shape, case.d, dtype=dtype)
    assert_close(q.log_prob(value), reference.log_prob(rounded, value.double().numpy()), dtype)
    assert_close(q.entropy(), reference.entropy(rounded), dtype)


@given(any_case())
def test_total_correlation(case):
    covariance = reference.covariance(case.arrays())
    marginals = np.log(np.diagonal(covariance, axis1=-2, axis2=-1)).sum(-1)
    assert_close(case.build().total_correlation, 0.5 * (marginals - np.linalg.slogdet(covariance)[1]))


@given(any_case())
def test_either_parametrisation(case):
    q, parameters = case.build(), case.parameters()
    rho = parameters.pop("rho")
    other = AR1Normal(**parameters, atanh_rho=rho.atanh())
    value = torch.randn(*case.batch_shape, case.d, dtype=torch.float64)
    for got, expected in [
        (other.rho, q.rho),
        (other.atanh_rho, q.atanh_rho),
        (other.log_prob(value), q.log_prob(value)),
        (other.covariance_matrix, q.covariance_matrix),
    ]:
        assert_close(got, expected)


# --- Three mistakes that other AR(1) distributions have made ---

STATIONARY = AR1Normal(torch.zeros(3, dtype=torch.float64), 2.0, 0.8)


def test_density_has_no_extra_boundary_term():
    """Each coordinate enters by one conditional density: the first by its marginal, none twice."""
    value = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    innovation_scale = 2.0 * math.sqrt(1 - 0.8**2)
    conditionals = Normal(
        torch.tensor([0.0, 0.8 * 1.0, 0.8 * -0.5], dtype=torch.float64),
        torch.tensor([2.0, innovation_scale, innovation_scale], dtype=torch.float64),
    )
    assert_close(STATIONARY.log_prob(value), conditionals.log_prob(value).sum())


def test_first_coordinate_has_the_marginal_variance():
    """Not the innovations' variance, nor that of a chain started at zero."""
    assert STATIONARY.covariance_matrix.diagonal().tolist() == pytest.approx([4.0, 4.0, 4.0])
    assert STATIONARY.rsample((200_000,))[:, 0].var().item() == pytest.approx(4.0, rel=0.02)


def test_scale_is_marginal_not_of_the_innovations():
    samples = STATIONARY.rsample((200_000,))
    assert samples.std(0).tolist() == pytest.approx([2.0] * 3, rel=0.01)
    innovations = samples[:, 1:] - 0.8 * samples[:, :-1]
    assert innovations.std(0).tolist() == pytest.approx([2.0 * 0.6] * 2, rel=0.01)


# --- Sampling ---


@given(any_case())
def test_same_noise_same_sample(case):
    q = case.build()
    dense = MultivariateNormal(q.loc, scale_tril=q.scale_tril)
    torch.manual_seed(case.seed)
    expected = dense.rsample((2, 3))
    torch.manual_seed(case.seed)
    assert_close(q.rsample((2, 3)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_rho_is_independent_normal(dtype):
    loc, scale = torch.randn(3, 6, dtype=dtype), torch.rand(3, 6, dtype=dtype) + 0.5
    q, p = AR1Normal(loc, scale, 0.0), Independent(Normal(loc, scale), 1)
    torch.manual_seed(0)
    z = p.rsample((2,))
    torch.manual_seed(0)
    assert torch.equal(q.rsample((2,)), z)
    ulps = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(q.log_prob(z), p.log_prob(z), rtol=ulps, atol=ulps)
    torch.testing.assert_close(q.entropy(), p.entropy(), rtol=ulps, atol=ulps)
    assert torch.equal(q.total_correlation, torch.zeros(3, dtype=dtype))


@over([Case(4, (2,), seed=3), Case(6, shared_scale=True, shared_rho=True, seed=5)])
def test_moments_of_samples(case):
    """The mean and the covariance of n samples, within 5 of their standard errors."""
    n = 100_000
    q = case.build()
    samples = q.sample((n,)).numpy()
    covariance = reference.covariance(case.arrays())
    variance = np.diagonal(covariance, axis1=-2, axis2=-1)
    assert (np.abs(samples.mean(0) - q.mean.numpy()) < 5 * np.sqrt(variance / n)).all()
    centred = samples - samples.mean(0)
    empirical = np.einsum("n...i,n...j->...ij", centred, centred) / n
    standard_error = np.sqrt((variance[..., :, None] * variance[..., None, :] + covariance**2) / n)
    assert (np.abs(empirical - covariance) < 5 * standard_error).all()


def test_entropy_by_monte_carlo():
    q = Case(7, seed=2).build()
    log_prob = q.log_prob(q.sample((100_000,)))
    assert abs(-log_prob.mean() - q.entropy()) < 5 * log_prob.std() / math.sqrt(len(log_prob))


def test_sample_is_detached_and_rsample_is_not():
    q = AR1Normal(**Case(3).parameters(requires_grad=True))
    assert not q.sample().requires_grad
    assert q.rsample().requires_grad


# --- Shapes ---


@pytest.mark.parametrize(
    ("loc", "scale", "rho", "batch_shape", "d"),
    [
        ((5,), (), (), (), 5),
        ((5,), (1,), (4,), (), 5),
        ((3, 5), (5,), (1,), (3,), 5),
        ((5,), (2, 1, 1), (3, 4), (2, 3), 5),
        ((4, 2), (2,), (4, 1), (4,), 2),
        ((1,), (1,), (0,), (), 1),
        ((1,), (2, 1), (1,), (2,), 1),
        ((0, 5), (5,), (4,), (0,), 5),
    ],
)
def test_shapes(loc, scale, rho, batch_shape, d):
    q = AR1Normal(torch.zeros(loc), torch.ones(scale), torch.zeros(rho), validate_args=True)
    assert AR1Normal.infer_shapes(loc=loc, scale=scale, rho=rho) == (q.batch_shape, q.event_shape)
    assert AR1Normal.infer_shapes(loc, scale, atanh_rho=rho) == (q.batch_shape, q.event_shape)
    assert (q.batch_shape, q.event_shape) == (batch_shape, (d,))
    assert q.loc.shape == q.mean.shape == q.mode.shape == q.variance.shape == q.stddev.shape == (*batch_shape, d)
    assert q.scale.shape == (*batch_shape, *(scale[-1:] or (1,)))
    assert q.rho.shape == q.atanh_rho.shape == (*batch_shape, *(rho[-1:] or (1,)))
    assert q.scale_tril.shape == q.covariance_matrix.shape == q.precision_matrix.shape == (*batch_shape, d, d)
    assert q.entropy().shape == q.total_correlation.shape == q.log_prob(torch.zeros(d)).shape == batch_shape
    assert q.rsample((6,)).shape == (6, *batch_shape, d)
    assert q.log_prob(q.rsample((6,))).shape == (6, *batch_shape)


def test_one_dimension_ignores_rho():
    normal = Normal(torch.tensor([0.3]), 2.0)
    value = torch.tensor([1.7])
    for rho in (0.9, torch.zeros(0), torch.tensor([-0.5])):
        q = AR1Normal(torch.tensor([0.3]), 2.0, rho)
        assert q.log_prob(value).item() == pytest.approx(normal.log_prob(value).item())
        assert q.covariance_matrix.tolist() == q.scale_tril.square().tolist() == [[4.0]]


@given(any_case())
def test_expand(case):
    q = case.build()
    shape = (4, *case.batch_shape)
    expanded = q.expand(shape)
    value = torch.randn(*shape, case.d, dtype=torch.float64)
    assert type(expanded) is AR1Normal
    assert expanded.batch_shape == shape
    assert expanded.rsample().shape == value.shape
    assert expanded.transform is q.transform
    for got, expected in [
        (expanded.log_prob(value), q.log_prob(value)),
        (expanded.entropy(), q.entropy().expand(shape)),
        (expanded.covariance_matrix, q.covariance_matrix.expand(*shape, case.d, case.d)),
        (expanded.rho, q.rho.expand(4, *q.rho.shape)),
    ]:
        assert torch.equal(got, expected)


def test_expand_of_a_singleton_and_of_a_subclass():
    class Chain(AR1Normal):
        pass

    q = Chain(torch.zeros(2, 1, 3), 1.0, 0.5)
    assert type(q.expand((2, 4))) is Chain
    assert q.expand((2, 4)).sample().shape == (2, 4, 3)
    for shape in ((3, 1), (1,), ()):
        with pytest.raises(RuntimeError, match="expand"):
            q.expand(shape)


# --- What torch expects of a distribution ---


def test_repr():
    assert repr(AR1Normal(torch.zeros(3), 2.0, 0.5)) == "AR1Normal(loc: torch.Size([3]), scale: 2.0, rho: 0.5)"
    assert "atanh_rho: torch.Size([2])" in repr(AR1Normal(torch.zeros(3), 2.0, atanh_rho=torch.zeros(2)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))], ids=["deepcopy", "pickle"])
def test_copies(copied):
    q = AR1Normal(**Case(4, (2,), shared_rho=True).parameters(requires_grad=True), validate_args=False)
    q.log_prob(torch.zeros(4))  # derives atanh_rho
    again = copied(q)
    assert again.transform == q.transform
    assert again._validate_args is False
    assert (again.batch_shape, again.event_shape) == (q.batch_shape, q.event_shape)
    torch.testing.assert_close(again.entropy(), q.entropy())


@pytest.mark.parametrize("name", ["rho", "atanh_rho"])
def test_built_once_and_trained(name):
    """Leaves may change under a distribution that was built before, and be differentiated through more than once."""
    loc, scale = torch.zeros(4), torch.ones(1, requires_grad=True)
    correlation = torch.full((3,), 0.1, requires_grad=True)
    q = AR1Normal(loc, scale, **{name: correlation})
    optimiser = torch.optim.SGD([scale, correlation], lr=0.1)
    value = torch.tensor([1.0, 1.1, 0.9, 1.0])
    for _ in range(3):
        optimiser.zero_grad()
        (-q.log_prob(value) - q.entropy() + q.rsample().sum()).backward()
        optimiser.step()
    fresh = AR1Normal(loc, scale, **{name: correlation})
    assert correlation.min() > 0.1
    assert torch.equal(q.log_prob(value), fresh.log_prob(value))
    assert torch.equal(q.covariance_matrix, fresh.covariance_matrix)


def test_parameters_are_not_copied():
    loc = torch.zeros(3)
    assert AR1Normal(loc, 1.0, 0.5).loc.data_ptr() == loc.data_ptr()


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.float32, torch.float64, torch.float32), torch.float64),
        ((torch.float16, torch.bfloat16, torch.float16), torch.float32),
        ((torch.float16, torch.float16, torch.float32), torch.float32),
    ],
)
def test_floating_types_promote(dtypes, expected):
    loc, scale, rho = (torch.full((3 - i // 2,), 0.5, dtype=dtype) for i, dtype in enumerate(dtypes))
    q = AR1Normal(loc, scale, rho)
    assert q.loc.dtype == q.scale.dtype == q.rho.dtype == q.sample().dtype == q.entropy().dtype == expected
    assert AR1Normal(loc, torch.tensor(1.0, dtype=torch.float64), rho[:1]).scale.dtype == torch.promote_types(
        loc.dtype, rho.dtype
    )


def test_numbers_take_locs_dtype():
    q = AR1Normal(torch.zeros(3, dtype=torch.float64), 2, np.float32(0.5))
    assert q.scale.dtype == q.rho.dtype == torch.float64


# --- Bad input ---

GOOD = {"loc": torch.zeros(4, 3), "scale": torch.ones(3), "rho": torch.zeros(2)}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"loc": torch.tensor(0.0)}, r"loc must have shape \(\.\.\., d\).*\(\)"),
        ({"loc": torch.zeros(2, 0)}, r"loc must have shape.*at least 1.*\(2, 0\)"),
        ({"loc": 0.0}, "loc must be a floating-point tensor"),
        ({"loc": [0.0, 1.0]}, "loc must be a floating-point tensor"),
        ({"loc": torch.zeros(4, 3, dtype=torch.int64)}, r"loc must be a floating.*int64 of shape \(4, 3\)"),
        ({"scale": torch.ones(2)}, r"scale must be.*dimension is 1 or 3.*got shape \(2,\)"),
        ({"scale": torch.ones(3, dtype=torch.bool)}, r"scale must be.*bool of shape \(3,\)"),
        ({"scale": True}, "scale must be.*True"),
        ({"scale": torch.ones(3, dtype=torch.complex64)}, "scale must be.*complex64"),
        ({"scale": 1j}, "scale must be.*1j"),
        ({"scale": None}, "scale must be.*None"),
        ({"rho": torch.zeros(3)}, r"rho must be.*dimension is 1 or 2.*got shape \(3,\)"),
        ({"rho": torch.zeros(2, dtype=torch.int32)}, "rho must be.*int32"),
        ({"rho": "0.5"}, "rho must be.*'0.5'"),
        ({"scale": torch.ones(5, 3)}, r"must broadcast.*loc of shape \(4, 3\), scale of shape \(5, 3\)"),
        ({"rho": None}, "Exactly one of rho and atanh_rho"),
        ({"atanh_rho": 0.0}, "Exactly one of rho and atanh_rho"),
        ({"rho": None, "atanh_rho": torch.zeros(4)}, r"atanh_rho must be.*dimension is 1 or 2.*got shape \(4,\)"),
    ],
)
@pytest.mark.parametrize("validate_args", [True, False])
def test_wrong_shapes_and_types(bad, message, validate_args):
    with pytest.raises(ValueError, match=message):
        AR1Normal(**(GOOD | bad), validate_args=validate_args)


@pytest.mark.parametrize(
    ("bad", "constraint"),
    [
        ({"loc": torch.full((4, 3), math.nan)}, "IndependentConstraint"),
        ({"loc": torch.full((4, 3), math.inf)}, "IndependentConstraint"),
        ({"scale": torch.tensor([1.0, 0.0, 1.0])}, "GreaterThan"),
        ({"scale": -1.0}, "GreaterThan"),
        ({"scale": math.inf}, "GreaterThan"),
        ({"scale": math.nan}, "GreaterThan"),
        ({"rho": 1.0}, "OpenInterval"),
        ({"rho": torch.tensor([0.0, -1.0])}, "OpenInterval"),
        ({"rho": 1.5}, "OpenInterval"),
        ({"rho": math.nan}, "OpenInterval"),
        ({"rho": None, "atanh_rho": -math.inf}, "Real"),
        ({"rho": None, "atanh_rho": math.nan}, "Real"),
    ],
)
def test_wrong_values(bad, constraint):
    name = next(name for name, value in bad.items() if value is not None)
    with pytest.raises(ValueError, match=rf"(?s)parameter {name} \(Tensor of shape \(.*{constraint}"):
        AR1Normal(**(GOOD | bad), validate_args=True)
    AR1Normal(**(GOOD | bad), validate_args=False)


def test_wrong_sample():
    q = AR1Normal(torch.zeros(2, 3), 1.0, 0.5, validate_args=True)
    for value in (torch.zeros(4), torch.zeros(2, 1), torch.tensor(0.0)):
        with pytest.raises(ValueError, match="size of value|loc's"):
            q.log_prob(value)
        with pytest.raises(ValueError, match="last dimension must be 3"):
            AR1Normal(torch.zeros(2, 3), 1.0, 0.5, validate_args=False).log_prob(value)
    with pytest.raises(ValueError, match="not broadcastable"):
        q.log_prob(torch.zeros(5, 3))
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="value"):
            q.log_prob(torch.full((3,), value))
    with pytest.raises(ValueError, match="Tensor"):
        q.log_prob(0.0)


def test_default_validation_is_torchs():
    code = "import torch; from ar1_dist import AR1Normal; AR1Normal(torch.zeros(3), -1.0, 0.5); print('accepted')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 1
    assert subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True).stdout == "accepted\n"


def test_validation_is_the_process_s_where_no_argument_says_otherwise():
    """Also of distributions that exist, and of those made of them, as of torch's."""
    chain = AR1Normal(torch.zeros(3), 1.0, 0.5)
    made = [chain, chain.expand((2,)), chain.marginal([0, 1]), chain.condition([0], torch.zeros(1))]
    strict = AR1Normal(torch.zeros(3), 1.0, 0.5, validate_args=True)
    for is_validated, checked in (
        (True, [*made, strict]),
        (False, [strict, strict.expand((2,)), strict.marginal([0])]),
    ):
        with pyro.validation_enabled(is_validated):
            for q in checked:
                with pytest.raises(ValueError, match="to be finite"):
                    q.log_prob(torch.full(q.event_shape, math.inf))
    with pyro.validation_enabled(False):
        for q in made:
            assert not q.log_prob(torch.full(q.event_shape, math.inf)).isfinite().any()


# --- Cost ---


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's own peak")
def test_ten_million_dimensions_within_one_gigabyte():
    """Sampling, density and gradients, the parameters and their gradients included."""
    code = """
import torch
from ar1_dist import AR1Normal
def peak():  # unlike resource.getrusage's, it is not the parent's
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return 1024 * int(lines["VmHWM"].split()[0])
torch.ones(10, requires_grad=True).exp().sum().backward()
before = peak()
def use(size):
    loc = torch.zeros(10_000_000, requires_grad=True)
    scale = torch.ones(size, requires_grad=True)
    rho = torch.full((max(size - 1, 1),), 0.9, requires_grad=True)
    q = AR1Normal(loc, scale, rho)
    q.log_prob(q.rsample()).backward()
    assert rho.grad.isfinite().all()
use(1)
use(10_000_000)
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1e9
