import copy
import math
import pickle

import pyro
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.distributions import biject_to, transform_to

from ar1_dist import AR1Normal
from ar1_dist.constraints import OpenIntervalTransform, open_interval

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


@pytest.mark.parametrize("shape", [(), (1,), (4,)])
def test_serves_pyro_param(shape):
    rho = pyro.param("rho", torch.full(shape, 0.5), constraint=AR1Normal.arg_constraints["rho"])
    torch.testing.assert_close(rho, torch.full(shape, 0.5))
    pyro.get_param_store()._params["rho"].data.fill_(50.0)
    rho = pyro.param("rho")
    assert AR1Normal(torch.zeros(5), 1.0, rho, validate_args=True).log_prob(torch.zeros(5)).isfinite()
