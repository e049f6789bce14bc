import math

import numpy as np
import pyro.distributions
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.infer.reparam import ConjugateReparam
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from ar1_dist import AR1Normal
from tests.ar1_dist import reference
from tests.ar1_dist.cases import Case, any_case, any_pair, assert_close

INF, NAN = math.inf, math.nan


def tensors(arrays: dict[str, np.ndarray], requires_grad: bool = False) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array).requires_grad_(requires_grad) for name, array in arrays.items()}


def assert_is(q: AR1Normal, mean, covariance) -> None:
    assert_close(q.mean, mean)
    assert_close(q.covariance_matrix, covariance)


@st.composite
def case_and_index(draw: st.DrawFn, max_d: int = 12):
    """A case and some of its coordinates, neither none nor all."""
    case = draw(any_case(max_d).filter(lambda case: case.d > 1))
    index = draw(st.sets(st.integers(0, case.d - 1), min_size=1, max_size=case.d - 1).map(sorted))
    return case, index


def factors(case: Case, share_missing: float = 0.0) -> dict[str, np.ndarray]:
    """Location and scale of a factorised normal over the space of the case."""
    random = np.random.default_rng(case.seed + 1)
    shape = (*case.batch_shape, case.d)
    scale = random.uniform(0.1, 2.0, size=shape)
    scale[random.uniform(size=shape) < share_missing] = INF
    return {"loc": random.normal(size=shape), "scale": scale}


def independent(p: dict[str, torch.Tensor], library=torch.distributions) -> Independent:
    return library.Independent(library.Normal(p["loc"], p["scale"], validate_args=False), 1)


# --- from_times and from_transitions ---


def times_of(case: Case) -> dict[str, np.ndarray]:
    random = np.random.default_rng(case.seed)
    gaps = random.choice([1e-3, 0.1, 1.0, 30.0], size=(*case.batch_shape, case.d))
    sizes = {True: 1, False: max(case.d - 1, 1)}
    return {
        "times": np.cumsum(gaps, -1),
        "loc": random.normal(size=(*case.batch_shape[1:], case.d)),
        "scale": random.uniform(0.5, 2.0, size=1 if case.shared_scale else case.d),
        "timescale": random.uniform(0.5, 5.0, size=sizes[case.shared_rho or case.d == 1]),
    }


@given(any_case())
def test_from_times(case):
    arrays = times_of(case)
    q = AR1Normal.from_times(**tensors(arrays))
    assert q.batch_shape == case.batch_shape
    if case.d == 1:
        arrays["timescale"] = np.ones(0)
    assert_is(q, np.broadcast_to(arrays["loc"], q.loc.shape), reference.covariance_of_times(arrays))


def test_from_times_at_both_ends():
    """The correlation keeps its digits over gaps from the shortest to the longest, also where exp would overflow."""
    gaps = torch.tensor([1e-12, 1e-6, 1e-3, 1.0, 20.0, 80.0, 100.0, 1e4])
    for gap in gaps:
        timescale = torch.ones(1, requires_grad=True)
        q = AR1Normal.from_times(torch.stack([torch.zeros(()), gap]), torch.zeros(2), 1.0, timescale)
        exact = 0.5 * math.log1p(2 / math.expm1(gap)) if gap < 500 else 0.0
        assert q.atanh_rho.item() == pytest.approx(exact, rel=1e-6, abs=1e-38)
        q.atanh_rho.sum().backward()
        assert timescale.grad.isfinite().all()


def test_from_times_takes_differences_in_the_type_of_times():
    stamps = torch.tensor([1_700_000_000, 1_700_000_001, 1_700_000_061])
    for times in (stamps, stamps.double()):
        q = AR1Normal.from_times(times, torch.zeros(3), 1.0, 60.0)
        assert_close(q.rho, np.exp([-1 / 60, -1.0]), torch.float32)


@pytest.mark.parametrize(
    "times", [[0.0, 1.0, 1.0], [0.0, 2.0, 1.0], [0.0, 1.0, NAN], [0.0, 1.0, INF], [0.0, 1.0], [False, True, True]]
)
def test_times_must_increase(times):
    with pytest.raises(ValueError, match="times must"):
        AR1Normal.from_times(torch.tensor(times), torch.zeros(3), 1.0, 1.0)


def transitions_of(case: Case) -> dict[str, np.ndarray]:
    random = np.random.default_rng(case.seed)
    n = 1 if case.shared_rho else max(case.d - 1, 1)
    return {
        "loc": random.normal(size=(*case.batch_shape, case.d)),
        "coefficient": random.uniform(-1.3, 1.3, size=(*case.batch_shape, n)),
        "noise_scale": random.uniform(0.1, 2.0, size=1 if case.shared_scale else n),
        "initial_scale": random.uniform(0.1, 5.0, size=(*case.batch_shape[1:], 1)),
    }


@given(any_case())
def test_from_transitions(case):
    arrays = transitions_of(case)
    q = AR1Normal.from_transitions(**tensors(arrays))
    assert q.batch_shape == case.batch_shape
    if case.d == 1:
        arrays |= {"coefficient": np.ones(0), "noise_scale": np.ones(0)}
    assert_is(q, arrays["loc"], reference.covariance_of_transitions(arrays))


def test_from_transitions_takes_numbers_and_zero_coefficients():
    q = AR1Normal.from_transitions(torch.zeros(4), 1.0, torch.tensor(2.0), 3)
    assert_close(q.variance, [9.0, 13.0, 17.0, 21.0], torch.float32)
    q = AR1Normal.from_transitions(torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, -1.0]), 1.0, 3.0)
    assert_close(q.covariance_matrix, [[9.0, 0, 0], [0, 1, -1], [0, -1, 2]])
    q = AR1Normal.from_transitions(torch.zeros(2, dtype=torch.float64), 1.0, 1.0, 0.1)
    assert_close(q.stddev[:1], [0.1])  # not as float32 rounds it


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loc", 0.0),
        ("loc", torch.tensor(0.0)),
        ("loc", torch.zeros(3, dtype=torch.long)),
        ("coefficient", torch.ones(3)),
        ("coefficient", torch.tensor([1.0, NAN])),
        ("coefficient", "1"),
        ("noise_scale", torch.tensor([1.0, 0.0])),
        ("noise_scale", torch.ones(5)),
        ("noise_scale", -1.0),
        ("noise_scale", True),
        ("initial_scale", torch.ones(2)),
        ("initial_scale", 0.0),
        ("initial_scale", torch.ones(1, dtype=torch.long)),
        ("coefficient", torch.ones(4, 1)),
    ],
)
def test_bad_transitions(name, value):
    good = {"loc": torch.zeros(5, 3), "coefficient": 1.0, "noise_scale": 1.0, "initial_scale": 1.0}
    with pytest.raises(ValueError, match=name):
        AR1Normal.from_transitions(**good | {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("timescale", 0.0), ("timescale", torch.ones(3)), ("timescale", None), ("times", torch.arange(3.0).expand(2, 3))],
)
def test_bad_timescale(name, value):
    good = {"times": torch.arange(3.0), "loc": torch.zeros(5, 3), "scale": 1.0, "timescale": 1.0}
    with pytest.raises(ValueError, match=name):
        AR1Normal.from_times(**good | {name: value})


def test_values_are_not_checked_without_validation():
    AR1Normal.from_times(torch.tensor([0.0, INF]), torch.zeros(2), 1.0, 1.0, validate_args=False)
    AR1Normal.from_transitions(torch.zeros(2), 1.0, -1.0, 1.0, validate_args=False)


def test_gradients_of_constructors():
    def from_times(times, timescale):
        return AR1Normal.from_times(times, torch.zeros(4, dtype=torch.float64), 1.0, timescale).atanh_rho

    times = torch.tensor([[0.0, 0.1, 3.0, 3.5]], dtype=torch.float64, requires_grad=True)
    timescale = torch.tensor([[2.0], [0.3]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(from_times, (times, timescale))
    assert gradgradcheck(from_times, (times, timescale))

    def from_transitions(*parameters):
        q = AR1Normal.from_transitions(torch.zeros(4, dtype=torch.float64), *parameters)
        return q.scale, q.atanh_rho

    case = Case(4, (2,), seed=3)
    parameters = [value for name, value in tensors(transitions_of(case), True).items() if name != "loc"]
    assert gradcheck(from_transitions, parameters)
    assert gradgradcheck(from_transitions, parameters)


# --- marginal and condition ---


@given(case_and_index())
def test_marginal(case_and_index):
    case, index = case_and_index
    q = case.build()
    got = q.marginal(index)
    assert got.batch_shape == q.batch_shape
    assert_is(got, q.mean[..., index], reference.covariance(case.arrays())[..., index, :][..., index])


@given(case_and_index())
def test_condition(case_and_index):
    case, index = case_and_index
    value = np.random.default_rng(1).normal(size=(2, *case.batch_shape, len(index)))
    got = case.build().condition(index, torch.tensor(value))
    expected = reference.conditional(case.arrays(), {"index": np.array(index), "value": value})
    assert got.batch_shape == (2, *case.batch_shape)
    assert_is(got, expected[..., 0, :], expected[..., 1:, :])


@given(case_and_index())
def test_marginal_and_conditional_densities_multiply(case_and_index):
    case, index = case_and_index
    q = case.build()
    z = torch.randn(3, *q.batch_shape, case.d, dtype=torch.float64)
    rest = [t for t in range(case.d) if t not in index]
    conditional = q.condition(index, z[..., index]).log_prob(z[..., rest])
    assert_close(q.marginal(index).log_prob(z[..., index]) + conditional, q.log_prob(z))


def test_every_kind_of_index():
    q = Case(5, (2,)).build()
    wanted = q.marginal([1, 3, 4])
    mask = [False, True, False, True, True]
    for index in ((1, 3, 4), torch.tensor([1, 3, 4]), np.array([1, 3, 4]), [1, -2, -1], mask, torch.tensor(mask)):
        got = q.marginal(index)
        assert torch.equal(got.atanh_rho, wanted.atanh_rho)
        value = torch.ones(3, dtype=torch.float64)
        assert torch.equal(q.condition(index, value).loc, q.condition([1, 3, 4], value).loc)
    assert torch.equal(q.marginal(slice(1, None, 2)).loc, q.marginal([1, 3]).loc)
    assert torch.equal(q.marginal(np.array(mask).tolist()).loc, q.marginal(list(np.array([1, 3, 4]))).loc)


@pytest.mark.parametrize(
    "index",
    [[1, 1], [2, 1], [0, 5], [-6], [-1, 0], [0.5], [[0], [1]], [True, False], torch.ones(2, 5) > 0, 3, "1", None]
    + [slice(None, None, -1), list(range(20))],
)
def test_bad_index(index):
    q = Case(5).build()
    with pytest.raises(ValueError, match="index must be a slice, a boolean mask"):
        q.marginal(index)
    with pytest.raises(ValueError, match="index must be a slice, a boolean mask"):
        q.condition(index, torch.zeros(2))


def test_only_numbers_move_to_the_device_of_loc():
    """As everywhere in torch, and as in the constructor itself."""
    loc, number = torch.zeros(3, device="meta"), torch.tensor(1.0)
    assert AR1Normal.from_transitions(loc, 1.0, number, number, validate_args=False).scale.device.type == "meta"
    for build in (
        lambda: AR1Normal(loc, torch.ones(3), 0.5, validate_args=False).rsample(),
        lambda: AR1Normal.from_transitions(loc, 1.0, torch.ones(2), 1.0, validate_args=False),
    ):
        with pytest.raises(RuntimeError, match="device"):
            build()


@pytest.mark.parametrize("nothing", [[], torch.zeros(5, dtype=torch.bool), slice(0, 0), torch.empty(0)])
def test_nothing_and_everything(nothing):
    q = Case(5, (2,)).build()
    with pytest.raises(ValueError, match="at least one coordinate"):
        q.marginal(nothing)
    same = q.condition(nothing, torch.zeros(3, 1, 0))
    assert same.batch_shape == (3, 2)
    assert torch.equal(same.loc, q.loc.expand(3, 2, 5))
    everything = slice(None)
    assert q.marginal(everything) is q
    with pytest.raises(ValueError, match="leave at least one of the 5"):
        q.condition(everything, torch.zeros(5))


@pytest.mark.parametrize("value", [0.0, torch.zeros(3), torch.zeros(2, dtype=torch.long), torch.tensor([0.0, NAN])])
def test_bad_value(value):
    with pytest.raises(ValueError, match="value must"):
        Case(5).build().condition([0, 1], value)
    with pytest.raises(ValueError, match="Leading dimensions must broadcast"):
        Case(5, (2,)).build().condition([0, 1], torch.zeros(3, 2))


def test_marginal_keeps_what_is_shared_and_what_is_adjacent():
    q = AR1Normal(torch.zeros(6), 2.0, atanh_rho=torch.tensor([13.0, -9.5, 0.3, 1.0, 0.0]))
    kept = q.marginal([0, 1, 2, 5])
    assert kept.scale.shape == (1,)
    assert torch.equal(kept.atanh_rho[:2], q.atanh_rho[:2])


def test_no_correlation_across_an_observed_coordinate():
    q = Case(5).build().condition([2], torch.zeros(1))
    assert q.rho[1] == 0
    assert (q.rho[[0, 2]] != 0).all()


def test_gradients_of_marginal_and_condition():
    parameters = Case(7, (2,), seed=1).parameters(requires_grad=True)
    value = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def marginal(*parameters):
        q = AR1Normal(*parameters).marginal([0, 1, 3, 6])
        return q.loc, q.scale, q.atanh_rho

    def condition(value, *parameters):
        q = AR1Normal(*parameters).condition([0, 3, 4], value)
        return q.loc, q.scale, q.atanh_rho

    inputs = tuple(parameters.values())
    assert gradcheck(marginal, inputs)
    assert gradgradcheck(marginal, inputs)
    assert gradcheck(condition, (value, *inputs))
    assert gradgradcheck(condition, (value, *inputs))


def test_gradient_where_a_correlation_is_zero():
    """The product over a gap depends on the others still."""
    rho = torch.tensor([0.0, 0.5, 0.0, 0.8], dtype=torch.float64, requires_grad=True)
    loc = torch.zeros(5, dtype=torch.float64)

    def marginal(rho):
        return AR1Normal(loc, 1.0, rho).marginal([0, 2, 4]).rho

    assert gradcheck(marginal, (rho,))
    assert gradcheck(lambda rho: AR1Normal(loc, 1.0, rho).condition([1], loc[:1] + 1).atanh_rho, (rho,))


def test_given_coordinates_are_what_the_marginal_and_the_samples_say():
    """A bridge is pinned at both ends."""
    walk = AR1Normal.from_transitions(torch.zeros(101), 1.0, 0.1, 1.0)
    bridge = walk.condition([0, 100], torch.tensor([1.0, -1.0]))
    assert_close(bridge.mean, np.linspace(1, -1, 101)[1:-1], torch.float32)
    steps = np.arange(1, 100)
    assert_close(bridge.variance, 0.01 * steps * (100 - steps) / 100, torch.float32)


# --- conjugate_update ---


def expected_update(q: dict[str, np.ndarray], p: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dense = reference.product(q, p)
    return dense[..., 0, :], dense[..., 1:-1, :], dense[..., -1, 0]


def assert_updated(got: tuple[AR1Normal, torch.Tensor], expected) -> None:
    (updated, log_normalizer), (mean, covariance, evidence) = got, expected
    assert log_normalizer.shape == updated.batch_shape
    assert_is(updated, mean, covariance)
    assert_close(log_normalizer, evidence)


@given(any_case(), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([torch.distributions, pyro.distributions]))
def test_update_by_factors(case, share_missing, library):
    arrays = factors(case, share_missing)
    got = case.build().conjugate_update(independent(tensors(arrays), library))
    assert_updated(got, expected_update(case.arrays(), arrays))


@given(any_pair())
def test_update_by_a_chain(pair):
    q, p = pair
    assert_updated(q.build().conjugate_update(p.build()), expected_update(q.arrays(), p.arrays()))
    assert_updated(p.build().conjugate_update(q.build()), expected_update(p.arrays(), q.arrays()))


@given(any_pair())
def test_update_defines_the_product(pair):
    """Pyro's own statement of the protocol."""
    q, p = (case.build() for case in pair)
    for other in (p, independent({"loc": p.loc, "scale": p.scale.expand_as(p.loc)})):
        updated, log_normalizer = q.conjugate_update(other)
        z = torch.randn(3, *updated.batch_shape, updated.event_shape[0], dtype=torch.float64)
        assert_close(updated.log_prob(z) + log_normalizer, q.log_prob(z) + other.log_prob(z))


@given(any_case())
def test_chain_without_correlation_is_factorised(case):
    arrays = tensors(factors(case))
    for got, expected in zip(
        case.build().conjugate_update(AR1Normal(**arrays, rho=0.0)),
        case.build().conjugate_update(independent(arrays)),
        strict=True,
    ):
        if isinstance(got, AR1Normal):
            assert_is(got, expected.mean, expected.covariance_matrix)
        else:
            assert_close(got, expected)


def test_nested_independent_and_broadcasting():
    q = Case(4, (3, 1)).build()
    arrays = tensors(factors(Case(4, (2,))))
    plain = q.conjugate_update(independent(arrays))
    base = Normal(**arrays)
    for other in (Independent(Independent(base, 1), 0), Independent(Independent(base, 0), 1)):
        updated, log_normalizer = q.conjugate_update(other)
        assert updated.batch_shape == log_normalizer.shape == (3, 2)
        assert torch.equal(log_normalizer, plain[1])
    updated, _ = q.expand((5, 3, 1)).conjugate_update(pyro.distributions.Normal(**arrays).to_event(1))
    assert updated.batch_shape == (5, 3, 2)
    assert torch.equal(updated.loc[1], plain[0].loc)


@pytest.mark.parametrize(
    "other",
    [
        Normal(torch.zeros(4), 1.0),
        Independent(Normal(torch.zeros(2, 4), 1.0), 2),
        Independent(torch.distributions.Laplace(torch.zeros(4), 1.0), 1),
        MultivariateNormal(torch.zeros(4), torch.eye(4)),
        Independent(Normal(torch.zeros(5), 1.0), 1),
        AR1Normal(torch.zeros(5), 1.0, 0.5),
        Independent(Normal(torch.zeros(3, 4), 1.0), 1),
        None,
    ],
)
def test_bad_other(other):
    with pytest.raises(ValueError, match=r"other|Leading dimensions"):
        Case(4, (2,)).build().conjugate_update(other)


@pytest.mark.parametrize("batch_shape", [(0,), (2, 0)])
def test_empty_batches(batch_shape):
    q = AR1Normal(torch.zeros(*batch_shape, 4), 1.0, torch.full((3,), 0.5))
    for other in (Independent(Normal(torch.zeros(4), 1.0), 1), AR1Normal(torch.zeros(4), 1.0, 0.2)):
        updated, log_normalizer = q.conjugate_update(other)
        assert updated.batch_shape == log_normalizer.shape == batch_shape
    assert q.marginal([0, 2]).batch_shape == batch_shape
    assert q.condition([1], torch.zeros(1)).batch_shape == batch_shape
    assert AR1Normal.from_transitions(torch.zeros(*batch_shape, 4), 1.0, 1.0, 1.0).batch_shape == batch_shape
    assert AR1Normal.from_times(torch.arange(4), torch.zeros(*batch_shape, 4), 1.0, 1.0).batch_shape == batch_shape


def test_expanded_chains_and_the_validation_flag():
    q = AR1Normal(torch.zeros(4), 1.0, 0.5, validate_args=False).expand((3,))
    updated, _ = q.conjugate_update(Independent(Normal(torch.zeros(4), 1.0), 1))
    for chain in (updated, q.marginal([0, 1]), q.condition([0], torch.zeros(1))):
        assert chain.batch_shape == (3,)
        assert not chain._validate_args
        assert chain.rsample((2,)).shape == (2, 3, *chain.event_shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    q = Case(6).build(dtype)
    for other in (independent(tensors(factors(Case(6)))), Case(6, seed=1).build()):
        updated, log_normalizer = q.conjugate_update(other)
        assert updated.loc.dtype == log_normalizer.dtype == torch.float64
    p = {name: value.to(dtype) for name, value in tensors(factors(Case(6))).items()}
    updated, log_normalizer = q.conjugate_update(independent(p))
    wide, evidence = Case(6).build().conjugate_update(independent(tensors(factors(Case(6)))))
    for got, expected in ((log_normalizer, evidence), (updated.loc, wide.loc), (updated.scale, wide.scale)):
        assert_close(got, expected, dtype)


# --- What is not observed ---


@pytest.mark.parametrize("marker", [NAN, INF, 1e30])
def test_infinite_scale_touches_neither_value_nor_gradient(marker):
    def solve(hidden):
        leaves = Case(6, (2,)).parameters(requires_grad=True)
        p = tensors(factors(Case(6)))
        p["loc"][[0, 2, 5]] = hidden
        p["scale"][[0, 2, 5]] = INF
        leaves |= {"p_loc": p["loc"].requires_grad_(), "p_scale": p["scale"].requires_grad_()}
        q = AR1Normal(leaves["loc"], leaves["scale"], leaves["rho"])
        updated, evidence = q.conjugate_update(independent(p))
        outputs = [evidence, updated.loc, updated.scale, updated.atanh_rho]
        gradients = torch.autograd.grad(sum(output.cos().sum() for output in outputs), list(leaves.values()))
        return outputs, gradients

    outputs, gradients = solve(marker)
    expected, expected_gradients = solve(0.0)
    for got, want in zip([*outputs, *gradients], [*expected, *expected_gradients], strict=True):
        assert got.isfinite().all()
        assert torch.equal(got, want)
    for gradient in gradients[-2:]:
        assert (gradient[[0, 2, 5]] == 0).all()


def test_nothing_observed_leaves_everything():
    q = Case(6, (2,)).build(torch.float32)
    p = {"loc": torch.full((6,), NAN), "scale": torch.full((6,), INF)}
    updated, log_normalizer = q.conjugate_update(independent(p))
    assert torch.equal(log_normalizer, torch.zeros(2))
    assert torch.equal(updated.loc, q.loc)
    assert_close(updated.scale, q.scale, torch.float32)
    assert_close(updated.atanh_rho, q.atanh_rho, torch.float32)


def test_missing_is_marginal():
    """What is missing might as well have been summed out beforehand."""
    q, p = Case(8).build(), tensors(factors(Case(8), 0.5))
    seen = p["scale"].isfinite()
    assert 0 < seen.sum() < 8
    updated, log_normalizer = q.conjugate_update(independent(p))
    short, evidence = q.marginal(seen).conjugate_update(independent({name: x[seen] for name, x in p.items()}))
    assert_close(log_normalizer, evidence)
    assert_is(updated.marginal(seen), short.mean, short.covariance_matrix)


def test_a_nan_scale_is_not_a_mark():
    p = independent({"loc": torch.zeros(3), "scale": torch.tensor([1.0, NAN, 1.0])})
    _, log_normalizer = AR1Normal(torch.zeros(3), 1.0, 0.5).conjugate_update(p)
    assert log_normalizer.isnan()


def test_small_noise_is_conditioning():
    q = Case(7).build()
    scale = torch.full((7,), INF, dtype=torch.float64)
    scale[[1, 4]] = 1e-9
    updated, _ = q.conjugate_update(independent({"loc": torch.ones(7, dtype=torch.float64), "scale": scale}))
    rest = [0, 2, 3, 5, 6]
    given_value = q.condition([1, 4], torch.ones(2, dtype=torch.float64))
    assert_is(updated.marginal(rest), given_value.mean, given_value.covariance_matrix)


# --- Gradients of conjugate_update ---


def dense(loc, scale, rho) -> MultivariateNormal:
    """Written out in torch, for its autograd."""
    d = loc.shape[-1]
    rows = []
    for i in range(d):
        rows.append(torch.stack([rho[..., min(i, j) : max(i, j)].prod(-1) for j in range(d)], -1))
    covariance = torch.stack(rows, -2) * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    return MultivariateNormal(loc, covariance)


@pytest.mark.parametrize("kind", ["factors", "chain"])
def test_gradients_equal_those_of_dense_algebra(kind):
    q = Case(6, (2,), seed=5).parameters(requires_grad=True)
    p = Case(6, (2,), seed=6).parameters(requires_grad=True)
    if kind == "factors":
        p["rho"] = torch.zeros_like(p["rho"])
        other = independent(p)
        p_leaves = [p["loc"], p["scale"]]
    else:
        other, p_leaves = AR1Normal(**p), list(p.values())
    leaves = [*q.values(), *p_leaves]
    updated, evidence = AR1Normal(**q).conjugate_update(other)

    q_dense, p_dense = dense(**q), dense(**p)
    total = q_dense.covariance_matrix + p_dense.covariance_matrix
    dense_evidence = MultivariateNormal(p["loc"], total).log_prob(q["loc"])
    gain = torch.linalg.solve(total, q_dense.covariance_matrix).mT
    dense_mean = q["loc"] + (gain @ (p["loc"] - q["loc"]).unsqueeze(-1)).squeeze(-1)
    dense_cov = q_dense.covariance_matrix - gain @ q_dense.covariance_matrix
    weights = torch.randn(6, 6, dtype=torch.float64)
    for got, expected in (
        (evidence, dense_evidence),
        (updated.mean.sin(), dense_mean.sin()),
        (updated.covariance_matrix * weights, dense_cov * weights),
    ):
        gradients = torch.autograd.grad(got.sum(), leaves, retain_graph=True, materialize_grads=True)
        wanted = torch.autograd.grad(expected.sum(), leaves, retain_graph=True, materialize_grads=True)
        for gradient, want in zip(gradients, wanted, strict=True):
            assert_close(gradient, want)


@pytest.mark.parametrize("kind", ["factors", "chain"])
def test_gradcheck(kind):
    q = Case(5, (2,), seed=7).parameters(requires_grad=True)
    p = Case(5, shared_scale=True, seed=8).parameters(requires_grad=True)

    def update(q_loc, q_scale, q_rho, *p):
        other = AR1Normal(*p) if kind == "chain" else Independent(Normal(*p), 1)
        updated, log_normalizer = AR1Normal(q_loc, q_scale, q_rho).conjugate_update(other)
        return log_normalizer, updated.loc, updated.scale, updated.atanh_rho

    inputs = (*q.values(), *(list(p.values()) if kind == "chain" else [p["loc"], p["scale"]]))
    assert gradcheck(update, inputs)
    assert gradgradcheck(update, inputs)


def test_under_torch_func():
    """The recurrences are plain operations there; the results are the same."""
    q = Case(9, (3,), seed=2).parameters()
    p = tensors(factors(Case(9, (3,))))

    def evidence(loc, scale, rho, value, noise):
        chain = AR1Normal(loc, scale, rho, validate_args=False)
        other = Independent(Normal(value, noise, validate_args=False), 1, validate_args=False)
        updated, log_normalizer = chain.conjugate_update(other)
        return log_normalizer + updated.loc.sum() + updated.scale.sum() + updated.atanh_rho.sum()

    inputs = [*q.values(), *p.values()]
    mapped = torch.func.vmap(torch.func.grad(evidence, argnums=(0, 1, 2, 3, 4)))(*inputs)
    leaves = [value.clone().requires_grad_() for value in inputs]
    total = sum(evidence(*(leaf[i] for leaf in leaves)) for i in range(3))
    for got, expected in zip(mapped, torch.autograd.grad(total, leaves), strict=True):
        assert_close(got, expected)


def test_compiles_into_one_graph():
    def evidence(loc, scale, atanh_rho, value, noise):
        q = AR1Normal(loc, scale, atanh_rho=atanh_rho, validate_args=False)
        updated, log_normalizer = q.conjugate_update(Independent(Normal(value, noise, validate_args=False), 1))
        return log_normalizer + updated.loc.sum() + updated.scale.sum() + updated.atanh_rho.sum()

    inputs = [torch.rand(n, dtype=torch.float64, requires_grad=True) for n in (20, 20, 19, 20, 20)]
    expected = torch.autograd.grad(evidence(*inputs), inputs)
    compiled = torch.compile(evidence, fullgraph=True, backend="aot_eager")
    for got, want in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize(
    "index", [[1, 3, 4], slice(1, None, 2), [False, True, True, False, True], torch.tensor([0, 2])]
)
def test_index_of_constants_compiles_into_one_graph(index):
    """Of a tensor, the numbers decide; a list is part of the program."""

    def both(loc, scale, atanh_rho, value):
        q = AR1Normal(loc, scale, atanh_rho=atanh_rho, validate_args=False)
        parts = (q.marginal(index), q.condition(index, value))
        return sum(part.loc.sum() + part.scale.sum() + part.atanh_rho.sum() for part in parts)

    n = AR1Normal(torch.zeros(5), 1.0, 0.5).marginal(index).event_shape[0]
    inputs = [torch.rand(m, dtype=torch.float64, requires_grad=True) for m in (5, 5, 4, n)]
    expected = torch.autograd.grad(both(*inputs), inputs)
    compiled = torch.compile(both, fullgraph=not isinstance(index, torch.Tensor), backend="aot_eager")
    for got, want in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
        assert_close(got, want)


# --- Use ---


def test_updated_is_sampled_and_compared():
    """The amortised posterior that pyro issue 2182 asks for: a prior over time times factors that were learnt, with
    rsample and with the divergence from the prior in closed form."""
    times = torch.tensor([0.0, 0.4, 1.0, 3.0, 3.1])
    log_timescale = torch.zeros((), requires_grad=True)
    prior = AR1Normal.from_times(times, torch.zeros(5), 1.0, log_timescale.exp())
    encoder = torch.nn.Linear(8, 10)
    loc, log_scale = encoder(torch.randn(16, 8)).chunk(2, -1)
    posterior, _ = prior.conjugate_update(Independent(Normal(loc, log_scale.exp()), 1))
    z = posterior.rsample((3,))
    kl = kl_divergence(posterior, prior)
    assert z.shape == (3, 16, 5)
    assert kl.shape == (16,)
    assert (kl > 0).all()
    (z.square().sum() + kl.sum()).backward()
    for parameter in (*encoder.parameters(), log_timescale):
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


def test_pyro_reparametrises_by_it():
    """ConjugateReparam: what is drawn is the posterior, and the weight is the evidence, whatever is drawn."""
    prior = AR1Normal.from_transitions(torch.zeros(6), 1.0, 1.0, 1.0)
    data = torch.randn(6)
    guide = pyro.distributions.Normal(data, 0.5).to_event(1)

    def model():
        z = pyro.sample("z", prior)
        pyro.sample("x", pyro.distributions.Normal(z, 0.5).to_event(1), obs=data)

    model = pyro.poutine.reparam(model, {"z": ConjugateReparam(guide)})
    _, evidence = prior.conjugate_update(guide)
    for _ in range(3):
        nodes = pyro.poutine.trace(model).get_trace().nodes
        log_joint = sum(nodes[name]["fn"].log_prob(nodes[name]["value"]) for name in ("z", "x"))
        assert_close(log_joint, evidence.double(), torch.float32)


# --- Against statsmodels' Kalman filter and smoother ---


@pytest.mark.parametrize("missing", [(), (0,), (99,), tuple(range(20, 40)) + tuple(range(60, 80))], ids=len)
def test_local_level_of_the_nile(missing):
    """The annual flow of the Nile with the variances that maximise the likelihood, 15099 and 1469.1, and the gaps of
    J. Durbin and S. J. Koopman, *Time Series Analysis by State Space Methods* (2012), sections 2.2 and 2.7."""
    datasets = pytest.importorskip("statsmodels.datasets")
    tsa = pytest.importorskip("statsmodels.api").tsa
    flow = datasets.nile.load_pandas().data["volume"].to_numpy().copy()
    flow[list(missing)] = NAN
    model = tsa.UnobservedComponents(flow, "local level", loglikelihood_burn=0)
    model.ssm.tolerance = 0  # not to take the variances for converged
    model.ssm.initialize_known(np.array([1000.0]), np.array([[250.0**2]]))
    expected = model.smooth([15099, 1469.1])
    assert expected.loglikelihood_burn == 0

    flow = torch.tensor(flow)
    noise = torch.full_like(flow, math.sqrt(15099)).masked_fill(flow.isnan(), INF)
    prior = AR1Normal.from_transitions(torch.full_like(flow, 1000.0), 1.0, math.sqrt(1469.1), 250.0)
    level, evidence = prior.conjugate_update(independent({"loc": flow, "scale": noise}))
    assert_close(evidence, expected.llf)
    assert_close(level.mean, expected.smoothed_state[0])
    assert_close(level.variance, expected.smoothed_state_cov[0, 0])
