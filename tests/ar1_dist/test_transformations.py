"""Every quantity under vmap, forward mode, double backward, compilation, tracing and in every floating type."""

import dataclasses
import functools
import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pyro.ops.jit
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import (
    Distribution,
    Gumbel,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
)
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from ar1_dist import AR1Normal

from .cases import TOLERANCE, Case, assert_close, over

Parameters = dict[str, Tensor]

# From which distribution to which; "AR1Normal" is the chain under test, and the others' parameters follow from its.
PAIRS = [
    *(("AR1Normal", p) for p in ("alike", "opposite", "Normal", "Laplace", "Gumbel", "MultivariateNormal", "LowRank")),
    *((q, "AR1Normal") for q in ("alike", "opposite", "Normal", "MultivariateNormal", "LowRank")),
    ("MultivariateNormal", "Normal"),
    ("LowRank", "Laplace"),
]
DIVERGENCES = [f"KL from {q} to {p}" for q, p in PAIRS]
VIEWS = ["scale_tril", "covariance_matrix", "precision_matrix"]
STATISTICS = ["log_prob", "entropy", "total_correlation", *VIEWS, *DIVERGENCES]
DETERMINISTIC = ["transform", *STATISTICS]
QUANTITIES = ["rsample", *DETERMINISTIC]
# torch has no triangular solve or Cholesky factorisation in half precision, and rounds its dense normals' constants to
# float32 when it traces them.
WITHOUT_DENSE = [name for name in STATISTICS if "MultivariateNormal" not in name and "LowRank" not in name]

DIFFERENTIATED = [
    Case(1),
    Case(2, shared_scale=True, shared_rho=True),
    Case(3, (2, 1), shared_rho=True, max_rho=0.8),
    Case(4, shared_scale=True, max_rho=0.8),
    Case(4, max_rho=0.0),
    Case(3, (2,), shared_scale=True, shared_rho=True, max_rho=0.0),
]
WHOLE = DIFFERENTIATED[2:5]
BATCHED = [Case(1, (3,), shared_rho=True), Case(2, (4,)), Case(7, (3,), shared_scale=True, shared_rho=True)]
CHAIN = Case(6, max_rho=0.6)  # the derivatives that finite differences need are small enough

each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
each_statistic = pytest.mark.parametrize("name", STATISTICS)
each_deterministic = pytest.mark.parametrize("name", DETERMINISTIC)
each_quantity = pytest.mark.parametrize("name", QUANTITIES)
each_parametrisation = pytest.mark.parametrize("given", ["rho", "atanh_rho"])


def build(kind: str, parameters: Parameters) -> Distribution:
    """The chain with these parameters, or a distribution of another kind that depends on all that it can."""
    if kind == "AR1Normal":
        return AR1Normal(**parameters)
    loc, scale, correlation = parameters.values()
    if kind in ("alike", "opposite"):
        factor = 0.7 if kind == "alike" else -0.7
        return AR1Normal(loc.cos(), scale.square() + 0.5, atanh_rho=factor * correlation)
    scale = scale.expand(loc.shape)
    if kind == "MultivariateNormal":
        below = 0.3 * (loc.sin().unsqueeze(-1) * loc.cos().unsqueeze(-2)).tril(-1)
        # torch's check of a Cholesky factor can't be mapped.
        return MultivariateNormal(loc.cos(), scale_tril=scale.diag_embed() + below, validate_args=False)
    if kind == "LowRank":
        return LowRankMultivariateNormal(loc.cos(), torch.stack([loc.sin(), scale], -1), 0.5 + scale.square())
    base = {"Normal": Normal, "Laplace": Laplace, "Gumbel": Gumbel}[kind]
    return Independent(base(loc.cos(), 0.5 + scale), 1)


def compute(name: str, parameters: Parameters) -> Tensor:
    """The quantity of this name as a function of the chain's parameters; the noise of a sample is fixed."""
    chain = AR1Normal(**parameters)
    if name == "rsample":
        torch.manual_seed(0)
        return chain.rsample((2,))
    if name == "transform":
        loc = parameters["loc"]
        return chain.transform(torch.linspace(-1, 2, loc.shape[-1]).to(loc))
    if name == "log_prob":
        return chain.log_prob(2 * parameters["loc"].cos() + 0.1)
    if name == "entropy":
        return chain.entropy()
    if name == "total_correlation" or name in VIEWS:
        return getattr(chain, name)
    q, p = PAIRS[DIVERGENCES.index(name)]
    return kl_divergence(build(q, parameters), build(p, parameters))


def parameters_of(case: Case, given: str = "rho", dtype: torch.dtype = torch.float64) -> Parameters:
    parameters = case.parameters(dtype)
    if given == "atanh_rho":
        parameters["atanh_rho"] = parameters.pop("rho").atanh()
    return parameters


def tangents_of(parameters: Parameters) -> Parameters:
    random = np.random.default_rng(1)
    return {name: torch.from_numpy(random.normal(size=value.shape)) for name, value in parameters.items()}


def forward_tangents(function, parameters: Parameters, tangents: Parameters) -> list[Tensor]:
    """The tangent of the function's value by torch.func, and by dual numbers, which take another path."""
    _, tangent = jvp(function, (parameters,), (tangents,))
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(value, tangents[name]) for name, value in parameters.items()}
        output, dual_tangent = forward_ad.unpack_dual(function(duals))
    return [tangent, torch.zeros_like(output) if dual_tangent is None else dual_tangent]


def leaves(parameters: Parameters) -> Parameters:
    return {name: value.clone().requires_grad_() for name, value in parameters.items()}


def gradients(output: Tensor, parameters: Parameters) -> Parameters:
    """The gradients of the output's sum, zero where it does not depend on a parameter."""
    return dict(
        zip(
            parameters,
            torch.autograd.grad(output.sum(), list(parameters.values()), materialize_grads=True),
            strict=True,
        )
    )


def assert_all_close(got: Parameters, expected: Parameters) -> None:
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert_close(value, expected[name].detach())


def as_function_of_tensors(name: str, parameters: Parameters):
    return lambda *tensors: compute(name, dict(zip(parameters, tensors, strict=True)))


# vmap


@each_statistic
@each_parametrisation
@over(BATCHED)
def test_vmap_is_the_batch(case, given, name):
    parameters = parameters_of(case, given)
    assert_close(vmap(functools.partial(compute, name))(parameters), compute(name, parameters))


@each_statistic
def test_vmap_from_scalars_per_example(name):
    parameters = parameters_of(Case(5, (3,), shared_scale=True, shared_rho=True))
    scalars = {**parameters, "scale": parameters["scale"].squeeze(-1), "rho": parameters["rho"].squeeze(-1)}
    assert_close(vmap(functools.partial(compute, name))(scalars), compute(name, parameters))


@each_statistic
def test_nested_vmap_with_a_shared_loc(name):
    parameters = parameters_of(Case(4, (2, 3)))
    parameters["loc"] = parameters["loc"][0, 0]
    mapped = {"loc": None, "scale": 0, "rho": 0}
    got = vmap(vmap(functools.partial(compute, name), (mapped,)), (mapped,))(parameters)
    assert_close(got, compute(name, {**parameters, "loc": parameters["loc"].expand(2, 3, 4)}))


@each_quantity
@over(BATCHED)
def test_gradients_per_example(case, name):
    parameters = parameters_of(case)

    def total(one):
        return compute(name, one).sum()

    got = vmap(grad(total), randomness="same")(parameters)
    for i in range(case.batch_shape[0]):
        one = leaves({name: value[i] for name, value in parameters.items()})
        assert_all_close({name: value[i] for name, value in got.items()}, gradients(total(one), one))


@pytest.mark.parametrize("sample_shape", [(), (2, 5)], ids=str)
@pytest.mark.parametrize("randomness", ["different", "same"])
@over(BATCHED)
def test_vmap_of_sampling(case, randomness, sample_shape):
    parameters = parameters_of(case)
    torch.manual_seed(3)
    samples = vmap(lambda one: AR1Normal(**one).rsample(sample_shape), randomness=randomness)(parameters)
    torch.manual_seed(3)
    noise_shape = (*sample_shape, case.d)
    noise = torch.randn(*(case.batch_shape if randomness == "different" else ()), *noise_shape, dtype=torch.float64)
    chain = AR1Normal(**{name: value[(slice(None), *[None] * len(sample_shape))] for name, value in parameters.items()})
    assert_close(samples, chain.transform(noise.expand(*case.batch_shape, *noise_shape)))


def test_vmap_refuses_to_sample_by_default():
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda one: AR1Normal(**one).rsample())(parameters_of(BATCHED[0]))


@pytest.mark.parametrize("name", ["loc", "scale", "rho"])
@over([Case(4, (3,), shared_scale=True, shared_rho=True), Case(4, (3,))])
def test_vmap_rejects_bad_values(case, name):
    parameters = parameters_of(case)
    parameters[name][1] = torch.nan
    with pytest.raises(ValueError, match=f"parameter {name} "):
        vmap(lambda one: AR1Normal(**one, validate_args=True).mean)(parameters)


def test_repr_under_vmap():
    seen = []

    def describe(one):
        seen.append(repr(AR1Normal(**one)))
        return one["loc"]

    vmap(describe)(parameters_of(Case(4, (3,), shared_scale=True, shared_rho=True)))
    assert "torch.Size([4])" in seen[0]


# forward mode


@each_quantity
@each_parametrisation
@over([CHAIN, Case(5, (2,), shared_scale=True, shared_rho=True, max_rho=0.6), Case(4, max_rho=0.0), Case(1)])
def test_forward_mode_is_the_finite_difference(case, given, name):
    parameters = parameters_of(case, given)
    tangents = tangents_of(parameters)

    def at(step):
        return compute(name, {key: value + step * tangents[key] for key, value in parameters.items()})

    h = 1e-4
    expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    # Rounding costs 1e-16/h, and the derivatives' size multiplies that.
    for got in forward_tangents(functools.partial(compute, name), parameters, tangents):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@each_quantity
@pytest.mark.parametrize("key", ["loc", "scale", "rho"])
def test_forward_mode_in_one_parameter_is_reverse_mode(name, key):
    parameters = parameters_of(CHAIN)
    tangents = {key: tangents_of(parameters)[key]}

    def function(one):
        return compute(name, {**parameters, **one})

    output, pull_back = vjp(function, {key: parameters[key]})
    weight = torch.linspace(0.5, 1.5, output.numel(), dtype=torch.float64).reshape(output.shape)
    expected = (pull_back(weight)[0][key] * tangents[key]).sum()
    for got in forward_tangents(function, {key: parameters[key]}, tangents):
        assert_close((got * weight).sum(), expected)


@each_deterministic
@each_parametrisation
@over([CHAIN, Case(3, shared_scale=True, shared_rho=True, max_rho=0.0)])
def test_every_way_to_the_hessian(case, given, name):
    parameters = parameters_of(case, given)
    flat = torch.cat(list(parameters.values()))
    sizes = [value.numel() for value in parameters.values()]

    def total(x):
        return compute(name, dict(zip(parameters, x.split(sizes), strict=True))).square().sum()

    # The adjoint that eager autograd runs is another code path than what torch.func runs.
    expected = torch.autograd.functional.hessian(total, flat)
    assert expected.any() or case.max_rho == 0
    for got in (
        jacfwd(jacfwd(total))(flat),
        jacfwd(jacrev(total))(flat),
        jacrev(jacfwd(total))(flat),
        jacrev(jacrev(total))(flat),
        hessian(total)(flat),
        torch.autograd.functional.hessian(total, flat, vectorize=True),
        torch.autograd.functional.hessian(total, flat, vectorize=True, outer_jacobian_strategy="forward-mode"),
    ):
        assert_close(got, expected)


@each_deterministic
def test_vectorized_jacobians(name):
    parameters = parameters_of(CHAIN)
    function = as_function_of_tensors(name, parameters)
    inputs = tuple(parameters.values())
    expected = torch.autograd.functional.jacobian(function, inputs)
    for strategy in ("reverse-mode", "forward-mode"):
        got = torch.autograd.functional.jacobian(function, inputs, vectorize=True, strategy=strategy)
        for block, expected_block in zip(got, expected, strict=True):
            assert_close(block, expected_block)


# With torch 2.14 it is wrong for a Cholesky factorisation of I + W W^T.
@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if "LowRank" not in name])
def test_linearize(name, monkeypatch):
    monkeypatch.setattr(Distribution, "_validate_args", False)  # a graph can't depend on its tensors' values
    parameters = parameters_of(CHAIN)
    tangents = tangents_of(parameters)
    function = functools.partial(compute, name)
    output, push_forward = torch.func.linearize(function, parameters)
    expected_output, expected_tangent = jvp(function, (parameters,), (tangents,))
    assert_close(output, expected_output)
    assert_close(push_forward(tangents), expected_tangent)


# gradients and gradients of gradients


# Each case in one parametrisation, so that either meets shared and separate correlations, and correlations of 0.
@each_quantity
@pytest.mark.parametrize(("case", "given"), [*zip(DIFFERENTIATED, itertools.cycle(["rho", "atanh_rho"]))], ids=str)
def test_gradcheck(case, given, name):
    parameters = leaves(parameters_of(case, given))
    function = as_function_of_tensors(name, parameters)
    inputs = tuple(parameters.values())
    assert gradcheck(
        function,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=name != "rsample",
        fast_mode=case not in WHOLE,  # one random direction in the place of every entry of the Jacobian
    )
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


@each_quantity
def test_batched_grads(name):
    parameters = leaves(parameters_of(Case(4, (3,))))
    output = compute(name, parameters)
    cotangents = torch.randn(5, *output.shape, dtype=torch.float64)
    keys, tensors = zip(*parameters.items(), strict=True)
    differentiate = functools.partial(torch.autograd.grad, output, tensors, retain_graph=True, allow_unused=True)
    got = dict(zip(keys, differentiate(cotangents, is_grads_batched=True), strict=True))
    each = zip(*(differentiate(cotangent) for cotangent in cotangents), strict=True)
    for key, expected in zip(keys, each, strict=True):
        if expected[0] is None:
            assert got[key] is None
        else:
            assert_close(got[key], torch.stack(expected))


# one instance in several contexts


def _backward(chain):
    chain.log_prob(torch.zeros(4)).backward()


def _inference_mode(chain):
    with torch.inference_mode():
        chain.log_prob(chain.sample())


def _no_grad(chain):
    with torch.no_grad():
        chain.log_prob(chain.sample())


def _dual_numbers(chain):
    with forward_ad.dual_level():
        chain.log_prob(forward_ad.make_dual(torch.zeros(4), torch.ones(4)))


CONTEXTS = {
    "backward": _backward,
    "inference mode": _inference_mode,
    "no_grad": _no_grad,
    "dual numbers": _dual_numbers,
    "hessian": lambda chain: hessian(chain.log_prob)(torch.zeros(4)),
    "vmap": lambda chain: vmap(chain.log_prob)(torch.zeros(2, 4)),
}


@pytest.mark.parametrize("context", CONTEXTS)
@each_parametrisation
def test_an_instance_forgets_where_it_was_used_first(given, context):
    parameters = leaves(parameters_of(Case(4), given, torch.float32))
    value = torch.linspace(-1, 1, 4)

    def evaluate(chain):
        torch.manual_seed(0)
        return chain.log_prob(value) + chain.entropy() + chain.rsample().sum() + chain.covariance_matrix.sum()

    expected = gradients(evaluate(AR1Normal(**parameters)), parameters)
    chain = AR1Normal(**parameters)
    CONTEXTS[context](chain)
    got = gradients(evaluate(chain), parameters)
    for name, gradient in got.items():
        assert_close(gradient, expected[name], torch.float32)


# compilation and tracing

COMPILED = """
import json
import sys

import torch
import torch._inductor.config

torch.set_num_threads(1)
torch._inductor.config.fallback_random = True  # inductor's own generator draws other numbers
(groups,) = map(json.loads, sys.argv[1:])

import ar1_dist
import pyro.distributions
from torch.distributions import kl_divergence

LIBRARIES = {None: torch.distributions, "torch": torch.distributions, "pyro": pyro.distributions}


def objective(loc, scale, atanh_rho, library):
    # Of a library whose every pair is compared, or of none.
    q = ar1_dist.AR1Normal(loc, scale, atanh_rho=atanh_rho, validate_args=False)
    z = q.rsample()
    other = LIBRARIES[library]
    normal = other.Normal(loc.sin(), scale.expand(loc.shape) + 0.5, validate_args=False)
    independent = other.Independent(normal, 1, validate_args=False)
    result = [z, q.log_prob(z), kl_divergence(q, independent)]
    if library:
        dense = other.MultivariateNormal(loc.cos(), scale_tril=torch.eye(loc.shape[-1]), validate_args=False)
        factor, diagonal = torch.stack([loc.sin(), loc.cos()], -1), loc.square() + 1
        low_rank = other.LowRankMultivariateNormal(loc, factor, diagonal, validate_args=False)
        result.append(kl_divergence(independent, q))
        for p in (dense, low_rank):
            result += [kl_divergence(q, p), kl_divergence(p, q), kl_divergence(p, independent)]
        p = ar1_dist.AR1Normal(loc.cos(), 2 * scale, atanh_rho=-atanh_rho, validate_args=False)
        standard = pyro.distributions.Normal(torch.zeros_like(loc), 1.0, validate_args=False).to_event(1)
        result += [kl_divergence(q, p), kl_divergence(q, standard), q.entropy(), q.log_prob(2 * loc)]
    return tuple(result)


def differentiated(function, parameters, library):
    torch.manual_seed(0)
    outputs = function(*parameters, library)
    total = sum((output * torch.linspace(0.5, 1.5, output.numel()).reshape(output.shape)).sum() for output in outputs)
    return outputs, torch.autograd.grad(total, parameters)


def compare(compiled, library, batch, d, shared):
    generator = torch.Generator().manual_seed(0)
    parameters = [
        torch.randn(batch, d, generator=generator),
        torch.rand(batch, 1 if shared else d, generator=generator) + 0.5,
        torch.randn(batch, 1 if shared else d - 1, generator=generator),
    ]
    for parameter in parameters:
        parameter.requires_grad_()
    # Compiled first, so that nothing has been looked up but at import.
    got = differentiated(compiled, parameters, library)
    expected = differentiated(objective, parameters, library)
    for ours, theirs in zip(got, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)


for backend, library, cases in groups:
    torch.compiler.reset()
    compiled = torch.compile(objective, fullgraph=True, backend=backend)
    for case in cases:
        compare(compiled, library, *case)
"""


TRANSFORMED = """
torch.compiler.reset()


def log_prob(loc, scale, rho):
    return ar1_dist.AR1Normal(loc, scale, rho, validate_args=False).log_prob(loc.square())


def sample(loc, scale, rho):
    return ar1_dist.AR1Normal(loc, scale, rho, validate_args=False).rsample().sum()


loc, scale, rho = torch.linspace(-1, 1, 15).reshape(3, 5), torch.rand(3) + 0.5, torch.tensor([-0.5, 0.0, 0.5])
for function in (
    torch.vmap(log_prob),
    torch.vmap(sample, randomness="different"),
    torch.vmap(torch.func.grad(log_prob)),
    lambda *x: torch.func.jvp(lambda *y: torch.vmap(log_prob)(*y), x, x)[1],
):
    torch.manual_seed(0)
    expected = function(loc, scale, rho)
    assert expected.abs().min() > 0
    torch.manual_seed(0)
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(loc, scale, rho)
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)
print("compared")
"""


def run_from_a_cold_start(script: str, *arguments) -> None:
    """Run in a fresh interpreter: compiling turns validation off, and what was looked up before would hide errors."""
    script = script.replace("TOLERANCE", repr(TOLERANCE[torch.float32]))
    command = [sys.executable, "-c", script, *map(json.dumps, arguments)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "compared\n"


@pytest.mark.slow
def test_compiled_from_a_cold_start():
    groups = [
        ("aot_eager", "torch", [(3, 7, False)]),
        ("eager", "pyro", [(3, 7, False)]),  # the same arithmetic, looked up for other types
        # Shared parameters, one coordinate, and batches and dimensions that torch takes as dynamic.
        ("aot_eager", None, [(3, 7, True), (5, 7, True), (2, 1, True), (4, 9, False)]),
    ]
    if any(map(shutil.which, ("g++", "clang++"))):
        groups.append(("inductor", None, [(3, 7, False)]))
    run_from_a_cold_start(COMPILED + TRANSFORMED, groups)


@each_quantity
@over([Case(5, (3,)), Case(5, (3,), shared_scale=True, shared_rho=True), Case(1)])
def test_traced_as_pyro_traces(case, name):
    dtype = torch.float64 if name in ("rsample", "transform", *WITHOUT_DENSE) else torch.float32

    def function(*tensors):
        return compute(name, dict(zip(("loc", "scale", "rho"), tensors, strict=True)))

    traced = pyro.ops.jit.trace(function, ignore_warnings=True)
    traced(*leaves(parameters_of(case, dtype=dtype)).values())
    # What was traced for one set of values holds for another, with rho of the other sign.
    other = parameters_of(dataclasses.replace(case, seed=1), dtype=dtype)
    other = leaves({**other, "rho": -other["rho"]})
    torch.manual_seed(0)
    got, expected = traced(*other.values()), compute(name, other)
    assert_close(got, expected.detach(), dtype)
    got_gradients, expected_gradients = gradients(got, other), gradients(expected, other)
    for key, gradient in got_gradients.items():
        assert_close(gradient, expected_gradients[key], dtype)


# dtypes and devices


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for dtype in TOLERANCE for name in STATISTICS if dtype.itemsize > 2 or name in WITHOUT_DENSE],
    ids=str,
)
@each_parametrisation
def test_values_in_every_dtype(name, given, dtype):
    parameters = parameters_of(Case(6, (3,), max_rho=0.9), given, dtype)
    exact = {key: value.double() for key, value in parameters.items()}
    assert_close(compute(name, parameters), compute(name, exact), dtype)


@each_dtype
@over([Case(6, (3,)), Case(64, shared_scale=True, shared_rho=True)])
def test_samples_in_every_dtype(case, dtype):
    parameters = parameters_of(case, dtype=dtype)
    torch.manual_seed(0)
    samples = AR1Normal(**parameters).rsample((4,))
    torch.manual_seed(0)
    noise = torch.randn(4, *case.batch_shape, case.d, dtype=dtype)
    exact = AR1Normal(**{name: value.double() for name, value in parameters.items()})
    assert_close(samples, exact.transform(noise.double()), dtype)


@each_dtype
@pytest.mark.parametrize("name", ["rsample", *WITHOUT_DENSE])
def test_gradients_have_the_parameters_dtype(name, dtype):
    parameters = leaves(parameters_of(Case(6, (3,), max_rho=0.9), dtype=dtype))
    for key, gradient in gradients(compute(name, parameters), parameters).items():
        assert gradient.dtype == dtype
        assert gradient.shape == parameters[key].shape
        assert gradient.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@each_deterministic
def test_cuda(name):
    parameters = leaves(parameters_of(CHAIN))
    output = compute(name, {key: value.cuda() for key, value in parameters.items()})
    assert output.is_cuda
    expected = compute(name, parameters)
    assert_close(output.cpu(), expected.detach())
    assert_all_close(gradients(output, parameters), gradients(expected, parameters))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@each_dtype
def test_cuda_samples(dtype):
    chain = AR1Normal(**{name: value.cuda() for name, value in parameters_of(CHAIN, dtype=dtype).items()})
    samples = chain.rsample((4,))
    assert samples.is_cuda
    assert samples.dtype == dtype
    assert chain.log_prob(samples).isfinite().all()
