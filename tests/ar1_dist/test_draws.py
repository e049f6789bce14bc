"""A chain's density at its own draws, where loc is so large that the draws are rounded: checked against float64."""

import copy
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import init_to_mean
from torch.distributions import Independent, Normal, TransformedDistribution

from ar1_dist import AR1Normal, AR1Transform, AutoAR1Normal, AutoAR1NormalMessenger

from .cases import SMALL_CASES, Case, assert_close, over

D = 70
LEVEL = 1e5


def _parameters(dtype: torch.dtype, batch_shape: tuple[int, ...] = (), d: int = D) -> dict[str, torch.Tensor]:
    """A level at which numbers of float32 are 0.008 apart, and innovations between 0.02 and 0.00004."""
    given = Case(d, batch_shape, seed=3).parameters()
    atanh_rho = torch.linspace(3.0, 9.0, d - 1, dtype=torch.float64).expand(*batch_shape, d - 1)
    values = {"loc": LEVEL + given["loc"], "scale": given["scale"] / 10, "atanh_rho": atanh_rho}
    return {name: value.float().to(dtype).requires_grad_() for name, value in values.items()}


def _draw(dtype: torch.dtype, noise: torch.Tensor | None = None, **options):
    """A chain, its draw and the noise of that, which is the same number in every type."""
    q = AR1Normal(**_parameters(dtype, **options))
    if noise is None:
        torch.manual_seed(0)
        noise = torch.randn(q.batch_shape + q.event_shape)
    return q, q.transform(noise.to(dtype)), noise


def _opposing(atanh_rho: torch.Tensor) -> float:
    """What rounding costs: the derivatives by way of a draw and by the density itself have parts of opposite signs, as
    large as the steepest cosh, and each is rounded to float32."""
    return 4 * torch.finfo(torch.float32).eps * atanh_rho.max().cosh().item()


@pytest.mark.usefixtures("each_path")
@pytest.mark.parametrize("options", [{}, {"batch_shape": (3,)}, {"d": 5}, {"d": 300}], ids=str)
def test_density_and_its_gradient_are_those_of_float64(options):
    q, z, noise = _draw(torch.float32, **options)
    exact, wide, _ = _draw(torch.float64, noise, **options)
    wanted = exact.log_prob(wide.clone())
    rounded = q.log_prob(z.clone())
    assert_close(q.log_prob(z), wanted.detach(), torch.float32)
    assert ((rounded - wanted).abs() > 1).all()  # what the draw's numbers alone say

    # The gradient of the entropy's estimate, by way of the draw and directly, and of the score alone.
    for by_draw in (True, False):
        with torch.set_grad_enabled(by_draw):
            z, wide = q.transform(noise), exact.transform(noise.double())
        got = torch.autograd.grad(q.log_prob(z).sum(), q.transform.arguments)
        truth = torch.autograd.grad(exact.log_prob(wide.clone()).sum(), exact.transform.arguments)
        for mine, theirs in zip(got, truth, strict=True):
            unit = theirs.abs().amax().clamp(min=1.0)
            torch.testing.assert_close(mine.double() / unit, theirs / unit, rtol=0.0, atol=_opposing(exact.atanh_rho))


@over(SMALL_CASES)
@pytest.mark.parametrize("atanh", [False, True])
@pytest.mark.usefixtures("each_path")
def test_derivatives_are_those_at_any_value(case, atanh):
    """By the value and by each parameter, first and second: what is remembered is a number alone."""

    def density(of_draw):
        given = case.parameters(requires_grad=True)
        if atanh:
            given["atanh_rho"] = given.pop("rho").atanh().detach().requires_grad_()
        q = AR1Normal(**given)
        torch.manual_seed(1)
        z = q.sample().requires_grad_()
        value = q.log_prob(z if of_draw else z.clone())
        inputs = [x for x in (z, *given.values()) if x.numel() > 0]
        first = torch.autograd.grad(value.sum(), inputs, create_graph=True, materialize_grads=True)
        second = torch.autograd.grad(sum((x**2).sum() for x in first), inputs, materialize_grads=True)
        return value, *first, *second

    for got, wanted in zip(density(True), density(False), strict=True):
        assert_close(got, wanted.detach())


def test_score_function_gradient():
    """E[f(z) d log q(z)/d loc] is the derivative of the expectation: of z^2 by loc it is 2 loc."""
    loc = torch.full((2,), 0.7, dtype=torch.float64, requires_grad=True)
    q = AR1Normal(loc, 0.5, 0.6)
    z = q.sample((200_000,))
    (gradient,) = torch.autograd.grad((q.log_prob(z) * z[..., 0].square()).mean(), loc)
    torch.testing.assert_close(gradient, torch.tensor([1.4, 0.0], dtype=torch.float64), rtol=0.0, atol=0.02)


@pytest.mark.parametrize("mode", ["eager", "no_grad", "inference", "vmap", "jvp", "compile", "trace"])
def test_in_every_mode(mode):
    names = ("loc", "scale", "atanh_rho")
    arguments = [_parameters(torch.float32)[name].detach() for name in names]
    noise = torch.randn(D)

    def density(*values):
        q = AR1Normal(**dict(zip(names, values, strict=True)))
        z = q.transform(noise)
        return q.log_prob(z)

    wide = [x.double() for x in arguments]
    exact = AR1Normal(**dict(zip(names, wide, strict=True)))
    wanted = exact.log_prob(exact.transform(noise.double()).clone())
    if mode == "vmap":
        got = torch.vmap(density)(*[x.expand(2, *x.shape) for x in arguments])
        wanted = wanted.expand(2)
    elif mode == "jvp":
        got, tangent = torch.func.jvp(density, tuple(arguments), tuple(map(torch.ones_like, arguments)))
        # What is left of -sum log scale + sum log cosh atanh_rho.
        slope = arguments[2].double().tanh().sum() - arguments[1].double().reciprocal().sum()
        torch.testing.assert_close(tangent.double(), slope, rtol=_opposing(exact.atanh_rho), atol=0.0)
    elif mode == "compile":
        got = torch.compile(density, fullgraph=True, backend="aot_eager")(*arguments)
    elif mode == "trace":
        got = torch.jit.trace(density, tuple(arguments), check_trace=False)(*arguments)
    else:
        with {"eager": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]():
            got = density(*arguments)
    assert_close(got.clone(), wanted.float(), torch.float32)


@pytest.mark.parametrize("mode", ["no_grad", "inference", "compile"])
@pytest.mark.parametrize("changed", ["draw", "loc", "scale", "atanh_rho"])
def test_what_was_changed_in_place_is_no_draw(mode, changed):
    def density(loc, scale, atanh_rho):
        q = AR1Normal(loc, scale, atanh_rho=atanh_rho)
        z = q.rsample()
        dict(q.transform.parameters(), draw=z)[changed].mul_(1.5)
        return q.log_prob(z), q.log_prob(z.clone())

    arguments = [x.detach().double() for x in _parameters(torch.float32).values()]
    if mode == "compile":
        got, wanted = torch.compile(density, fullgraph=True, backend="aot_eager")(*arguments)
    else:
        with torch.no_grad() if mode == "no_grad" else torch.inference_mode():
            got, wanted = density(*[x.clone() for x in arguments])
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "change",
    [
        lambda q, z: z.data.mul_(5),
        lambda q, z: z.numpy().__setitem__(0, 7.0),
        lambda q, z: q.transform.loc.data.add_(1),
        lambda q, z: q.transform.loc.detach().numpy().__setitem__(0, 7.0),
        lambda q, z: torch.nn.utils.vector_to_parameters(torch.ones(D), [q.transform.loc]),
    ],
)
def test_what_was_changed_where_nobody_counts_is_no_draw(change):
    """As Pyro's own optimisers change parameters."""
    q = AR1Normal(torch.nn.Parameter(torch.zeros(D)), 1.0, 0.5)
    z = q.sample()
    change(q, z)
    assert q.log_prob(z) == q.log_prob(z.clone())


def test_every_living_draw_is_remembered_and_no_other():
    q = AR1Normal(**{name: value.detach() for name, value in _parameters(torch.float32).items()})
    draws = [q.sample() for _ in range(3)]
    views = [z.view_as(z).detach() for z in draws]
    transposed = [z.unsqueeze(0).mT.mT.squeeze(0) for z in draws]
    of_noise = [-0.5 * q.transform.recall(z).square().sum() for z in draws]
    constant = q.log_prob(draws[0]) - of_noise[0]
    for values in (draws, views, transposed):
        for z, squares in zip(values, of_noise, strict=True):
            torch.testing.assert_close(q.log_prob(z), squares + constant)
    assert q.transform.recall(draws[0].clone()) is None
    kept = [noise for _, noise in q.transform._draws]
    del z, draws, values, views, transposed
    assert not any(kept)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.float32], ids=str)
def test_noise_of_another_type(dtype):
    loc = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    transform = AR1Transform(loc, 1.0, 0.5)
    x = torch.tensor([300, 0, -300], dtype=dtype)
    z = transform(x)
    assert_close(transform.inv(z), x.double())
    transform.inv(z.detach()).sum().backward()
    other = loc.grad.clone()
    loc.grad = None
    transform.inv(z.detach().clone()).sum().backward()
    assert_close(other, loc.grad)
    assert loc.grad.abs().sum() > 0


def test_gradients_at_the_steepest_correlations():
    """By loc they are those of the noise over the innovations' deviation, not of differences between neighbours."""
    loc = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    atanh_rho = torch.full((1,), 20.0, dtype=torch.float64)
    noise = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    omega = torch.cat([noise[:1], noise[1:] * atanh_rho.cosh()])
    wanted = omega - torch.nn.functional.pad(atanh_rho.tanh() * omega[1:], (0, 1))
    q = AR1Normal(loc, 1.0, atanh_rho=atanh_rho)
    with torch.no_grad():
        z = q.transform(noise)
    (gradient,) = torch.autograd.grad(q.log_prob(z), loc)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=0.0)


def test_copies_have_no_memory():
    q, z, _ = _draw(torch.float32)
    q = AR1Normal(**{name: value.detach() for name, value in q.transform.parameters().items()})
    z = q.sample()
    for again in (copy.copy(q), copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        same_transform = again.transform is q.transform
        assert (again.transform.recall(z) is not None) == same_transform
        assert again.log_prob(z.clone()).isfinite()
    assert copy.deepcopy(q.transform).recall(z) is None


def test_wrappers_pass_the_memory_on():
    q, _, _ = _draw(torch.float32)
    entropy = q.entropy()
    base = dist.Normal(torch.zeros(D), 1.0).to_event(1)
    chains = {
        "expand": q.expand((4,)),
        "independent": Independent(q.expand((4,)), 1),
        "to_event and mask": q.expand((4,)).to_event(1).mask(True),
        "transformed": TransformedDistribution(Independent(Normal(torch.zeros(D), 1.0), 1), [q.transform]),
        "Pyro's transformed": dist.TransformedDistribution(base, [AR1Transform(*q.transform.arguments[:2], 0.999)]),
    }
    for name, chain in chains.items():
        z = chain.rsample((7,))
        wanted = AR1Normal(*q.transform.arguments[:2], 0.999).entropy() if name.startswith("Pyro") else entropy
        estimate = -chain.log_prob(z) / (4 if chain.event_shape == (4, D) else 1)
        # Its standard deviation is that of a chi-squared variable's half.
        assert (estimate - wanted).abs().max() < 5 * (D / 2) ** 0.5, name


@pytest.mark.parametrize("cached", [0, 1])
def test_the_transform_inverts_its_own_values(cached):
    parameters = {name: value.detach() for name, value in _parameters(torch.float32).items()}
    transform = AR1Transform(**parameters, cache_size=cached)
    noise = torch.randn(D)
    z = transform(noise)
    assert torch.equal(transform.inv(z), noise)
    assert (transform.inv(z.clone()) - noise).abs().max() > 0.1


@pytest.mark.parametrize(
    ("guide_type", "elbo"),
    [(AutoAR1Normal, Trace_ELBO), (AutoAR1NormalMessenger, Trace_ELBO), (AutoAR1NormalMessenger, TraceMeanField_ELBO)],
)
@pytest.mark.parametrize("drift", [0.01, 1e-4])
def test_no_guide_passes_the_evidence_in_silence(guide_type, elbo, drift):
    d, noise = 30, 0.1 if drift == 0.01 else drift
    wide = AR1Normal.from_transitions(torch.full((d,), LEVEL, dtype=torch.float64), 1.0, drift, drift)
    data = (wide.sample() + noise * torch.randn(d, dtype=torch.float64)).float()
    evidence = wide.conjugate_update(Independent(Normal(data.double(), noise), 1))[1]
    prior = AR1Normal.from_transitions(torch.full((d,), LEVEL), 1.0, drift, drift)

    def model():
        z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=data)

    guide = guide_type(model, init_loc_fn=init_to_mean, init_scale=drift)
    estimator = elbo(num_particles=4, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.995}), estimator)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = torch.tensor([svi.step() for _ in range(300)])
    assert losses.isfinite().all()
    told = [str(warning.message) for warning in caught if "are rounded" in str(warning.message)]
    # Once, as long as it is true.
    assert len(told) == 1
    assert "float64" in told[0]
    if drift == 0.01:  # draws are resolved, if badly
        assert -losses[-50:].mean() < evidence


def test_resolved_draws_are_not_warned_of():
    def model():
        z = pyro.sample("z", AR1Normal(torch.full((5,), 100.0), 1.0, 0.9))
        pyro.sample("scale", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.zeros(5))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for guide in (AutoAR1Normal(model, init_to_mean), AutoAR1NormalMessenger(model)):
            guide()
    assert not [warning for warning in caught if "are rounded" in str(warning.message)]
