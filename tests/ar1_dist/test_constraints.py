import copy
import math
import pickle

import pyro
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.distributions import biject_to, transform_to

from ar1_dist import AR1Normal, AutoAR1Normal, AutoAR1NormalMessenger
from ar1_dist.constraints import OpenIntervalTransform, open_interval

from .cases import CASES, Case, over

intervals = st.tuples(st.floats(-100, 100), st.floats(0.01, 100)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def test_endpoints_and_nan_are_outside():
    value = torch.tensor([-math.inf, -1.0, -1 + 1e-7, 0.0, 1 - 1e-7, 1.0, math.inf, math.nan])
    assert open_interval(-1, 1).check(value).tolist() == [False, False, True, True, True, False, False, False]


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0), (-math.inf, 0.0), (0.0, math.inf), (math.nan, 1.0)])
def test_bounds_must_be_finite_and_increasing(bounds):
    with pytest.raises(ValueError, match="lower_bound < upper_bound"):
        open_interval(*bounds)


@pytest.mark.parametrize("registry", [biject_to, transform_to], ids=["biject_to", "transform_to"])
def test_is_registered(registry):
    assert registry(open_interval(-1, 1)) == OpenIntervalTransform(-1, 1)
    assert registry(open_interval(-1, 1)) != registry(open_interval(0, 1))


@given(intervals, st.floats(-1e4, 1e4), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_never_leaves_the_interval(bounds, x, dtype):
    lower, upper = torch.tensor(bounds, dtype=dtype).tolist()
    assume(upper - lower > 8 * torch.finfo(dtype).eps * max(abs(lower), abs(upper)))
    constraint = open_interval(lower, upper)
    assert constraint.check(biject_to(constraint)(torch.tensor(x, dtype=dtype)))


@given(intervals, st.floats(-5, 5))
def test_inverse_and_jacobian(bounds, x):
    transform = OpenIntervalTransform(*bounds)
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = transform(x)
    torch.testing.assert_close(transform.inv(y), x, rtol=0, atol=1e-6)
    (slope,) = torch.autograd.grad(y, x)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), slope.log(), rtol=1e-9, atol=1e-9)


def test_clamps_as_torch_clamps_its_sigmoid():
    for dtype in (torch.float32, torch.float64):
        eps = torch.finfo(dtype).eps
        ends = OpenIntervalTransform()(torch.tensor([-100.0, 100.0], dtype=dtype))
        assert ends.tolist() == [-1 + eps, 1 - eps]


def test_copies():
    transform = OpenIntervalTransform(-2.0, 3.0)
    assert copy.deepcopy(transform) == pickle.loads(pickle.dumps(transform)) == transform
    assert transform.with_cache() == transform
    assert repr(pickle.loads(pickle.dumps(transform.codomain))) == "OpenInterval(lower_bound=-2.0, upper_bound=3.0)"


def _constraint_of_rho(shape):
    return AR1Normal.arg_constraints["rho"] if shape else open_interval(-1.0, 1.0)  # of a number, elementwise


@pytest.mark.parametrize("shape", [(), (1,), (4,)])
def test_serves_pyro_param(shape):
    rho = pyro.param("rho", torch.full(shape, 0.5), constraint=_constraint_of_rho(shape))
    torch.testing.assert_close(rho, torch.full(shape, 0.5))
    pyro.get_param_store()._params["rho"].data.fill_(50.0)
    rho = pyro.param("rho")
    assert AR1Normal(torch.zeros(5), 1.0, rho, validate_args=True).log_prob(torch.zeros(5)).isfinite()


# Of parameters: leading dimensions are those of the batch, and the rest, of which the constraint says how many there
# are, is the event's.


@over([*CASES, Case(1, (2, 1)), Case(4, (3, 2), shared_scale=True, shared_rho=True)])
@pytest.mark.parametrize("atanh", [False, True])
def test_of_parameters_have_their_dimensions(case, atanh):
    given = case.parameters()
    if atanh:
        given["atanh_rho"] = given.pop("rho").atanh()
    for q in (AR1Normal(**given), AR1Normal(**given).expand((5, *case.batch_shape))):
        assert set(q.arg_constraints) == set(given)
        for name, constraint in q.arg_constraints.items():
            assert repr(constraint) == repr(AR1Normal.arg_constraints[name])
            value = getattr(q, name)
            assert value.dim() >= constraint.event_dim == 1
            leading = value.shape[: value.dim() - constraint.event_dim]
            assert torch.broadcast_shapes(q.batch_shape, leading) == q.batch_shape
            if value.numel() > 0:
                assert constraint.check(value).shape == leading
                assert constraint.check(value).all()


@pytest.mark.parametrize("name", ["loc", "scale", "rho", "atanh_rho"])
def test_of_parameters_serve_a_subsampled_plate(name):
    constraint, d, size = AR1Normal.arg_constraints[name], 100, 50
    given = {"loc": torch.zeros(d), "scale": 1.0, "rho": 0.5}
    if name == "atanh_rho":
        del given["rho"]
    full = torch.rand(size, d - 1 if "rho" in name else d) * 0.9 + 0.05

    def model():
        with pyro.plate("series", size, subsample_size=10) as index:
            value = pyro.param(name, full, constraint=constraint, event_dim=constraint.event_dim)
            torch.testing.assert_close(value, full[index])
            return pyro.sample("z", AR1Normal(**(given | {name: value})))

    assert model().shape == (10, d)


def test_of_guides_have_their_dimensions():
    def model():
        with pyro.plate("series", 3):
            pyro.sample("z", AR1Normal(torch.zeros(2, 5), 1.0, 0.5).to_event(1))

    flat, sites = AutoAR1Normal(model), AutoAR1NormalMessenger(model)
    flat(), sites()
    assert flat._pyro_params["scale"][0].event_dim == 1
    for group in (sites.locs, sites.scales, sites.atanh_rhos):
        constraint, event_dim = group._pyro_params["z"]
        assert constraint.event_dim == event_dim == 2
