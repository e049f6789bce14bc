"""Parameters at the edge of their meaning, without validation: the limit, or an error that says which parameter it is,
and never a NaN that nobody put in."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from ar1_dist import AR1Normal, functional
from ar1_dist.recurrence import autoregression, linear_recurrence, moebius_recurrence

from . import reference
from .cases import CASES, Case, assert_close, over

INF, NAN = math.inf, math.nan
DTYPES = [torch.float32, torch.float64]


def readings(value: Tensor, noise_scale: Tensor) -> Independent:
    return Independent(Normal(value, noise_scale, validate_args=False), 1, validate_args=False)


# --- A reading without noise ---


@over([case for case in CASES if case.d <= 17])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_reading_without_noise_is_given(case, dtype):
    """As `condition` has it, with the density of the readings as evidence; others are seen with noise or missing."""
    random = np.random.default_rng(case.seed)
    p, d = case.arrays(), case.d
    value = random.normal(size=(*case.batch_shape, d))
    noise = np.resize([0.0, 0.7, INF, 0.0, 0.0, INF], d)
    q = AR1Normal(**case.parameters(dtype))
    posterior, evidence = q.conjugate_update(
        readings(torch.tensor(value, dtype=dtype), torch.tensor(noise, dtype=dtype))
    )

    seen = np.flatnonzero(noise < INF)
    covariance = reference.covariance(p)
    of_seen = covariance[..., seen[:, None], seen] + np.diag(noise[seen] ** 2)
    error = (value - p["loc"])[..., seen]
    gain = np.linalg.solve(of_seen, covariance[..., seen, :]).swapaxes(-1, -2)
    mean = p["loc"] + (gain @ error[..., None])[..., 0]
    variance = np.diagonal(covariance - gain @ covariance[..., seen, :], axis1=-2, axis2=-1)
    log_densities = [
        scipy.stats.multivariate_normal(np.zeros(seen.size), of_seen[index]).logpdf(error[index])
        for index in np.ndindex(case.batch_shape)
    ]
    exact = noise == 0
    assert torch.equal(posterior.loc[..., exact], torch.tensor(value[..., exact], dtype=dtype))
    assert (posterior.stddev[..., exact] == 0).all()
    assert_close(posterior.loc, mean, dtype)
    assert_close(posterior.stddev[..., ~exact], np.sqrt(variance[..., ~exact]), dtype)
    assert_close(evidence, np.reshape(log_densities, case.batch_shape), dtype)
    draws = posterior.sample((3,))
    assert torch.equal(draws[..., exact], torch.tensor(value[..., exact], dtype=dtype).expand(draws[..., exact].shape))
    with pytest.raises(ValueError, match="scale is 0 at place"):
        kl_divergence(q, posterior)


def test_gradients_by_a_reading_without_noise_are_those_of_the_density():
    case, index = Case(6, (2,), seed=3), [1, 2, 4]
    value = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    noise = torch.full((6,), INF, dtype=torch.float64).index_fill(0, torch.tensor(index), 0.0)

    def gradients(function):
        given = case.parameters(requires_grad=True)
        return torch.autograd.grad(function(AR1Normal(**given)).sum(), [value, *given.values()])

    def evidence(q):
        padded = torch.full((2, 6), NAN, dtype=torch.float64).index_copy(-1, torch.tensor(index), value)
        posterior, log_normalizer = q.conjugate_update(readings(padded, noise))
        return log_normalizer + posterior.loc.square().sum(-1) + posterior.scale.sum(-1)

    def density(q):
        rest = q.condition(index, value)
        of_rest = rest.loc.square().sum(-1) + rest.scale.sum(-1)
        return q.marginal(index).log_prob(value.clone()) + of_rest + value.square().sum(-1)

    for got, wanted in zip(gradients(evidence), gradients(density), strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize("noise", [1e-6, 1e-10, 1e-15, 1e-40, 1e-200])
@pytest.mark.parametrize("max_rho", [0.5, 0.999])
def test_readings_far_sharper_than_the_chain(noise, max_rho):
    case = Case(40, max_rho=max_rho, seed=1)
    p, value = case.arrays(), np.random.default_rng(0).normal(size=40)
    posterior, evidence = case.build().conjugate_update(
        readings(torch.from_numpy(value), torch.full((40,), noise, dtype=torch.float64))
    )
    wanted = scipy.stats.multivariate_normal(p["loc"], reference.covariance(p) + noise**2 * np.eye(40)).logpdf(value)
    # The dense solution's own error is up to the condition number of the covariance times a rounding.
    torch.testing.assert_close(evidence.item(), float(wanted), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(posterior.stddev.numpy() / noise, np.ones(40), rtol=1e-6, atol=0.0)


# --- A start that is known exactly ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_first_coordinate_known_exactly(dtype):
    loc = torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=dtype)
    initial = torch.zeros((), dtype=dtype, requires_grad=True)
    walk = AR1Normal.from_transitions(loc, 1.0, 0.5, initial, validate_args=False)
    assert_close(walk.stddev, 0.5 * np.sqrt(np.arange(4)), dtype)
    assert (walk.sample((5,))[..., 0] == 2.0).all()
    data = torch.tensor([1.0, 1.5, -1.0, 0.3], dtype=dtype)
    posterior, evidence = walk.conjugate_update(readings(data, torch.ones(4, dtype=dtype)))
    covariance = 0.25 * np.minimum.outer(np.arange(4), np.arange(4)) + np.eye(4)
    assert_close(evidence, scipy.stats.multivariate_normal(loc.numpy(), covariance).logpdf(data), dtype)
    assert torch.equal(posterior.loc[0], loc[0])
    (gradient,) = torch.autograd.grad(evidence + posterior.loc.sum(), initial)
    assert gradient == 0  # of an even function
    with pytest.raises(ValueError, match="initial_scale"):
        AR1Normal.from_transitions(loc, 1.0, 0.5, 0.0, validate_args=True)
    following = walk.marginal([1, 2, 3])
    assert_close(
        following.log_prob(data[1:]), MultivariateNormal(loc[1:], following.covariance_matrix).log_prob(data[1:]), dtype
    )


# --- Times ---


@pytest.mark.parametrize("validate_args", [True, False])
def test_times_that_are_rounded_to_each_other(validate_args):
    seconds = torch.tensor([1_700_000_000, 1_700_000_030, 1_700_000_300])
    arguments = {"loc": torch.zeros(3), "scale": 1.0, "timescale": 60.0, "validate_args": validate_args}
    q = AR1Normal.from_times(seconds, **arguments)
    assert_close(q.rho, np.exp([-0.5, -4.5]), torch.float32)
    with pytest.raises(ValueError, match=r"times must increase.* are equal.* Unix seconds"):
        AR1Normal.from_times(seconds.float(), **arguments)
    with pytest.warns(UserWarning, match="numbers lie 1.3e.02 apart, but differ by as little as 2.6e.02"):
        AR1Normal.from_times(seconds.float()[[0, 2]], torch.zeros(2), 1.0, 60.0, validate_args=validate_args)
    for exact in (
        torch.arange(1_000_000.0)[::1000],
        torch.tensor([2e6, 2e6 + 1, 2e6 + 3]),
        2_460_000.5 + torch.arange(9.0),
        torch.arange(200).half(),
        torch.arange(20).bfloat16(),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            AR1Normal.from_times(exact, torch.zeros(len(exact)), 1.0, 60.0, validate_args=validate_args)
    for backwards in (seconds.flip(0), seconds.double().flip(0)):
        with pytest.raises(ValueError, match="some decrease"):
            AR1Normal.from_times(backwards, **arguments)


# --- Everything else ---

D = 4
LOC = torch.zeros(D)
CHAIN = {"loc": LOC, "scale": torch.ones(D), "rho": torch.full((D - 1,), 0.5)}
OTHER = readings(LOC, torch.ones(D))
ONE = torch.ones(D)


def _at_second(value: float, like: Tensor = ONE) -> Tensor:
    return torch.where(torch.arange(like.numel()) == 1, value, like)


EDGES = {
    "scale": [0.0, INF, 1e-42, 1e38],
    "rho": [1.0, -1.0],
    "atanh_rho": [INF, -INF, 60.0, 1e38],
    "loc": [INF, 1e38],
}
OPERATIONS = {
    "rsample": lambda q: q.rsample(),
    "log_prob at a draw": lambda q: q.log_prob(q.rsample()),
    "log_prob at loc": lambda q: q.log_prob(torch.zeros(D)),
    "log_prob at infinity": lambda q: q.log_prob(torch.full((D,), INF)),
    "entropy": lambda q: q.entropy(),
    "total_correlation": lambda q: q.total_correlation,
    "scale_tril": lambda q: q.scale_tril,
    "covariance_matrix": lambda q: q.covariance_matrix,
    "precision_matrix": lambda q: q.precision_matrix,
    "KL to a chain": lambda q: kl_divergence(q, AR1Normal(LOC, 1.0, 0.5)),
    "KL from a chain": lambda q: kl_divergence(AR1Normal(LOC, 1.0, 0.5), q),
    "KL to normals": lambda q: kl_divergence(q, OTHER),
    "KL from normals": lambda q: kl_divergence(OTHER, q),
    "KL from a dense normal": lambda q: kl_divergence(MultivariateNormal(LOC, torch.eye(D)), q),
    "KL to a dense normal": lambda q: kl_divergence(q, MultivariateNormal(LOC, torch.eye(D))),
    "marginal": lambda q: q.marginal([0, 2, 3]),
    "condition": lambda q: q.condition([0], torch.zeros(1)),
    "condition there": lambda q: q.condition([1], torch.zeros(1)),
    "update": lambda q: q.conjugate_update(OTHER),
    "update by a chain": lambda q: q.conjugate_update(AR1Normal(LOC, 1.0, 0.5)),
    "update of a chain": lambda q: AR1Normal(LOC, 1.0, 0.5).conjugate_update(q),
}


def _numbers(result) -> list[Tensor]:
    if isinstance(result, AR1Normal):
        return [result.loc, result.scale, result.atanh_rho]
    return [result] if isinstance(result, Tensor) else [x for each in result for x in _numbers(each)]


def _is_limit_or_told(function, name: str) -> None:
    told, result = "", ()
    try:
        result = function()
    except ValueError as error:
        told = str(error)
    assert not any(x.isnan().any() for x in _numbers(result))
    assert not told or ("is not defined here" in told and (name in told or "numbers leave the range" in told))


@pytest.mark.usefixtures("each_path")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in EDGES.items() for value in values])
def test_chains(name, value, operation):
    given = CHAIN if name != "atanh_rho" else {key: x for key, x in CHAIN.items() if key != "rho"}
    edge = _at_second(value, CHAIN["rho"] if "rho" in name else CHAIN[name])
    q = AR1Normal(**(given | {name: edge}), validate_args=False)
    _is_limit_or_told(lambda: OPERATIONS[operation](q), name)


@pytest.mark.parametrize("value", [0.0, INF, 1e-42, 1e38, -1.0])
@pytest.mark.parametrize("name", ["coefficient", "noise_scale", "initial_scale", "timescale", "scale"])
def test_constructors(name, value):
    if name in ("timescale", "scale"):
        given = {"times": torch.arange(4.0), "loc": LOC, "scale": 1.0, "timescale": 1.0}
        build = AR1Normal.from_times
    else:
        given = {"loc": LOC, "coefficient": 1.0, "noise_scale": 1.0, "initial_scale": 1.0}
        build = AR1Normal.from_transitions
    _is_limit_or_told(lambda: build(**(given | {name: value}), validate_args=False), name)


@pytest.mark.parametrize("noise", [0.0, 1e-42, 1e38, INF, -1.0])
@pytest.mark.parametrize("value", [0.0, 1e38, INF])
@pytest.mark.parametrize("everywhere", [False, True])
def test_readings(noise, value, everywhere):
    given = [torch.full((D,), x) if everywhere else _at_second(x) for x in (value, noise)]
    name = "value" if value == INF and noise != INF else "noise_scale"
    _is_limit_or_told(lambda: AR1Normal(**CHAIN).conjugate_update(readings(*given)), name)


def test_limits_are_right():
    """Those of densities and divergences, as a sampler meets them that tries extreme parameters."""
    off = {"validate_args": False}
    torch.distributions.Distribution.set_default_validate_args(False)
    flat = AR1Normal(LOC, _at_second(INF), 0.5, **off)
    sharp = AR1Normal(LOC, _at_second(0.0), 0.5, **off)
    equal = AR1Normal(LOC, 1.0, _at_second(1.0, CHAIN["rho"]), **off)
    chain = AR1Normal(**CHAIN, **off)
    for q in (flat, sharp, equal):
        assert q.log_prob(ONE * torch.tensor([1.0, 2.0, 3.0, 4.0])) == -INF
        assert kl_divergence(q, chain) == INF
    for q in (sharp, equal):
        assert kl_divergence(chain, q) == INF
    assert chain.log_prob(_at_second(INF)) == -INF
    assert sharp.entropy() == -INF
    # On what is left of the space the density is infinite, of a draw and of an equal tensor.
    for q in (sharp, equal):
        z = q.sample()
        assert q.log_prob(z) == q.log_prob(z.clone()) == q.log_prob(LOC) == INF
    with pytest.raises(ValueError, match="q's scale is 0 at place 1; p's scale is 0 at place 1"):
        kl_divergence(sharp, AR1Normal(LOC, sharp.scale * 2, 0.5, **off))


def test_nan_comes_out_where_nan_was_put_in():
    torch.distributions.Distribution.set_default_validate_args(False)
    q = AR1Normal(_at_second(NAN, LOC), 1.0, 0.5, validate_args=False)
    chain = AR1Normal(**CHAIN)
    batch = torch.stack([_at_second(NAN, LOC), LOC, LOC])
    assert chain.log_prob(batch).isnan().tolist() == [True, False, False]
    for result in (q.log_prob(LOC), kl_divergence(q, chain), kl_divergence(chain, q), kl_divergence(q, OTHER)):
        assert result.isnan()
    assert q.conjugate_update(OTHER)[1].isnan()


def test_of_one_coordinate_the_correlation_is_ignored():
    for given in ({"rho": 1.0}, {"rho": -1.0}, {"rho": 7.0}, {"atanh_rho": INF}, {"rho": torch.zeros(0)}):
        q = AR1Normal(torch.zeros(1), 2.0, **given, validate_args=True)
        normal = Independent(Normal(torch.zeros(1), 2.0), 1)
        assert q.log_prob(torch.ones(1)) == normal.log_prob(torch.ones(1))
        assert q.entropy() == normal.entropy()
        assert kl_divergence(q, normal) == kl_divergence(q, q) == 0
        assert q.covariance_matrix == 4.0
        assert q.rsample().isfinite().all()
        assert q.conjugate_update(normal)[1].isfinite()


@pytest.mark.parametrize("mode", ["vmap", "compile"])
def test_transformed_the_limit_is_computed(mode):
    def evidence(value, noise_scale):
        posterior, log_normalizer = AR1Normal(**CHAIN).conjugate_update(readings(value, noise_scale))
        return posterior.loc, log_normalizer

    value, noise = torch.randn(D), _at_second(0.0)
    wanted = evidence(value, noise)
    if mode == "vmap":
        got = [x[0] for x in torch.vmap(evidence)(value[None], noise[None])]
    else:
        got = torch.compile(evidence, fullgraph=True, backend="aot_eager")(value, noise)
    for mine, theirs in zip(got, wanted, strict=True):
        assert_close(mine, theirs, torch.float32)


# --- Types ---

REAL = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGER = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
OTHER_TYPES = [torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", [*REAL, *INTEGER], ids=str)
def test_times_of_every_real_type(dtype):
    """Differences do not wrap around, in either direction."""
    times, largest = torch.tensor([1, 2, 4]), torch.iinfo(dtype).max if dtype in INTEGER else 100
    for shifted in (times, times + (min(largest, 2**62) - 4)):
        q = AR1Normal.from_times(shifted.to(dtype), torch.zeros(3), 1.0, 2.0)
        assert_close(q.rho, np.exp([-0.5, -1.0]), torch.float32)
    with pytest.raises(ValueError, match="some decrease"):
        AR1Normal.from_times(torch.tensor([4, 2, 1]).to(dtype), torch.zeros(3), 1.0, 2.0)
    if dtype in (torch.int8, torch.int16, torch.int32):
        wide = torch.tensor([-largest, 0, largest], dtype=dtype)  # whose differences together are no int of its size
        assert AR1Normal.from_times(wide, torch.zeros(3), 1.0, float(largest)).rho.isfinite().all()


@pytest.mark.parametrize("dtype", [*INTEGER, *OTHER_TYPES], ids=str)
def test_parameters_are_of_real_numbers(dtype):
    numbers = {name: torch.ones(3 if name in ("loc", "scale") else 2).to(dtype) for name in ("loc", "scale", "rho")}
    for name, value in numbers.items():
        with pytest.raises(ValueError, match=f"{name} must be a floating-point tensor"):
            AR1Normal(**{"loc": torch.zeros(3), "scale": 1.0, "rho": 0.5, name: value})
    for name in ("coefficient", "noise_scale", "initial_scale"):
        given = {"loc": torch.zeros(3), "coefficient": 1.0, "noise_scale": 1.0, "initial_scale": 1.0}
        with pytest.raises(ValueError, match=f"{name} must be a real number or a floating-point tensor"):
            AR1Normal.from_transitions(**(given | {name: torch.ones(1).to(dtype)}))
    with pytest.raises(ValueError, match="value must be a floating-point tensor"):
        AR1Normal(torch.zeros(3), 1.0, 0.5).condition([0], torch.ones(1).to(dtype))


@pytest.mark.parametrize("dtype", OTHER_TYPES, ids=str)
def test_values_and_times_are_of_real_numbers(dtype):
    q, value = AR1Normal(torch.zeros(3), 1.0, 0.5), torch.ones(3).to(dtype)
    for function in (q.log_prob, q.transform, q.transform.inv):
        with pytest.raises(ValueError, match="must be of real numbers"):
            function(value)
    with pytest.raises(ValueError, match="times must be a tensor of numbers"):
        AR1Normal.from_times(value, torch.zeros(3), 1.0, 2.0)


# --- Sizes ---


@pytest.mark.usefixtures("each_path")
def test_no_chain_is_empty():
    none, one = torch.zeros(3, 0), torch.full((3, 1), 0.5)
    for operation in (
        lambda: linear_recurrence(one, none),
        lambda: linear_recurrence(none, none),
        lambda: autoregression(one, none),
        lambda: moebius_recurrence(one, one, none),
        lambda: functional.colour(none, one, one, none, atanh=True),
        lambda: functional.log_prob(none, none, one, one, atanh=True),
        lambda: functional.log_prob_of_draw(none, none, one, one, none, atanh=True),
        lambda: functional.log_det(one, one, d=0, atanh=True),
        lambda: functional.kl_to_normal(none, one, one, none, none, atanh=True),
    ):
        with pytest.raises(ValueError, match="must be at least 1; got 0"):
            operation()
    for build in (lambda: AR1Normal(none, 1.0, 0.5), lambda: AR1Normal.from_times(none, none, 1.0, 1.0)):
        with pytest.raises(ValueError, match="d at least 1"):
            build()


@pytest.mark.usefixtures("each_path")
def test_empty_batches():
    q = AR1Normal(torch.zeros(0, 3, requires_grad=True), torch.ones(0, 3), 0.5)
    z = q.rsample()
    divergences = kl_divergence(q, q) + kl_divergence(q, readings(torch.zeros(3), torch.ones(3)))
    total = z.sum() + (q.log_prob(z) + q.log_prob(z.clone()) + q.entropy() + divergences).sum()
    assert total == 0
    total.backward()
    assert q.marginal([0, 2]).batch_shape == q.condition([1], torch.zeros(0, 1)).batch_shape == (0,)


# --- Inference mode ---


@pytest.mark.parametrize("frozen", ["value", "loc", "scale", "rho"])
def test_what_was_made_in_inference_mode_takes_part_in_a_graph(frozen):
    """By the kernels always; plain torch, like torch's own Normal, can't save a scale for its backward pass."""
    given = Case(5, (3,)).parameters() | {"value": torch.randn(3, 5, dtype=torch.float64)}

    def gradients(of_inference):
        tensors = {name: x.clone().requires_grad_() for name, x in given.items() if name != frozen}
        with torch.inference_mode(of_inference):
            tensors[frozen] = given[frozen].clone()
        value = tensors.pop("value")
        q = AR1Normal(**tensors)
        unit = Independent(Normal(torch.zeros(5, dtype=torch.float64), 1.0), 1)
        total = q.log_prob(value) + q.rsample().sum(-1) + q.entropy() + kl_divergence(q, unit)
        return torch.autograd.grad(total.sum(), [x for x in (value, *tensors.values()) if x.requires_grad])

    torch.manual_seed(0)
    got = gradients(True)
    torch.manual_seed(0)
    for mine, theirs in zip(got, gradients(False), strict=True):
        assert_close(mine, theirs)
