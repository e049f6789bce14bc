"""The numerical contract of inference in float32: chains of 100,000 coordinates against float64, and short ones with
correlations at the limits of their range against 60-digit arithmetic.

Errors are |got - want| / max(1, |want|), for sums over the chain / max(1, |want|, 0.1 d).
``python -m tests.ar1_dist.inference.test_precision`` prints the errors over long chains as a table.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from ar1_dist import AR1Normal
from ar1_dist.inference import condition, construct, update
from tests.ar1_dist.reference import Exact

VALUE_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
D = 100_000

Parameters = dict[str, torch.Tensor]


def chain(atanh_rho: torch.Tensor, loc: torch.Tensor | None = None, shared_scale: bool = False) -> Parameters:
    loc = torch.randn(D) if loc is None else loc
    return {"loc": loc, "scale": 0.5 + torch.rand(1 if shared_scale else D), "atanh_rho": atanh_rho}


def factors(loc: torch.Tensor | None = None, least: float = 0.5, share_missing: float = 0.0) -> Parameters:
    scale = least * (1 + torch.rand(D))
    scale[torch.rand(D) < share_missing] = torch.inf
    return {"loc": torch.randn(D) if loc is None else loc, "noise_scale": scale}


def walk() -> Parameters:
    names = ("coefficient", "noise_scale", "initial_scale")
    return {"loc": torch.zeros(D)} | {name: torch.ones(1) for name in names}


def strong(sign: float = 1.0, n: int = 1) -> torch.Tensor:
    return torch.full((n,), sign * 0.9999, dtype=torch.float64).atanh().float()


def either_sign() -> torch.Tensor:
    return torch.where(torch.rand(D - 1) < 0.5, 1.0, -1.0) * strong(n=D - 1)


CASES: dict[str, Callable[[], tuple[Parameters, Parameters]]] = {
    "any correlation, factors": lambda: (chain(torch.randn(D - 1)), factors()),
    "any correlation, factors, half missing": lambda: (chain(torch.randn(D - 1)), factors(share_missing=0.5)),
    "rho = 0.9999, factors": lambda: (chain(strong(), shared_scale=True), factors()),
    "rho = -0.9999, factors": lambda: (chain(strong(-1), shared_scale=True), factors()),
    "rho = 0.9999, weak factors, most missing": lambda: (
        chain(strong(), shared_scale=True),
        factors(least=30.0, share_missing=0.99),
    ),
    "random walk, factors": lambda: (walk(), factors(torch.randn(D).cumsum(0))),
    "any correlation, chain": lambda: (chain(torch.randn(D - 1)), chain(torch.randn(D - 1))),
    "rho = 0.9999, chain": lambda: (chain(strong(), shared_scale=True), chain(torch.randn(D - 1))),
    "rho = 0.9999, the like": lambda: (chain(strong(), shared_scale=True), chain(0.9 * strong(), shared_scale=True)),
    "rho = 0.9999, chain with rho = -0.9999": lambda: (
        chain(strong(), shared_scale=True),
        chain(strong(-1), shared_scale=True),
    ),
    "rho = +-0.9999, the like": lambda: (chain(either_sign()), chain(either_sign())),
    "random walk, chain": lambda: (walk(), chain(torch.randn(D - 1), torch.randn(D).cumsum(0))),
}


def build(parameters: Parameters) -> Distribution:
    if "coefficient" in parameters:
        return AR1Normal.from_transitions(**parameters)
    if "noise_scale" in parameters:
        return Independent(Normal(parameters["loc"], parameters["noise_scale"]), 1)
    return AR1Normal(**parameters)


def error(got: torch.Tensor, want: torch.Tensor, least: float = 1.0) -> float:
    assert got.isfinite().all()
    return ((got.double() - want).abs() / want.abs().clamp(min=least)).max().item()


def solve(q: Parameters, p: Parameters, dtype: torch.dtype) -> tuple[AR1Normal, torch.Tensor, dict[str, torch.Tensor]]:
    leaves = [{name: x.to(dtype, copy=True).requires_grad_() for name, x in each.items()} for each in (q, p)]
    updated, evidence = build(leaves[0]).conjugate_update(build(leaves[1]))
    flat = {f"{name} of {of}": x for of, each in zip("qp", leaves, strict=True) for name, x in each.items()}
    gradients = torch.autograd.grad(evidence, list(flat.values()))
    return updated, evidence, dict(zip(flat, gradients, strict=True))


def errors(q: Parameters, p: Parameters) -> Iterator[tuple[str, float]]:
    """Of the updated chain's parameters, of the evidence, and of the evidence's gradients.

    The gradient of a walk's coefficient is apart: it is a sum over all steps of products with the level, which reaches
    300, and moves with the ratios of neighbouring scales, which float32 has rounded.
    """
    got, got_evidence, got_gradients = solve(q, p, torch.float32)
    want, want_evidence, want_gradients = solve(q, p, torch.float64)
    yield "updated", max(error(getattr(got, name), getattr(want, name)) for name in ("loc", "scale", "atanh_rho"))
    yield "evidence", error(got_evidence, want_evidence, 0.1 * D)
    yield (
        "gradients",
        max(
            error(got_gradients[name], gradient, 0.1 * D if gradient.numel() == 1 else 1.0)
            for name, gradient in want_gradients.items()
            if name != COEFFICIENT
        ),
    )
    if COEFFICIENT in want_gradients:
        yield COEFFICIENT, error(got_gradients[COEFFICIENT], want_gradients[COEFFICIENT], 0.1 * D)


COEFFICIENT = "coefficient of q"
TOLERANCES = {
    "updated": VALUE_TOLERANCE,
    "evidence": VALUE_TOLERANCE,
    "gradients": GRADIENT_TOLERANCE,
    COEFFICIENT: 100 * GRADIENT_TOLERANCE,
}


@pytest.mark.parametrize("name", CASES)
def test_long_chains(name):
    for quantity, got in errors(*CASES[name]()):
        assert got < TOLERANCES[quantity], quantity


@pytest.mark.parametrize("name", [name for name in CASES if "walk" not in name and "the like" not in name])
def test_long_chains_without_a_wider_type(name, monkeypatch):
    """Nothing rests on float64, which some devices don't have: the recurrences' terms are positive."""
    q, p = CASES[name]()
    want, want_evidence, want_gradients = solve(q, p, torch.float64)
    for module in (construct, condition, update):
        monkeypatch.setattr(module, "widen", lambda x: x)
    got, got_evidence, got_gradients = solve(q, p, torch.float32)
    assert max(error(getattr(got, name), getattr(want, name)) for name in ("loc", "scale", "atanh_rho")) < 3e-4
    assert error(got_evidence, want_evidence, 0.1 * D) < 1e-5
    for name, gradient in want_gradients.items():
        assert error(got_gradients[name], gradient, 0.1 * D if gradient.numel() == 1 else 1.0) < 1e-3, name


@pytest.mark.parametrize("atanh_rho", [torch.tensor([0.5]), strong(), strong(-1), torch.full((1,), 12.0)])
def test_marginal_and_condition_of_long_chains(atanh_rho):
    q = chain(atanh_rho)
    kept = torch.rand(D) < 0.1
    value = torch.randn(int(kept.sum()))
    short, long = (
        AR1Normal(**{name: x.to(dtype) for name, x in q.items()}) for dtype in (torch.float32, torch.float64)
    )
    for got, want in (
        (short.marginal(kept), long.marginal(kept)),
        (short.condition(kept, value), long.condition(kept, value.double())),
    ):
        for name in ("loc", "scale", "atanh_rho"):
            assert error(getattr(got, name), getattr(want, name)) < VALUE_TOLERANCE, name


def test_updated_long_walk_is_sampled_and_compared():
    q, p = (build(each) for each in CASES["random walk, factors"]())
    updated, _ = q.conjugate_update(p)
    assert (updated.rsample() - updated.mean).div(updated.stddev).std() == pytest.approx(1, abs=0.02)
    kl = kl_divergence(updated, q)
    assert kl.isfinite()
    assert kl > 0


def short_chains(limit: float, d: int = 6) -> Iterator[Parameters]:
    for atanh_rho in (
        limit - torch.rand(d - 1),
        -limit + torch.rand(d - 1),
        limit * torch.where(torch.rand(d - 1) < 0.5, 1.0, -1.0),
        limit * (2 * torch.rand(d - 1) - 1),
        torch.full((1,), limit),
    ):
        yield {"loc": torch.randn(d), "scale": 0.5 + torch.rand(d), "atanh_rho": atanh_rho}


@pytest.mark.parametrize("limit", [2.0, 8.0, 12.0])
@pytest.mark.parametrize("kind", ["factors", "chain"])
def test_short_chains_against_exact_arithmetic(kind, limit):
    for q in short_chains(limit):
        for p in short_chains(limit):
            if kind == "factors":
                updated, evidence = AR1Normal(**q).conjugate_update(Independent(Normal(p["loc"], p["scale"]), 1))
                p = p | {"atanh_rho": torch.zeros(1)}
            else:
                updated, evidence = AR1Normal(**q).conjugate_update(AR1Normal(**p))
            wanted = Exact(**q).product(Exact(**p))
            for got, want in zip((updated.loc, updated.scale, updated.atanh_rho, evidence[None]), wanted, strict=True):
                want = torch.tensor([float(x) for x in (want if isinstance(want, list) else [want])]).double()
                assert error(got, want) < VALUE_TOLERANCE, (q, p)


def _spread(d: int, least: float, most: float) -> torch.Tensor:
    return 10 ** (least + (most - least) * torch.rand(d, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["factors", "chain"])
@pytest.mark.parametrize("scales", ["mixed", "broad beside sharp", "sharp beside broad"])
def test_scales_far_apart_against_exact_arithmetic(kind, scales):
    """Up to sixteen orders of magnitude; two chains whose scales jump from neighbour to neighbour, eight."""
    most = 8 if kind == "factors" else 4
    d, ranges = 6, {"mixed": ((-most, most), (-most, most)), "broad beside sharp": ((14, 15), (-1, 0))}
    of_q, of_p = ranges.get(scales, ((-1, 0), (14, 15)))
    for _ in range(5):
        q, p = (
            {"loc": scale * torch.randn(d).double(), "scale": scale, "atanh_rho": 2 * torch.randn(d - 1).double()}
            for scale in (_spread(d, *of_q), _spread(d, *of_p))
        )
        if kind == "factors":
            updated, evidence = AR1Normal(**q).conjugate_update(Independent(Normal(p["loc"], p["scale"]), 1))
            p = p | {"atanh_rho": torch.zeros(1)}
        else:
            updated, evidence = AR1Normal(**q).conjugate_update(AR1Normal(**p))
        loc, scale, _, wanted = Exact(**q).product(Exact(**p))
        assert evidence.item() == pytest.approx(float(wanted), rel=1e-9, abs=1e-9)
        exact = torch.tensor([float(x) for x in scale], dtype=torch.float64)
        assert ((updated.scale - exact) / exact).abs().max() < 1e-9
        # In units of the posterior's deviation, and of what float64 makes of a number so large.
        error_of_loc = (updated.loc - torch.tensor([float(x) for x in loc], dtype=torch.float64)).abs()
        assert (error_of_loc < 1e-7 * exact + 1e-14 * updated.loc.abs()).all()


def main() -> None:
    print("| chain, other | updated | evidence | gradients |\n| --- | --- | --- | --- |")
    for name, make in CASES.items():
        torch.manual_seed(0)
        print(f"| {name} | " + " | ".join(f"{got:.1e}" for _, got in list(errors(*make()))[:3]) + " |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
