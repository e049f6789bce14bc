"""What the Triton kernels must compute: run by test_triton.py, in a process of its own, with the interpreter on
the CPU where TRITON_INTERPRET=1 is set, else compiled on a CUDA device. The blocks are small, so that few places cross
many boundaries: the interpreter takes a tenth of a millisecond for each place of a scan."""

import itertools
import os

import pytest
import torch

pytest.importorskip("triton")

from ar1_dist import functional
from ar1_dist.kernels import set_kernels
from ar1_dist.kernels.triton import available, scan
from ar1_dist.kernels.triton.colouring import chain_backward, chain_forward
from ar1_dist.kernels.triton.recurrences import recurrence_of_rows
from ar1_dist.kernels.triton.scan import Plan, plan_for
from ar1_dist.recurrence import autoregression, linear_recurrence
from tests.ar1_dist.cases import Case, assert_close
from tests.ar1_dist.kernels.test_kernels import arguments_of, assert_same, value_and_gradients
from tests.ar1_dist.test_recurrence import loop

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
pytestmark = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs a CUDA device")

# A program for each tile of rows, and rows cut into chunks, of a block each or, from 17 places on, of several.
PLANS = [Plan(2, 16), Plan(2, 16, 3), Plan(1, 8, 2)]
if not INTERPRETED:
    PLANS += [Plan(64, 16), Plan(64, 16, 2), Plan(4, 256), Plan(4, 256, 2), Plan(1, 1024), Plan(1, 2048, 3)]
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def _few_maps(monkeypatch):
    """Every program scans the maps of at least as many chunks as it has threads; the interpreter has time for 32."""
    if INTERPRETED:
        monkeypatch.setattr(scan, "_WARPS", 1)


def uniform(*shape: int, low: float = -1.0, high: float = 1.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (low + (high - low) * torch.rand(shape, dtype=torch.float64)).to(DEVICE, dtype)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).to(DEVICE, dtype)


def test_available():
    assert available(DEVICE)
    assert not available(torch.device("meta"))


# --- The recurrence ---


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("d", [1, 2, 16, 17, 50])
def test_recurrence(d, plan, shared, reverse):
    a, x = uniform(2, 1 if shared else d - 1), normal(2, d)
    got = recurrence_of_rows(a, x, reverse=reverse, plan=plan)
    assert_close(got, loop(a, x, reverse))
    assert_close(got, linear_recurrence(a, x, reverse=reverse))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("d", [511, 513])  # of blocks of 128
def test_recurrence_in_float32(d, chunks, reverse):
    a, x = uniform(1, d - 1, dtype=torch.float32), normal(1, d, dtype=torch.float32)
    got = recurrence_of_rows(a, x, reverse=reverse, plan=Plan(1, 128, chunks))
    assert_close(got, linear_recurrence(a, x, reverse=reverse), torch.float32)


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("layout", ["expanded", "transposed", "row of zeros", "no rows", "modulo"])
def test_recurrence_of_any_layout(layout, chunks):
    a, x = uniform(4, 19), normal(4, 20)
    if layout == "expanded":
        a, x = a[:1, :1].expand(4, 19), x[:1].expand(4, 20)
    elif layout == "transposed":
        a, x = uniform(19, 4).mT, normal(20, 4).mT
    elif layout == "row of zeros":
        a, x = torch.zeros_like(a), torch.zeros_like(x)
    elif layout == "no rows":
        a, x = a[:0], x[:0]
    else:
        a = a[:2]
    rows = a.repeat(2, 1) if layout == "modulo" else a
    for reverse in (False, True):
        got = recurrence_of_rows(a, x, reverse=reverse, plan=Plan(4, 16, chunks))
        assert got.is_contiguous()
        assert_close(got, loop(rows, x, reverse))


def test_recurrence_keeps_what_is_not_finite_in_its_place():
    """A NaN reaches the places after it alone, and no other row."""
    x = torch.ones(2, 40, device=DEVICE)
    x[0, 20] = float("nan")
    half = torch.full((1, 1), 0.5, device=DEVICE)
    for plan in PLANS:
        for reverse in (False, True):
            got = recurrence_of_rows(half, x, reverse=reverse, plan=plan)
            reached = torch.zeros_like(got, dtype=torch.bool)
            reached[0, : 21 if reverse else None] = True
            reached[0, : 0 if reverse else 20] = False
            assert torch.equal(got.isnan(), reached)


# --- The chain ---


def parameters(d: int, shared_scale: bool, shared_rho: bool, atanh: bool, rows: int, dtype=torch.float64):
    loc = normal(rows, d, dtype=dtype)
    scale = uniform(rows, 1 if shared_scale else d, low=0.5, high=2.0, dtype=dtype)
    pairs = 1 if shared_rho else d - 1
    return loc, scale, normal(rows, pairs, dtype=dtype) if atanh else uniform(rows, pairs, dtype=dtype)


def colour(loc, scale, correlation, noise, atanh):
    """By torch, with autograd, and parameters repeated for the noise's rows."""
    times = len(noise) // len(loc)
    loc, scale, correlation = (parameter.repeat(times, 1) for parameter in (loc, scale, correlation))
    u = autoregression(correlation if atanh else correlation.atanh(), noise)
    return loc + scale * u, u


ALL_FLAGS = list(itertools.product([False, True], repeat=3))


# Every combination in chunks of several blocks; the other ways to cut meet shared and separate parameters.
@pytest.mark.parametrize(
    ("d", "plan", "shared_scale", "shared_rho", "atanh"),
    [
        *((34, PLANS[2], *flags) for flags in ALL_FLAGS),
        *((d, plan, *flags) for d, plan in [(1, PLANS[0]), (2, PLANS[1])] for flags in ALL_FLAGS[1::5]),
        *((34, plan, *flags) for plan in PLANS if plan != PLANS[2] for flags in ALL_FLAGS[1::5]),
    ],
    ids=str,
)
def test_chain(d, plan, shared_scale, shared_rho, atanh):
    check_chain(2 * plan.rows, parameters(d, shared_scale, shared_rho, atanh, plan.rows), atanh, plan)


def check_chain(n, parameters, atanh, plan, dtype=torch.float64):
    loc, scale, correlation = parameters
    noise, grad_z = normal(n, loc.shape[1], dtype=dtype), normal(n, loc.shape[1], dtype=dtype)
    leaves = [tensor.clone().requires_grad_() for tensor in (scale, correlation, noise)]
    expected_z, expected_u = colour(loc, *leaves, atanh)
    z, u = chain_forward(loc, scale, correlation, noise, atanh=atanh, plan=plan)
    assert_close(z, expected_z, dtype)
    assert_close(u, expected_u, dtype)
    got = chain_backward(grad_z, noise, u, scale, correlation, atanh=atanh, noise_grad=True, plan=plan)
    expected = torch.autograd.grad((expected_z * grad_z).sum(), leaves, materialize_grads=True)
    for value, gradient in zip(got, expected, strict=True):
        assert_close(value, gradient, dtype)


@pytest.mark.parametrize("atanh", [False, True])
def test_chain_in_float32(atanh):
    check_chain(2, parameters(100, False, False, atanh, 1, torch.float32), atanh, Plan(2, 64), torch.float32)


def test_without_what_is_not_asked_for():
    noise, (loc, scale, correlation) = normal(2, 5), parameters(5, True, True, True, 1)
    _, u = chain_forward(loc, scale, correlation, noise, atanh=True)
    arguments = (noise, noise, u, scale, correlation)
    *gradients, none = chain_backward(*arguments, atanh=True)
    assert none is None
    for got, expected in zip(gradients, chain_backward(*arguments, atanh=True, noise_grad=True), strict=False):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("chunks", [1, 2])
def test_no_rows(chunks):
    noise, (loc, scale, correlation) = normal(0, 20), parameters(20, True, False, False, rows=0)
    z, u = chain_forward(loc, scale, correlation, noise, atanh=False, plan=Plan(2, 16, chunks))
    gradients = chain_backward(z, noise, u, scale, correlation, atanh=False, plan=Plan(2, 16, chunks))
    assert z.shape == u.shape == (0, 20)
    assert [gradient.shape for gradient in gradients[:2]] == [scale.shape, correlation.shape]


def test_parameters_that_are_expanded():
    noise, (loc, scale, correlation) = normal(2, 20), parameters(20, False, True, True, rows=1)
    expected = chain_forward(loc, scale, correlation, noise, atanh=True, plan=Plan(2, 16))
    expanded = [parameter.expand(2, -1) for parameter in (loc, scale, correlation)]
    for got, wanted in zip(chain_forward(*expanded, noise, atanh=True, plan=Plan(2, 16)), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rho_and_sech_are_right_at_either_end(dtype):
    """One step from u_1 = 1 with e_2 = 0, and from 0 with e_2 = 1, is rho and sqrt(1 - rho^2): to a few roundings,
    relative, where rho is close to 0 and where it rounds to 1."""
    alpha = torch.tensor([1e-30, 1e-8, 1e-3, 0.1, 0.2499, 0.2501, 1.0, 3.0, 9.0, 20.0, 40.0], dtype=dtype)
    alpha = torch.cat([-alpha, alpha])[:, None].to(DEVICE)
    noise = torch.eye(2, dtype=dtype, device=DEVICE)
    loc, scale = torch.zeros(1, 2, dtype=dtype, device=DEVICE), torch.ones(1, 1, dtype=dtype, device=DEVICE)
    rows = alpha.expand(-1, 2).reshape(-1, 1)  # each alpha with both rows of noise
    plan = Plan(64, 16)
    u = chain_forward(loc, scale, rows, noise.repeat(len(alpha), 1), atanh=True, plan=plan)[0][:, 1].view(-1, 2)
    expected = torch.stack([alpha[:, 0].double().tanh(), 1 / alpha[:, 0].double().cosh()], -1)
    rtol = 50 * torch.finfo(dtype).eps  # exp(-40) alone is 40 roundings of its argument
    torch.testing.assert_close(u.double(), expected, rtol=rtol, atol=0.0)

    rho = 1 - torch.tensor([[2.0**-22], [2.0**-10], [0.5], [1.5]], dtype=dtype, device=DEVICE)
    u = chain_forward(loc, scale, rho, noise[1:].repeat(4, 1), atanh=False, plan=plan)[0][:, 1:]
    torch.testing.assert_close(u.double(), (1 - rho.double() ** 2).sqrt(), rtol=rtol, atol=0.0)


def test_plans_cover_every_row_and_place():
    for n in (1, 2, 64, 1000):
        for d in (1, 20, 2048, 2049, 10**6, 10**8):
            for dtype in DTYPES:
                height, block, chunks = plan_for(n, d, dtype, DEVICE)
                blocks = -(-d // block)
                assert height * block >= 128  # no two threads hold the same place
                assert 1 <= chunks <= 1024
                assert (chunks - 1) * -(-blocks // chunks) < blocks  # no chunk is empty
    assert plan_for(64, 262_144, torch.float32, torch.device("cpu")).chunks == 1


# --- What only a device is fast enough for ---

on_a_device = pytest.mark.skipif(INTERPRETED, reason="too long for the interpreter")


@on_a_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "d"), [(64, 262_144), (1, 1_000_000), (3, 100_001), (4096, 1000), (100_003, 20), (7, 5000)]
)
def test_at_full_size(n, d, dtype):
    for shared in (False, True):
        a, x = uniform(n, 1 if shared else d - 1, low=-0.9, high=0.9, dtype=dtype), normal(n, d, dtype=dtype)
        for reverse in (False, True):
            got = recurrence_of_rows(a, x, reverse=reverse)
            assert_close(got, linear_recurrence(a, x, reverse=reverse), dtype)
            assert torch.equal(got, recurrence_of_rows(a, x, reverse=reverse))


@on_a_device
@pytest.mark.parametrize("atanh", [False, True])
@pytest.mark.parametrize(("n", "d"), [(4, 262_144), (1, 1_000_000), (128, 20), (8192, 64), (1000, 3000)])
def test_chain_at_full_size(n, d, atanh):
    for shared in (False, True):
        loc, scale, correlation = parameters(d, shared, shared, atanh, rows=1)
        check_chain(n, (loc, scale, correlation.clamp(-0.9, 0.9)), atanh, None)


@on_a_device
def test_offsets_beyond_32_bits():
    if torch.cuda.get_device_properties(DEVICE).total_memory < 40 * 2**30:
        pytest.skip("takes 18 GB")
    x = torch.ones(2**16 + 3, 2**15, device=DEVICE)
    y = recurrence_of_rows(torch.zeros(1, 1, device=DEVICE), x)
    assert torch.equal(x[-2:], y[-2:])


# --- In the distribution ---


@pytest.mark.parametrize("name", ["linear_recurrence", "colour"])
@pytest.mark.parametrize("batch_shape", [(), (2,), (2, 1, 3), (0,)], ids=str)
@pytest.mark.parametrize("atanh", [False, True])
def test_operations(name, batch_shape, atanh):
    tensors, options = arguments_of(Case(9, batch_shape, shared_scale=True), name, atanh)
    tensors = [x.detach().to(DEVICE).requires_grad_() for x in tensors]
    plain = value_and_gradients("torch", name, tensors, options)
    got = value_and_gradients("triton", name, tensors, options)
    set_kernels("auto")
    assert_same(got, plain, 1e-10)


def test_parameters_without_a_batch():
    loc, scale, rho, noise = normal(7), uniform(3, 1, low=0.5), uniform(6), normal(2, 3, 7)
    leaves = [x.requires_grad_() for x in (loc, scale, rho)]
    values = []
    for choice in ("torch", "triton"):
        set_kernels(choice)
        z = functional.colour(*leaves, noise, atanh=False)
        values.append([z, *torch.autograd.grad(z.sin().sum(), leaves)])
    set_kernels("auto")
    assert_same(values[1], values[0], 1e-10)
