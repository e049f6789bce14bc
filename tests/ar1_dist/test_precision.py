"""The numerical contract: float32, parameters through atanh_rho of both signs, at the limits of its ranges.

Errors are |got - want| / max(1, |want|, 0.1 d), elementwise for gradients; want is 60-digit arithmetic for values and
float64 for gradients. ``python -m tests.ar1_dist.test_precision`` prints the errors as a table.
"""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from ar1_dist import AR1Normal
from ar1_dist.kernels import set_kernels

from .reference import Exact, relative_error

pytestmark = pytest.mark.usefixtures("each_path")

VALUE_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
MAX_ATANH_RHO = {"shared scales": 15.0, "scales per coordinate": 12.0}
MAX_ATANH_RHO_LOG_PROB = 5.0
SIZES = (2, 5, 20, 64)

Parameters = dict[str, torch.Tensor]


def parameters(d: int, scales: str, rhos: str, limit: float, generator: torch.Generator) -> Iterator[Parameters]:
    """Chains in float32 with rho near both ends, near one end, anywhere, and the same for every pair."""

    def rand(n):
        return torch.rand(n, generator=generator)

    n = 1 if rhos == "shared" else d - 1
    signs = torch.where(rand(n) < 0.5, -1.0, 1.0)
    for atanh_rho in (
        signs * (limit - 0.1 * rand(n)),
        limit - 3 * rand(n),
        -(limit - 0.01 * rand(n)),
        limit * (2 * rand(n) - 1),
    ):
        scale = 0.5 + rand(1 if scales == "shared scales" else d)
        yield {"loc": torch.randn(d, generator=generator), "scale": scale, "atanh_rho": atanh_rho}


def chains(scales: str, limit: float) -> Iterator[tuple[int, Parameters, Parameters]]:
    """Pairs of chains: unrelated ones, and one close to the other, where the divergence cancels the most."""
    generator = torch.Generator().manual_seed(0)
    for d, rhos in itertools.product(SIZES, ("shared", "per pair")):
        everything = list(parameters(d, scales, rhos, limit, generator))
        for i, q in enumerate(everything):
            yield d, q, everything[i - 1]
            yield d, q, everything[i] | {"atanh_rho": (q["atanh_rho"] * 0.999), "loc": q["loc"] + 1e-3}
            yield d, q, everything[i] | {"scale": 3 * q["scale"]}


def factorised(p: Parameters) -> Independent:
    return Independent(Normal(p["loc"], p["scale"].expand_as(p["loc"])), 1)


def quantities(q: Parameters, p: Parameters) -> Iterator[tuple[str, torch.Tensor, object]]:
    """Name, computed value and exact value of all that the contract bounds over the wide ranges."""
    exact_q, exact_p = Exact(**q), Exact(**p)
    chain = AR1Normal(**q)
    yield "entropy", chain.entropy(), exact_q.entropy()
    yield "KL to a factorised normal", kl_divergence(chain, factorised(p)), exact_q.kl(Exact(**p | {"atanh_rho": 0}))
    yield "KL between chains", kl_divergence(chain, AR1Normal(**p)), exact_q.kl(exact_p)


def log_probs(q: Parameters) -> Iterator[tuple[torch.Tensor, object]]:
    """log_prob, computed and exact, of a typical value and of one that no chain would draw."""
    chain = AR1Normal(**q)
    for value in (chain.sample(), torch.randn_like(q["loc"])):
        yield chain.log_prob(value), Exact(**q).log_prob(value)


def gradient_errors(function, *arguments: Parameters) -> Iterator[float]:
    """The largest error of the gradient with respect to each parameter."""

    def gradients(dtype):
        leaves = [{k: v.to(dtype, copy=True).requires_grad_() for k, v in each.items()} for each in arguments]
        flat = [leaf for each in leaves for leaf in each.values()]
        return torch.autograd.grad(function(*leaves), flat, allow_unused=True)

    d = arguments[0]["loc"].numel()
    computed = gradients(torch.float32)
    path = set_kernels("torch")  # the kernels' own arithmetic is that of float64
    exact = gradients(torch.float64)
    set_kernels(path)
    for got, want in zip(computed, exact, strict=True):
        if got is not None:
            yield ((got - want).abs() / want.abs().clamp(min=max(1.0, 0.1 * d))).max().item()


FUNCTIONS = {
    "entropy": lambda q, p: AR1Normal(**q).entropy(),
    "KL to a factorised normal": lambda q, p: kl_divergence(AR1Normal(**q), factorised(p)),
    "KL between chains": lambda q, p: kl_divergence(AR1Normal(**q), AR1Normal(**p)),
}


@pytest.mark.parametrize("scales", MAX_ATANH_RHO)
def test_values(scales):
    for d, q, p in chains(scales, MAX_ATANH_RHO[scales]):
        for name, got, want in quantities(q, p):
            assert relative_error(got, want, d) < VALUE_TOLERANCE, (name, q, p)


@pytest.mark.parametrize("scales", MAX_ATANH_RHO)
def test_log_prob(scales):
    for d, q, _ in chains(scales, MAX_ATANH_RHO_LOG_PROB):
        for got, want in log_probs(q):
            assert relative_error(got, want, d) < VALUE_TOLERANCE, q


@pytest.mark.parametrize("scales", MAX_ATANH_RHO)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name, scales):
    for _, q, p in chains(scales, MAX_ATANH_RHO[scales]):
        assert max(gradient_errors(FUNCTIONS[name], q, p)) < GRADIENT_TOLERANCE, (q, p)


@pytest.mark.parametrize("scales", MAX_ATANH_RHO)
def test_gradients_of_log_prob(scales):
    for _, q, _ in chains(scales, MAX_ATANH_RHO_LOG_PROB):
        value = AR1Normal(**q).sample()
        assert max(gradient_errors(lambda q, v=value: AR1Normal(**q).log_prob(v.to(q["loc"].dtype)), q)) < 1e-4, q


@pytest.mark.parametrize("per_coordinate", [False, True])
@pytest.mark.parametrize("limit", [-15.0, 15.0])
def test_finite_at_the_limit(limit, per_coordinate):
    d = 100_000
    q, p = (
        {
            "loc": torch.randn(d),
            "scale": 0.5 + torch.rand(d if per_coordinate else 1),
            "atanh_rho": torch.full((d - 1 if per_coordinate else 1,), sign * limit),
        }
        for sign in (1, 0.9)
    )
    leaves = [value.requires_grad_() for each in (q, p) for value in each.values()]
    chain = AR1Normal(**q, validate_args=True)
    results = [function(q, p) for function in FUNCTIONS.values()]
    results += [chain.log_prob(chain.rsample()), chain.rsample().sum(), chain.log_prob(torch.zeros(d))]
    for result in results:
        assert result.isfinite()
        gradients = torch.autograd.grad(result, leaves, retain_graph=True, allow_unused=True)
        assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("parametrisation", ["rho", "atanh_rho"])
def test_gradients_at_zero_rho(parametrisation):
    """By central differences in float64: a sign or an absolute value would give zero."""
    d = 5
    loc, other = (torch.randn(d, dtype=torch.float64) for _ in range(2))
    scale = 0.5 + torch.rand(d, dtype=torch.float64)

    def build(x):
        return AR1Normal(loc, scale, **{parametrisation: x})

    functions = [
        lambda x: build(x).log_prob(other),
        lambda x: build(x).entropy(),
        lambda x: kl_divergence(build(x), AR1Normal(other, 1.0, 0.3)),
        lambda x: kl_divergence(AR1Normal(other, 1.0, 0.3), build(x)),
        lambda x: kl_divergence(build(x), Independent(Normal(other, 1.0), 1)),
    ]
    zero = torch.zeros(d - 1, dtype=torch.float64)
    for function in functions:
        got = torch.autograd.functional.jacobian(function, zero)
        steps = 1e-5 * torch.eye(d - 1, dtype=torch.float64)
        want = torch.stack([(function(step) - function(-step)) / 2e-5 for step in steps])
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


def rows() -> list[tuple]:
    """Quantity, parameters, their limit, and the largest errors of values and of gradients."""
    rows = []
    for scales, limit in MAX_ATANH_RHO.items():
        worst: dict[str, list[float]] = {}
        for d, q, p in chains(scales, limit):
            for name, got, want in quantities(q, p):
                gradient = max(gradient_errors(FUNCTIONS[name], q, p))
                worst.setdefault(name, []).append((relative_error(got, want, d), gradient))
        rows += [(name, scales, limit, *map(max, zip(*errors, strict=True))) for name, errors in worst.items()]
        errors = []
        for d, q, _ in chains(scales, MAX_ATANH_RHO_LOG_PROB):
            value = max(relative_error(got, want, d) for got, want in log_probs(q))
            sample = AR1Normal(**q).sample()
            errors.append(
                (value, max(gradient_errors(lambda q, v=sample: AR1Normal(**q).log_prob(v.to(q["loc"].dtype)), q)))
            )
        rows.append(("log_prob", scales, MAX_ATANH_RHO_LOG_PROB, *map(max, zip(*errors, strict=True))))
    return rows


def table() -> str:
    """The errors of plain torch and of the kernels, as Markdown."""
    paths = []
    for path in ("torch", "numba"):
        torch.manual_seed(0)
        set_kernels(path)
        paths.append(rows())
    lines = [
        "| quantity | parameters | up to \\|atanh rho\\| | value, plain torch | gradient | value, kernels | gradient |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for plain, kernels in zip(*paths, strict=True):
        name, scales, limit, *errors = (*plain, *kernels[3:])
        lines.append(f"| {name} | {scales} | {limit:g} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
