import math

import mpmath
import numpy as np
import pyro.distributions
import pytest
import torch
from hypothesis import given, settings
from scipy.integrate import quad
from torch.distributions import (
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    StudentT,
    kl_divergence,
)

from ar1_dist import AR1Normal
from ar1_dist.functional import _log_cosh_ratio

from . import reference
from .cases import CASES, Case, any_case, any_pair, assert_close, over

LIBRARIES = [torch.distributions, pyro.distributions]
libraries = pytest.mark.parametrize("library", LIBRARIES, ids=["torch", "pyro"])


def dense_of(dist) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a chain, of a factorised, a dense or a low-rank normal, as arrays."""
    if isinstance(dist, Independent):
        return dist.mean.numpy(), torch.diag_embed(dist.variance).numpy()
    if isinstance(dist, AR1Normal):
        transform = dist.transform
        parameters = {"loc": transform.loc, "scale": transform.scale, "rho": transform.rho}
        return dist.mean.numpy(), reference.covariance({name: value.numpy() for name, value in parameters.items()})
    return dist.mean.numpy(), dist.covariance_matrix.numpy()


def expected_kl(q, p) -> np.ndarray:
    names = ("loc", "cov")
    batch_shape = np.broadcast_shapes(q.batch_shape, p.batch_shape)
    moments = []
    for dist in (q, p):
        arrays = zip(names, dense_of(dist), strict=True)
        moments.append(
            {name: np.broadcast_to(array, batch_shape + array.shape[len(dist.batch_shape) :]) for name, array in arrays}
        )
    q_moments, p_moments = moments
    result = np.empty(batch_shape)
    for index in np.ndindex(batch_shape):
        result[index] = reference.dense_kl(
            *(moment[name][index] for moment in (q_moments, p_moments) for name in names)
        )
    return result


def others(case: Case, library=torch.distributions) -> dict[str, torch.distributions.Distribution]:
    """A factorised, a dense and a low-rank normal over the space of the case."""
    generator = torch.Generator().manual_seed(case.seed % 2**32)
    shape = (*case.batch_shape, case.d)

    def randn(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    factor = randn(*shape, case.d) + 2 * torch.eye(case.d, dtype=torch.float64)
    covariance = factor @ factor.mT + 0.5 * torch.eye(case.d, dtype=torch.float64)
    return {
        "factorised": library.Independent(library.Normal(randn(*shape), randn(*shape).exp()), 1),
        "dense": library.MultivariateNormal(randn(*shape), covariance),
        "low rank": library.LowRankMultivariateNormal(randn(*shape), randn(*shape, 2), randn(*shape).exp()),
    }


@given(any_pair())
def test_between_chains(pair):
    first, second = pair
    for q, p in [(first, second), (second, first)]:
        assert_close(kl_divergence(q.build(), p.build()), reference.kl(q.arrays(), p.arrays()))


@libraries
@given(pair=any_pair(max_d=8))
@settings(max_examples=50)
def test_with_every_other_normal(library, pair):
    first, second = pair
    chain = first.build()
    for other in others(second, library).values():
        assert_close(kl_divergence(chain, other), expected_kl(chain, other))
        assert_close(kl_divergence(other, chain), expected_kl(other, chain))


@libraries
@given(pair=any_pair(max_d=8))
@settings(max_examples=50)
def test_of_joint_normals_to_factorised(library, pair):
    first, second = pair
    p = others(second, library)["factorised"]
    for name in ("dense", "low rank"):
        q = others(first, library)[name]
        assert_close(kl_divergence(q, p), expected_kl(q, p))


@over(CASES)
def test_cases(case):
    q, p = case.build(), Case(case.d, seed=99).build()
    assert_close(kl_divergence(q, p), reference.kl(case.arrays(), Case(case.d, seed=99).arrays()))


@given(any_case())
def test_zero_at_equality_and_never_negative(case):
    q = case.build()
    zero = kl_divergence(q, q)
    assert_close(zero, np.zeros(case.batch_shape))
    p = AR1Normal(q.loc + 1e-3, 1.001 * q.transform.scale, q.transform.rho)
    assert (kl_divergence(q, p) > 0).all()


@given(any_pair())
def test_invariant_under_a_joint_affine_change(pair):
    q, p = pair[0].build(), pair[1].build()
    shift, factor = torch.randn(pair[0].d, dtype=torch.float64), 3.7
    moved = [AR1Normal(factor * dist.loc + shift, factor * dist.transform.scale, dist.transform.rho) for dist in (q, p)]
    assert_close(kl_divergence(*moved), kl_divergence(q, p))


def test_equation_six_of_the_paper():
    """With s = scale^2: KL to a standard normal is (d (s - 1 - log s) - (d - 1) log(1 - rho^2) + |mu|^2)/2."""
    d, s, rho = 5, 0.6, 0.8
    mu = torch.randn(3, d, dtype=torch.float64)
    q = AR1Normal(mu, math.sqrt(s), rho)
    p = Independent(Normal(torch.zeros(d, dtype=torch.float64), 1.0), 1)
    expected = 0.5 * (d * (s - 1 - math.log(s)) - (d - 1) * math.log(1 - rho**2) + mu.square().sum(-1))
    assert_close(kl_divergence(q, p), expected)
    assert_close(kl_divergence(q, AR1Normal(torch.zeros(d, dtype=torch.float64), 1.0, 0.0)), expected)


def test_zero_rho_is_the_kl_of_independent_normals():
    q, p = (Independent(Normal(torch.randn(2, 6), torch.rand(2, 6) + 0.5), 1) for _ in range(2))
    chains = [AR1Normal(dist.base_dist.loc, dist.base_dist.scale, 0.0) for dist in (q, p)]
    expected = kl_divergence(q, p)
    for first, second in [(chains[0], chains[1]), (chains[0], p), (q, chains[1])]:
        assert_close(kl_divergence(first, second), expected, torch.float32)


@pytest.mark.parametrize("kind", ["chain", "factorised", "dense", "low rank"])
def test_monte_carlo(kind):
    case = Case(6, (2,), seed=4)
    p = {"chain": Case(6, (2,), seed=8).build(), **others(case)}[kind]
    for first, second in [(case.build(), p), (p, case.build())]:
        value = first.sample((50_000,))
        ratio = first.log_prob(value) - second.log_prob(value)
        standard_error = ratio.std(0) / math.sqrt(len(ratio))
        assert ((ratio.mean(0) - kl_divergence(first, second)).abs() < 5 * standard_error).all()


@libraries
@pytest.mark.parametrize("family", ["Laplace", "Gumbel"])
def test_to_factors_that_are_not_normal(library, family):
    """The sum over coordinates of an integral, and the total correlation."""
    q = Case(3).build()
    base = getattr(library, family)(torch.zeros(3, dtype=torch.float64), 2.0)
    expected = q.total_correlation.item()
    for t in range(3):
        marginal = Normal(q.mean[t], q.stddev[t])
        factor = getattr(library, family)(base.loc[t], base.scale[t])

        def integrand(x, marginal=marginal, factor=factor):
            x = torch.tensor(x, dtype=torch.float64)
            log_density = marginal.log_prob(x)
            return (log_density.exp() * (log_density - factor.log_prob(x))).item()

        centre, reach = q.mean[t].item(), 12 * q.stddev[t].item()
        expected += quad(integrand, centre - reach, centre + reach, points=[0.0], epsabs=1e-11, limit=200)[0]
    got = kl_divergence(q, library.Independent(base, 1))
    assert got.item() == pytest.approx(expected, abs=1e-7)


@libraries
def test_further_independent_layers(library):
    case = Case(4, (2, 3))
    q, p = case.build(), others(case, library)["factorised"]
    expected = kl_divergence(q, p)
    both = library.Independent(q, 1), library.Independent(p, 1)
    assert_close(kl_divergence(*both), expected.sum(-1))
    assert_close(kl_divergence(*reversed(both)), kl_divergence(p, q).sum(-1))
    flat = library.Independent(p.base_dist, 3)
    assert_close(kl_divergence(library.Independent(q, 2), flat), expected.sum())
    nested = library.Independent(library.Independent(p.base_dist, 1), 0)
    assert_close(kl_divergence(q, nested), expected)
    assert_close(kl_divergence(q, library.Independent(q, 0)), torch.zeros(2, 3, dtype=torch.float64))


def test_pyros_masks_and_expansions():
    case = Case(4, (3,))
    q, p = case.build(), others(case, pyro.distributions)["factorised"]
    mask = torch.tensor([True, False, True])
    expected = torch.where(mask, kl_divergence(q, p), 0.0)
    assert_close(kl_divergence(q.mask(mask), p.mask(mask)), expected)
    assert_close(kl_divergence(q.expand((2, 3)), p), kl_divergence(q, p).expand(2, 3))
    assert_close(kl_divergence(q, p.expand((2, 3))), kl_divergence(q, p).expand(2, 3))
    assert_close(
        kl_divergence(q.expand((2, 3)).to_event(1), p.expand((2, 3)).to_event(1)), kl_divergence(q, p).sum().expand(2)
    )


@pytest.mark.parametrize("kind", ["chain", "factorised", "dense", "low rank"])
def test_event_sizes_must_agree(kind):
    chain = Case(4).build()
    other = {"chain": Case(5).build(), **others(Case(5))}[kind]
    for pair in [(chain, other), (other, chain)]:
        with pytest.raises(ValueError, match=r"equal event shapes; got \((4|5),\).*\((4|5),\)"):
            kl_divergence(*pair)
    two = Independent(Normal(torch.zeros(2, 4), 1.0), 2)
    with pytest.raises(ValueError, match="equal event shapes"):
        kl_divergence(chain, two)


@pytest.mark.parametrize(
    "pair",
    [
        (Independent(Laplace(torch.zeros(4), 1.0), 1), Case(4).build()),
        (Case(4).build(), Independent(StudentT(torch.ones(4)), 1)),
        (Case(4).build(), torch.distributions.Dirichlet(torch.ones(4))),
        (torch.distributions.Dirichlet(torch.ones(4)), Case(4).build()),
    ],
    ids=["Laplace to chain", "chain to StudentT", "chain to Dirichlet", "Dirichlet to chain"],
)
def test_no_closed_form(pair):
    with pytest.raises(NotImplementedError, match="No KL|implemented"):
        kl_divergence(*pair)


def test_does_not_replace_what_is_registered():
    """torch's own pairs keep torch's own functions."""
    for q in (MultivariateNormal, LowRankMultivariateNormal):
        for p in (MultivariateNormal, LowRankMultivariateNormal):
            assert torch.distributions.kl._dispatch_kl(q, p).__module__ == "torch.distributions.kl"


@pytest.mark.parametrize("scale", [1e-4, 300.0], ids=["small", "large"])
def test_of_half_precision_to_factorised(scale, each_path):
    """Squares of the ratio of the scales would be 0, and infinite, in float16."""
    q = AR1Normal(torch.zeros(3, dtype=torch.float16), scale, 0.5)
    p = Independent(Normal(torch.zeros(3, dtype=torch.float16), 1.0), 1)
    expected = AR1Normal(torch.zeros(3, dtype=torch.float64), q.scale.double(), 0.5)
    assert kl_divergence(q, p).dtype == torch.float16
    wanted = kl_divergence(expected, Independent(Normal(torch.zeros(3, dtype=torch.float64), 1.0), 1))
    if wanted < torch.finfo(torch.float16).max:
        assert kl_divergence(q, p).item() == pytest.approx(wanted.item(), rel=1e-3)
    else:
        assert kl_divergence(q, p).item() == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_extreme_scales_to_factorised(dtype, each_path):
    """Of a scale whose square underflows; and to what is flat, from which everything is infinitely far."""
    q = AR1Normal(torch.zeros(3, dtype=dtype), 1e-23 if dtype == torch.float32 else 1e-170, 0.5)
    p = Independent(Normal(torch.zeros(3, dtype=dtype), 1.0), 1)
    expected = 3 * (-0.5 - math.log(q.scale.item())) - math.log(0.75)
    assert kl_divergence(q, p).item() == pytest.approx(expected, rel=1e-6)
    flat = Independent(Normal(torch.zeros(3, dtype=dtype), math.inf, validate_args=False), 1)
    assert kl_divergence(AR1Normal(torch.zeros(3, dtype=dtype), 1.0, 0.5), flat).item() == math.inf


@pytest.mark.parametrize("atanh_rho", [400.0, -700.0])
def test_between_chains_of_correlations_beyond_those_of_any_float(atanh_rho, each_path):
    """Their hyperbolic functions are finite up to 710, their products are not."""
    q, p = (
        {
            "loc": torch.zeros(3, dtype=torch.float64),
            "scale": torch.ones(1, dtype=torch.float64),
            "atanh_rho": torch.tensor([value], dtype=torch.float64, requires_grad=True),
        }
        for value in (atanh_rho, 0.999 * atanh_rho)
    )
    assert kl_divergence(AR1Normal(**q), AR1Normal(**q)).item() == pytest.approx(0, abs=1e-10)
    with mpmath.workdps(700):
        a, b = (mpmath.mpf(each["atanh_rho"].item()) for each in (q, p))
        r, s = mpmath.tanh(a), mpmath.tanh(b)
        pair = 0.5 * ((1 - 2 * r * s + s**2) / (1 - s**2) - 1) + mpmath.log(mpmath.cosh(a) / mpmath.cosh(b))
    got = kl_divergence(AR1Normal(**q), AR1Normal(**p))
    assert got.item() == pytest.approx(float(2 * pair), rel=1e-10)
    for gradient in torch.autograd.grad(got, [q["atanh_rho"], p["atanh_rho"]]):
        assert gradient.isfinite()


@pytest.mark.parametrize("event_dim", [0, 1])
def test_from_a_point(event_dim):
    """Pyro's convention, by which a guide of points has the divergence -log p."""
    p, v = Case(3, (2,)).build(), torch.ones(2, 3, dtype=torch.float64)
    point = pyro.distributions.Delta(v, event_dim=event_dim).to_event(1 - event_dim)
    assert_close(kl_divergence(point, p), -p.log_prob(v))


@pytest.mark.parametrize("x", [0.0, 1e-6, 0.3, -2.0, 15.0, -15.0])
@pytest.mark.parametrize("y", [0.0, 1e-6, -0.3, 2.0, 15.0, 15.001])
def test_log_cosh_ratio(x, y):
    expected = mpmath.log(mpmath.cosh(mpmath.mpf(x)) / mpmath.cosh(mpmath.mpf(y)))
    got = _log_cosh_ratio(*torch.tensor([x, y], dtype=torch.float64))
    assert got.item() == pytest.approx(float(expected), rel=1e-11, abs=1e-25)


def test_a_divergence_to_a_distribution_without_moments():
    """What is registered with torch is asked for the divergence alone."""

    class Own(torch.distributions.Distribution):
        arg_constraints: dict = {}
        support = torch.distributions.constraints.real

        def __init__(self):
            super().__init__(torch.Size([3]))

    @torch.distributions.register_kl(torch.distributions.Normal, Own)
    def _divergence(q, p):
        return q.loc.square()

    q = AR1Normal(torch.ones(3), 1.0, 0.5)
    assert_close(kl_divergence(q, Independent(Own(), 1)), 3 + q.total_correlation.double().numpy(), torch.float32)


def test_batch_shape_that_no_parameter_has():
    """Of a chain that was expanded, as a plate does it: Pyro asserts the shape of a divergence."""
    q, p = (AR1Normal(torch.full((3,), loc), 1.0, 0.5).expand((2, 4)) for loc in (0.0, 1.0))
    assert kl_divergence(q, p).shape == (2, 4)
    assert kl_divergence(q, AR1Normal(torch.zeros(3), 1.0, 0.5)).shape == (2, 4)
